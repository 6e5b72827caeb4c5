"""What the runs of each variant say together."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_byz.compare.cells import Cell, Cells, Variant
from lightning_byz.compare.recorder import better
from lightning_byz.compare.records import Record

Records = Mapping[str, Record]


@dataclass(frozen=True)
class Choice:
    """What was tuned for a variant.

    Args:
        values: The best of the values; ``None`` where no run finished with any of them.
        scores: For each choice, in order, the mean over the seeds that tune; NaN where one of its runs failed.
        edges: The tuned paths whose best value is the smallest or the largest that was tried.
    """

    values: Mapping[str, Any] | None
    scores: Sequence[tuple[Mapping[str, Any], float]] = ()
    edges: Sequence[str] = ()


@dataclass(frozen=True)
class Spread:
    """Mean and standard error of n numbers; NaN where there are none, or one."""

    n: int
    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarize them.

        Example:
            >>> Spread.of([1.0, 2.0, 6.0])
            Spread(n=3, mean=3.0, error=1.5275252316519468)
        """
        n = len(values)
        mean = _mean(values)
        finite = n > 1 and all(math.isfinite(value) for value in values)
        return cls(n, mean, statistics.stdev(values) / math.sqrt(n) if finite else math.nan)


@dataclass(frozen=True)
class Row:
    """One variant's line of the summary.

    Args:
        variant: The variant.
        choice: What was tuned for it.
        cells: Its runs.
        failures: Why runs failed, of those that did.
        score: The metric at the runs' last evaluations.
        difference: Mean of the differences from the baseline's runs of equal seeds; ``None`` for the baseline itself, and without one.
        tests: For each metric of a test, likewise.
    """

    variant: Variant
    choice: Choice
    cells: Sequence[Cell]
    failures: Sequence[str]
    score: Spread
    difference: Spread | None
    tests: Mapping[str, Spread]


def chosen(cells: Cells, variant: Variant, records: Records) -> Choice:
    """Return the tuned values with the best mean over the runs that tune: of validation, and of no run that is compared."""
    grid, scores = cells.grid, []
    if not grid.tune:
        return Choice({})
    for values, runs in cells.tuning(variant):
        found = [records[run.id].last(grid.metric) if run.id in records else None for run in runs]
        whole = [score for score in found if score is not None]
        scores.append((values, _mean(whole) if len(whole) == len(runs) else math.nan))
    best, top = None, None
    for values, score in scores:
        if better(score, top, grid.mode):
            best, top = values, score
    return Choice(best, scores, [] if best is None else _edges(grid.tune, best))


def summarized(cells: Cells, records: Records) -> list[Row]:
    """Return the summary, in the order of the grid."""
    grid = cells.grid
    choices = [chosen(cells, variant, records) for variant in cells.variants]
    runs = [
        [] if choice.values is None else cells.compared(variant, choice.values)
        for variant, choice in zip(cells.variants, choices, strict=True)
    ]
    scores = {
        tuple(variant.names.values()): {
            cell.seed: score
            for cell in mine
            if cell.id in records and (score := records[cell.id].last(grid.metric)) is not None
        }
        for variant, mine in zip(cells.variants, runs, strict=True)
    }
    rows = []
    for variant, choice, mine in zip(cells.variants, choices, runs, strict=True):
        names = tuple(variant.names.values())
        base = tuple({**variant.names, **grid.baseline}.values())
        kept = [records[cell.id] for cell in mine if cell.id in records]
        pairs = [score - scores[base][seed] for seed, score in scores[names].items() if seed in scores[base]]
        rows.append(
            Row(
                variant,
                choice,
                mine,
                [record.failure for record in kept if record.failure] or _untuned(cells, variant, choice, records),
                Spread.of(list(scores[names].values())),
                Spread.of(pairs) if grid.baseline and base != names else None,
                _tests(kept),
            )
        )
    return rows


def _untuned(cells: Cells, variant: Variant, choice: Choice, records: Records) -> list[str]:
    """Return why there is nothing to compare, where no tuned value had a finished run on every seed."""
    if choice.values is not None:
        return []
    runs = [run for _, runs in cells.tuning(variant) for run in runs]
    if any(run.id not in records for run in runs):
        return []
    failures = [records[run.id].failure for run in runs if records[run.id].failure]
    return [f"nothing to tune by: {(*failures, f'{cells.grid.metric} is NaN or was not logged')[0]}"]


def _mean(values: Sequence[float]) -> float:
    """Return the mean; NaN of none, and of both infinities."""
    try:
        return statistics.fmean(values)
    except (statistics.StatisticsError, ValueError, OverflowError):
        return math.nan


def _tests(records: Sequence[Record]) -> dict[str, Spread]:
    names = sorted({name for record in records for name in record.test})
    return {name: Spread.of([record.test[name] for record in records if name in record.test]) for name in names}


def _edges(tune: Mapping[str, Sequence[Any]], best: Mapping[str, Any]) -> list[str]:
    """Return the paths whose best value is at an edge of several numbers that were tried."""
    return [
        path
        for path, tried in tune.items()
        if len(tried) > 1
        and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in tried)
        and best[path] in (min(tried), max(tried))
    ]
