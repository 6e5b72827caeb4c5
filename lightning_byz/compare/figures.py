"""The figures of a comparison; matplotlib comes with the extra ``plots``."""

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lightning_byz.compare.cells import Cells
from lightning_byz.compare.layout import (
    Curve,
    Layout,
    differ_in_bytes,
    layout_of,
    over_bytes,
    over_rates,
    over_steps,
    worst,
)
from lightning_byz.compare.summaries import Records, Row
from lightning_byz.compare.tables import told

Axes = Any  # of matplotlib, which is not always there
Figure = Any
INK, GRID = "#1f2933", "#d9dee3"
COLOURS = ("#0a7d5a", "#c0392b", "#2c6fbb", "#b7791f", "#7b4fa3", "#0e7c86", "#a13d63", "#6b7280")
DASHES = ("-", "--", ":", "-.")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "lightning_byz",
    "font.size": 10,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
}
PANELS = 12
"""A figure has at most so many panels; the tables have all."""

BYTES = "MB of workers' messages"
Drawn = Mapping[str, tuple[bytes, bytes]]


def draw(cells: Cells, rows: Sequence[Row], records: Records) -> Drawn:
    """Return each figure that has something to show, as PNG and as SVG, by its name.

    Raises:
        ImportError: Without matplotlib.
    """
    import matplotlib as mpl

    layout, metric = layout_of(cells, rows), cells.grid.metric
    with mpl.rc_context(STYLE):
        made = {
            "steps": _curves(layout, lambda row: over_steps(row, records, metric), "optimizer steps", metric),
            "heatmap": _heatmap(layout, metric, cells.grid.mode),
            "worst": _worst(layout, metric, cells.grid.mode),
        }
        if differ_in_bytes(layout, records):
            of_bytes = _curves(layout, lambda row: over_bytes(row, records, metric), BYTES, metric)
            made["bytes"] = of_bytes
        if len(cells.grid.tune) == 1:
            name, mode = cells.grid.tuned[0], cells.grid.mode
            chosen = _curves(layout, lambda row: over_rates(cells, row, records), name, metric, points=mode)
            made["tuned"] = chosen
        return {name: (_saved(figure, "png"), _saved(figure, "svg")) for name, figure in made.items() if figure}


def _curves(
    layout: Layout, curve_of: Callable[[Row], Curve], label: str, metric: str, *, points: str = ""
) -> Figure | None:
    """One panel per name across, one line per name down, with bands of a standard error; ``points`` marks the best in that mode."""
    down, across = layout.names
    curves = {place: curve for place, row in layout.places.items() if (curve := curve_of(row))}
    if not curves:
        return None
    figure, panels = _panels(min(len(across), PANELS), rows=1 + (len(across) > 4))
    for panel, right in zip(panels, across, strict=False):
        for place, ((colour, dash), name) in enumerate(zip(_strokes(), down, strict=False)):
            if curve := curves.get((name, right)):
                shown = f" {name}" if name.startswith("_") else name  # matplotlib's legend leaves out _words
                width = max(1.4, 3.8 - 0.8 * place)  # a line under another shows on either side of it
                _line(panel, curve, color=colour, linestyle=dash, label=shown, points=points, linewidth=width)
        _plain(panel, right, label, metric)
        values = [value for curve in curves.values() for value, _ in curve]
        if (points or label == BYTES) and min(values) > 0 and max(values) >= 8 * min(values):
            panel.set_xscale("log")
    handles = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    fitting = int(figure.get_figwidth() / (0.09 * max(map(len, handles)) + 0.7))
    columns = max(1, min(fitting, len(handles)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)
    figure.set_figheight(figure.get_figheight() + 0.21 * -(-len(handles) // columns))
    if len(across) > PANELS:
        figure.suptitle(f"the first {PANELS} of {len(across)}")
    return figure


def _line(panel: Axes, curve: Curve, *, points: str, **style: Any) -> None:
    places, means = [place for place, _ in curve], [spread.mean for _, spread in curve]
    errors = [0.0 if math.isnan(spread.error) else spread.error for _, spread in curve]
    panel.plot(places, means, marker="o" if points or len(curve) == 1 else "", markersize=4, **style)
    low, high = zip(*((mean - error, mean + error) for mean, error in zip(means, errors, strict=True)), strict=True)
    panel.fill_between(places, low, high, color=style["color"], alpha=0.18, linewidth=0)
    finite = [mean for mean in means if math.isfinite(mean)]
    if points and finite:
        best = means.index(max(finite) if points == "max" else min(finite))
        panel.plot(places[best], means[best], "o", markersize=9, markerfacecolor="none", markeredgecolor=style["color"])


def _heatmap(layout: Layout, metric: str, mode: str) -> Figure | None:
    """Mean and standard error of each variant, rules down, attacks across."""
    down, across = layout.names
    means = [
        [row.score.mean if (row := layout.places.get((name, right))) else math.nan for right in across] for name in down
    ]
    finite = [value for line in means for value in line if math.isfinite(value)]
    if not finite:
        return None
    (low, high), longest, widest = _range(finite), max(map(len, down)), max(map(len, across))
    breadth = min(max(1.35, 0.085 * widest), 2.4)
    turned = widest > breadth / 0.085
    height = 0.42 * len(down) + 1.3 + 0.04 * widest * turned
    figure, (panel,) = _panels(1, width=0.085 * longest + breadth * len(across) + 1.2, height=height)
    shown = [[value if math.isfinite(value) else math.nan for value in line] for line in means]
    image = panel.imshow(shown, cmap="viridis" if mode == "max" else "viridis_r", vmin=low, vmax=high, aspect="auto")
    panel.set_facecolor("#eceff1")
    for place, name in enumerate(down):
        for right, column in enumerate(across):
            row, value = layout.places.get((name, column)), means[place][right]
            bright = math.isfinite(value) and (value > (low + high) / 2) == (mode == "max")
            text = told(row.score) if row and row.score.n else "failed" if row and row.failures else "-"
            ink = INK if bright or not math.isfinite(value) else "white"
            panel.text(right, place, text.replace(" ± ", "\n± "), ha="center", va="center", fontsize=8, color=ink)
    slant = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    panel.set_xticks(range(len(across)), across, **slant)
    panel.set_yticks(range(len(down)), down)
    panel.tick_params(length=0)
    panel.set(xlabel=layout.across.name if layout.across else "", ylabel=layout.down)
    figure.colorbar(image, ax=panel, label=metric)
    return figure


def _worst(layout: Layout, metric: str, mode: str) -> Figure | None:
    """The worst across for each name down, with where it was."""
    if layout.across is None or len(layout.across.variants) < 2:
        return None
    found = worst(layout, mode)
    finite = [row.score.mean for _, row in found.values() if math.isfinite(row.score.mean)]
    if not finite:
        return None
    names, edge, texts = list(found), max(finite), [_of_worst(right, row) for right, row in found.values()]
    room, text = 4.5, 0.068 * max(map(len, texts))  # inches for the bars, and for what stands behind the longest
    width = room + text + 0.085 * max(map(len, names)) + 0.6
    figure, (panel,) = _panels(1, width=width, height=0.36 * len(found) + 1.2)
    for place, ((_, row), said) in enumerate(zip(found.values(), texts, strict=True)):
        value = row.score.mean if math.isfinite(row.score.mean) else 0.0
        error = 0.0 if math.isnan(row.score.error) else row.score.error
        panel.barh(place, value, xerr=error or None, color=COLOURS[0], height=0.62)
        panel.text(max(value + error, 0) + 0.015 * abs(edge), place, said, va="center", fontsize=8)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set_xticks([place for place in panel.get_xticks() if min(0, *finite, 0) <= place <= max(edge, 0) * 1.09])
    panel.set_xlim(min(0, *finite, 0) * 1.05, max(edge * 1.02 * (room + text) / room, 1e-9))
    _plain(panel, "", f"{metric}, worst of {layout.across.name}", "")
    panel.grid(axis="y", visible=False)
    return figure


def _of_worst(right: str, row: Row) -> str:
    known = math.isfinite(row.score.mean)
    return f"{told(row.score) if known else 'failed' if row.failures else '-'}  {right}"


def _strokes() -> Iterator[tuple[str, str]]:
    return ((colour, dash) for dash in DASHES for colour in COLOURS)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _panels(count: int, *, rows: int = 1, width: float = 0, height: float = 0) -> tuple[Figure, list[Axes]]:
    from matplotlib import figure as figures

    columns = -(-count // rows)
    size = (width or max(3.1 * columns + 0.6, 5.6), height or 2.6 * rows + 1)
    figure = figures.Figure(figsize=size, facecolor="white", layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten().tolist()
    for panel in panels[count:]:
        panel.remove()
    return figure, panels[:count]


def _plain(panel: Axes, title: str, right: str, up: str) -> None:
    panel.set_title(title, fontsize=10)
    panel.set(xlabel=right)
    if panel.get_subplotspec().is_first_col():
        panel.set(ylabel=up)
    panel.grid(color=GRID, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.tick_params(length=0)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _saved(figure: Figure, form: str) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()
