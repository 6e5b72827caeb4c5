"""What the runs of a comparison have reached, as its results.csv has it."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

Scores = Mapping[tuple[str, ...], Mapping[int, float]]
"""For the names of a variant, its last evaluation by seed, in percent."""


def read_scores(results: Path, axes: Sequence[str], metric: str = "val_accuracy") -> Scores:
    """Return the last evaluation of each run that was compared and has not failed.

    Raises:
        SystemExit: If the file has no such columns.
    """
    with results.open(newline="") as file:
        lines = list(csv.DictReader(file))
    if missing := [name for name in (*axes, metric) if lines and name not in lines[0]]:
        raise SystemExit(f"{results} has no column {missing[0]}.")
    found: dict[tuple[str, ...], dict[int, float]] = {}
    for line in lines:  # evaluations of a run stand in the order of its steps
        if line["stage"] == "fit" and line["purpose"] == "compare":
            found.setdefault(tuple(line[name] for name in axes), {})[int(line["seed"])] = 100 * float(line[metric])
    return found


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """Return the differences on equal seeds."""
    return [one[seed] - other[seed] for seed in sorted(set(one) & set(other))]
