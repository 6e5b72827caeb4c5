"""Who delivered when, and how old each worker's message is while rules use it: a figure from what WorkerMonitor has written to CSV.

    pip install -e '.[plots]'
    python benchmarks/staleness.py runs/quickstart/version_0/metrics.csv
    python benchmarks/staleness.py runs/quickstart/version_0/metrics.csv --output=ages.svg --attackers='[6, 7]'

The fit has arrivals, or is of AsyncRobustStrategy, with a CSVLogger and WorkerMonitor(per_worker=True); with log_every_n_steps=1 the ages are those
of all steps, else means over the steps between two lines. For each worker the middle half of the ages, their median and their whole range, with its
deliveries and its part of the weight at the end; on the right, how many it had delivered at each step. A line that goes flat is a worker that is
gone.
"""

import csv
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

HONEST, ATTACKS, INK, GRID = "#0a7d5a", "#c0392b", "#1f2933", "#d9dee3"
Numbers = Mapping[int, Sequence[float]]


def read(path: Path, name: str) -> Numbers:
    """Return a number of each worker over the lines of a log, NaN left out.

    Raises:
        SystemExit: If the log has no such number.

    """
    with path.open() as lines:
        rows = list(csv.DictReader(lines))
    prefix = f"worker_{name}/"
    columns = sorted((key for key in rows[0] if key.startswith(prefix)), key=lambda key: int(key.removeprefix(prefix)))
    found = {int(key.removeprefix(prefix)): [float(row[key]) for row in rows if row[key]] for key in columns}
    if not any(found.values()):
        raise SystemExit(f"{path} has no {prefix}0: fit with arrivals and WorkerMonitor(per_worker=True).")
    return found


def steps(path: Path) -> list[float]:
    """Return the steps of the lines that say what was delivered."""
    with path.open() as lines:
        return [float(row["step"]) for row in csv.DictReader(lines) if row.get("worker_delivered/0")]


def draw(at: Sequence[float], ages: Numbers, delivered: Numbers, weights: Numbers, attackers: Sequence[int]) -> Any:
    """Return the figure."""
    from matplotlib.figure import Figure

    names = [
        f"{worker}{' (attacks)' if worker in attackers else ''}: {sum(delivered[worker]):.0f} delivered, {100 * weights[worker][-1]:.0f} %"
        for worker in ages
    ]
    figure = Figure(figsize=(12, 1.6 + 0.34 * len(names)), layout="constrained")
    panel, lines = figure.subplots(1, 2, width_ratios=(3, 2))
    boxes = panel.boxplot(list(ages.values()), orientation="horizontal", whis=(0, 100), patch_artist=True, widths=0.6)
    for worker, box, middle in zip(ages, boxes["boxes"], boxes["medians"], strict=True):
        box.set(facecolor=ATTACKS if worker in attackers else HONEST, alpha=0.75, edgecolor=INK)
        middle.set(color=INK)
    panel.set_yticks(range(1, len(names) + 1), names)
    panel.invert_yaxis()
    panel.set_xlabel("age of the message in use, in steps")
    panel.grid(axis="x", color=GRID)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(length=0)
    for worker, counts in delivered.items():
        line = list(accumulate(counts))
        lines.plot(at, line, color=ATTACKS if worker in attackers else HONEST, linewidth=1.4)
        lines.annotate(
            str(worker), (at[-1], line[-1]), xytext=(3, 0), textcoords="offset points", fontsize=8, va="center"
        )
    lines.set_xlabel("step")
    lines.set_title("messages delivered", fontsize=10, loc="left")
    lines.grid(color=GRID)
    lines.spines[["top", "right"]].set_visible(False)
    return figure


def main(metrics: Path, output: Path = Path("staleness.png"), attackers: Sequence[int] = ()) -> None:
    """Draw the figure.

    Args:
        metrics: The CSV that the fit wrote.
        output: The picture: png, svg or pdf.
        attackers: Workers to be coloured as such.

    """
    ages, delivered, weights = (read(metrics, name) for name in ("age", "delivered", "weight"))
    draw(steps(metrics), ages, delivered, weights, attackers).savefig(output, dpi=150)
    print(f"{len(ages)} workers: {output}")


if __name__ == "__main__":
    auto_cli(main, as_positional=True)
