"""Which learning rates work: those whose accuracy lies within some points of the method's best, of what ``lightning-byz compare`` has left.

    lightning-byz compare --config configs/studies/window.yaml
    python benchmarks/window.py runs/compare/window/results.csv --figure=window.svg

A method's window goes from its best rate as far down and up as the mean accuracy stays within ``--points`` of that at the best; its size is the
ratio of the largest to the smallest rate in it. ``>=`` says that it ends where the tried rates end. The last column has each seed's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from jsonargparse import auto_cli
from kept_runs import read_scores
from tables import markdown


@dataclass(frozen=True)
class Window:
    """The usable rates of a method.

    Args:
        low: The smallest.
        high: The largest.
        best: The one with the best accuracy.
        accuracy: The best accuracy.
        open: Whether it ends where the tried rates end.
    """

    low: float
    high: float
    best: float
    accuracy: float
    open: bool

    def __str__(self) -> str:
        return f"{'>= ' * self.open}{self.high / self.low:.3g}"


def window_of(scores: Mapping[float, float], points: float) -> Window:
    """Return the rates around the best one without a gap that score within ``points`` of it.

    Example:
        >>> str(window_of({0.1: 80.0, 0.3: 90.0, 1.0: 91.0, 3.0: 89.5, 10.0: 20.0}, 2.0))
        '10'
    """
    rates = sorted(scores)
    best = max(rates, key=lambda rate: scores[rate])
    low = high = rates.index(best)
    enough = scores[best] - points
    while low and scores[rates[low - 1]] >= enough:
        low -= 1
    while high < len(rates) - 1 and scores[rates[high + 1]] >= enough:
        high += 1
    return Window(rates[low], rates[high], best, scores[best], low == 0 or high == len(rates) - 1)


def drawn(windows: Mapping[str, Window], rates: tuple[float, float], path: Path) -> None:
    """Write a figure with a bar per method."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "lightning_byz", "font.size": 10, "svg.fonttype": "none"}):
        figure = Figure(figsize=(6.4, 0.5 * len(windows) + 1.1), layout="constrained")
        panel: Any = figure.subplots()
        for place, one in enumerate(windows.values()):
            panel.barh(place, one.high - one.low, left=one.low, height=0.5, color="#0a7d5a")
            panel.plot(one.best, place, "o", markersize=7, markerfacecolor="white", markeredgecolor="#0a7d5a")
            panel.text(one.high * 1.3, place, f"{one} x, best {one.accuracy:.1f} %", va="center", fontsize=9)
        panel.set_xscale("log")
        panel.set_xlim(rates[0] / 1.5, rates[1] * 30)
        panel.set_yticks(range(len(windows)), list(windows))
        panel.invert_yaxis()
        panel.set_xlabel("learning rate; o: the best")
        panel.grid(axis="x", color="#d9dee3", linewidth=0.7)
        panel.set_axisbelow(True)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(results: Path, *, points: float = 2.0, figure: Path | None = None) -> None:
    """Print the windows in Markdown.

    Args:
        results: The file of all evaluations, with axes ``method`` and ``learning_rate``.
        points: How far below the best accuracy is near enough, in percent.
        figure: Where a figure goes, by its ending as PNG or SVG; it needs matplotlib.
    """
    scores = read_scores(results, ("method", "learning_rate"))
    methods, windows, lines = dict.fromkeys(method for method, _ in scores), {}, []
    for method in methods:
        runs = {float(rate): by_seed for (name, rate), by_seed in scores.items() if name == method}
        mine = windows[method] = window_of({rate: fmean(one.values()) for rate, one in runs.items()}, points)
        seeds = set.intersection(*(set(one) for one in runs.values()))
        own = [window_of({rate: one[seed] for rate, one in runs.items()}, points) for seed in sorted(seeds)]
        span = f"{mine.low:g} - {mine.high:g}"
        lines.append([method, span, str(mine), f"{mine.best:g}", f"{mine.accuracy:.1f}", ", ".join(map(str, own))])
    header = ["method", "usable rates", "largest / smallest", "best rate", "accuracy there", "each seed's"]
    print(markdown(header, lines))
    if figure is not None:
        tried = [float(rate) for _, rate in scores]
        drawn(windows, (min(tried), max(tried)), figure)


if __name__ == "__main__":
    auto_cli(main)
