"""The page of the price: tables from best to worst, a line on each, and what their numbers mean."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from digits_training import BATCH, HIDDEN, LEARNING_RATE, SIGN_RATE, WORKERS
from tables import markdown

from lightning_byz.aggregators import Mean

EXACT, DOUBLED = 2, 4
NEAR = 1
"""Point of accuracy below which a cost is called small."""
HEADER = ["rule", *(f"{who}, f = {f}" for f in (EXACT, DOUBLED) for who in ("overall", "worst worker"))]


@dataclass(frozen=True)
class Cell:
    """One rule on one partition with one f: accuracies per seed, in percent, or why it does not run."""

    overall: tuple[float, ...] = ()
    worst: tuple[float, ...] = ()
    refusal: str = ""


Cells = Mapping[tuple[str, str, int], Cell]
"""By rule, partition and f."""


def ranked(cells: Cells, names: Sequence[str], partition: str) -> list[tuple[str, float]]:
    """Return the rules that run with f = 2 on a partition, from best to worst: by what the worst-served worker loses against the mean, in points."""
    mean = cells[Mean.__name__, partition, 0].worst
    losses = {
        name: statistics.fmean(mean) - statistics.fmean(cell.worst)
        for name in names
        if name != Mean.__name__ and not (cell := cells[name, partition, EXACT]).refusal
    }
    return sorted(losses.items(), key=lambda item: item[1])


def rows(cells: Cells, names: Sequence[str], partition: str) -> list[list[str]]:
    """Return the lines of one partition's table: the mean's accuracies, then the others' differences from them, best to worst."""
    order, mean, lines = [name for name, _ in ranked(cells, names, partition)], cells[Mean.__name__, partition, 0], []
    for name in [Mean.__name__, *order, *(name for name in names if name not in [Mean.__name__, *order])]:
        line = [name]
        for f in (EXACT, DOUBLED):
            cell = mean if name == Mean.__name__ else cells[name, partition, f]
            if cell.refusal:
                line += ["refuses weights" if "equal weights" in cell.refusal else f"refuses f = {f}"] * 2
                continue
            for values, base in ((cell.overall, mean.overall), (cell.worst, mean.worst)):
                line.append(
                    _spread(values, "")
                    if cell is mean
                    else _spread([one - other for one, other in zip(values, base, strict=True)], "+")
                )
        lines.append(line)
    return lines


def summary(cells: Cells, names: Sequence[str], partition: str) -> str:
    """Return one line on one partition's table."""
    order = ranked(cells, names, partition)
    if not order:
        return f"No rule runs with f = {EXACT} here."
    near, refusing = sum(loss < NEAR for _, loss in order), len(names) - 1 - len(order)
    return (
        f"With f = {EXACT}, {near} of {len(order)} rules cost the worst-served worker less than {NEAR} point: least `{order[0][0]}`"
        f" ({_signed(order[0])}), most `{order[-1][0]}` ({_signed(order[-1])}){f'; {refusing} refuse' if refusing else ''}."
    )


def _signed(loss: tuple[str, float]) -> str:
    return f"{round(-loss[1], 1) + 0.0:+.1f}"


def _spread(values: Sequence[float], sign: str) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.1f}{spread}"


def page(
    tables: dict[str, tuple[str, list[list[str]]]],
    refusals: Sequence[str],
    *,
    command: str,
    data: str,
    seeds: int,
    steps: int,
) -> str:
    """Return the page."""
    text = f"""# The price of robustness where nobody attacks

```bash
{command}
```

A network of one hidden layer of {HIDDEN} learns {data} from {WORKERS} honest workers, batches of {BATCH}, {steps} steps of SGD with
learning rate {LEARNING_RATE} ({SIGN_RATE} for rules that return signs). Rules run with default arguments, which are not tuned to this problem, with
f = {EXACT} and, as if one had been too careful, f = {DOUBLED}. The line of `Mean` is its accuracy on test samples in percent; the other lines are
differences from it, in points, for the same seeds: mean and standard deviation over {seeds} seeds, each the mean of five moments in the last
fifth of the steps. *Overall* is the accuracy on all test samples; *worst worker* weighs the accuracy on each label by its share in the
worker's shard, and is that of the worker for whom this is lowest; by it, at f = {EXACT}, lines are sorted from best to worst. With unequal sizes the
weights are the sizes, and f workers are any f, the heaviest too. A rule that refuses a
cell says so; a line of zeros throughout is of a rule that never did anything, such as clipping at a radius that no row reaches.
"""
    for title, (line, lines) in tables.items():
        text += f"\n## {title}\n\n{line}\n\n{markdown(HEADER, lines)}"
    return text + ("\n## Refusals\n\n" + "".join(f"- {refusal}\n" for refusal in refusals) if refusals else "")
