"""The tables that a comparison leaves: every evaluation, the summary, and the same for LaTeX."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from lightning_byz.compare.cells import Cell, Cells
from lightning_byz.compare.fit import PACKAGES
from lightning_byz.compare.records import Evaluation, Record
from lightning_byz.compare.summaries import Records, Row, Spread

TIMES = ("seconds", "run_seconds")
"""The columns that differ when a run is repeated."""


def results(cells: Cells, rows: Sequence[Row], records: Records) -> str:
    """Return one line per run and evaluation, and one per failed run, in the order of the grid."""
    grid, runs = cells.grid, _in_order(cells, rows, records)
    kept = [records[cell.id] for _, cell in runs]
    logged = sorted({name for record in kept for one in record.evaluations for name in one.metrics})
    tested = sorted({name for record in kept for name in record.test})
    header = [axis.name for axis in grid.axes] + list(grid.tuned)
    header += [
        "seed",
        "purpose",
        "cell",
        "stage",
        "epoch",
        "step",
        *logged,
        *tested,
        "bytes_received",
        "message_bytes",
        *TIMES,
    ]
    header += ["failure", "python", *PACKAGES]
    lines: list[Sequence[Any]] = [header]
    for purpose, cell in runs:
        record = records[cell.id]
        before = [*cell.variant.names.values(), *(cell.tuned[path] for path in grid.tune), cell.seed, purpose, cell.id]
        after = [record.failure, *(record.versions.get(name, "") for name in ("python", *PACKAGES))]
        for stage, one, metrics in _stages(record):
            values = [metrics.get(name, "") for name in (*logged, *tested)]
            moved = ["" if count is None else count for count in (one.received, one.messages)]
            lines.append([*before, stage, one.epoch, one.step, *values, *moved, one.seconds, record.seconds, *after])
    return _csv(lines)


def summary(cells: Cells, rows: Sequence[Row]) -> str:
    """Return one line per variant: mean, standard error, n, tuned values, and the difference from the baseline on equal seeds."""
    grid, metric = cells.grid, cells.grid.metric
    header = [axis.name for axis in grid.axes] + list(grid.tuned) + (["at_edge"] if grid.tune else [])
    header += ["n", "failed", metric, "standard_error"]
    header += ["difference", "difference_standard_error", "pairs"] if grid.baseline else []
    lines: list[Sequence[Any]] = [[*header, "failure"]]
    for row in rows:
        tuned = [(row.choice.values or {}).get(path, "") for path in grid.tune]
        edge = [" ".join(row.choice.edges)] if grid.tune else []
        pairs = row.difference or Spread.of([])
        apart = [_known(pairs.mean), _known(pairs.error), pairs.n or ""] if grid.baseline else []
        told = [row.score.n, len(row.failures), _known(row.score.mean), _known(row.score.error), *apart]
        lines.append([*row.variant.names.values(), *tuned, *edge, *told, (*row.failures, "")[0]])
    return _csv(lines)


def tests(cells: Cells, rows: Sequence[Row]) -> str:
    """Return one line per variant and metric of the tests."""
    header = [axis.name for axis in cells.grid.axes]
    lines: list[Sequence[Any]] = [[*header, "metric", "n", "mean", "standard_error"]]
    lines += [
        [*row.variant.names.values(), metric, one.n, _known(one.mean), _known(one.error)]
        for row in rows
        for metric, one in row.tests.items()
    ]
    return _csv(lines)


def latex(cells: Cells, rows: Sequence[Row]) -> str:
    """Return the summary as a table for LaTeX with the package booktabs."""
    grid = cells.grid
    names = [axis.name for axis in grid.axes] + list(grid.tuned)
    header = [_escaped(name) for name in (*names, grid.metric)] + ["difference"] * bool(grid.baseline)
    lines = ["% needs \\usepackage{booktabs}; mean $\\pm$ standard error over the seeds"]
    lines += [f"\\begin{{tabular}}{{{'l' * len(names)}{'r' * (len(header) - len(names))}}}", "\\toprule"]
    lines += [" & ".join(header) + r" \\", "\\midrule"]
    for row in rows:
        tuned = [str((row.choice.values or {}).get(path, "--")) for path in grid.tune]
        cells_ = [_escaped(name) for name in (*row.variant.names.values(), *tuned)]
        values = [row.score] + [row.difference] * bool(grid.baseline)
        cells_ += [_pm(value, signed=place > 0) for place, value in enumerate(values)]
        lines.append(" & ".join(cells_) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def told(spread: Spread | None, *, signed: bool = False) -> str:
    """Return a mean with its standard error, as text.

    Example:
        >>> told(Spread(3, 0.91234, 0.0042)), told(Spread(1, 0.5, math.nan)), told(Spread(0, math.nan, math.nan)), told(None)
        ('0.9123 ± 0.0042', '0.5000', '-', '')
    """
    if spread is None:
        return ""
    if not spread.n:
        return "-"
    size = max(abs(spread.mean), 0 if math.isnan(spread.error) else spread.error)
    form = ".4f" if size == 0 or 1e-3 <= size < 1000 else ".3g"
    mean = f"{spread.mean:{'+' if signed else ''}{form}}"
    return mean if math.isnan(spread.error) else f"{mean} ± {spread.error:{form}}"


def _pm(spread: Spread | None, *, signed: bool) -> str:
    text = told(spread, signed=signed)
    return text if text in ("", "-") else f"${text.replace('±', chr(92) + 'pm')}$"


def _in_order(cells: Cells, rows: Sequence[Row], records: Records) -> list[tuple[str, Cell]]:
    """Return the runs that are kept, with what they are for; those that tune stand before those they tune for."""
    found = []
    for row in rows:
        found += [("tune", cell) for _, runs in cells.tuning(row.variant) for cell in runs]
        found += [("compare", cell) for cell in row.cells]
    return [(purpose, cell) for purpose, cell in found if cell.id in records]


def _stages(record: Record) -> Iterable[tuple[str, Evaluation, Any]]:
    if record.failure:
        last = record.evaluations[-1] if record.evaluations else Evaluation(0, 0, 0.0, None, {})
        return [("failed", last, {})]
    found = [("fit", one, one.metrics) for one in record.evaluations]
    return [*found, ("test", record.evaluations[-1], record.test)] if record.test else found


def _known(value: float) -> float | str:
    return "" if math.isnan(value) else value


def _csv(lines: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()


def _escaped(text: str) -> str:
    r"""Return text as LaTeX prints it.

    Example:
        >>> _escaped("val_accuracy 50%")
        'val\\_accuracy 50\\%'
    """
    words = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(words.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in str(text))
