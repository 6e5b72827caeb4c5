"""One page of a comparison that needs nothing else: no other file, no network."""

import shlex
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from lightning_byz.compare.cells import Cell, Cells, command_of
from lightning_byz.compare.figures import Drawn
from lightning_byz.compare.summaries import Records, Row
from lightning_byz.compare.tables import told

CAPTIONS = {
    "heatmap": "Mean and standard error over the seeds, at the last evaluation.",
    "worst": "For each, the worst across, and where that was.",
    "steps": "Mean over the seeds; bands are a standard error to either side.",
    "bytes": "Against what the workers' messages take on a wire, wherever the workers live.",
    "tuned": "Validation of the runs that tune, over their own seeds; circles are the values chosen.",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; background: #fff; max-width: 80rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .25rem .75rem; text-align: left; border-bottom: 1px solid #d9dee3 }
td, th { white-space: nowrap } td.said { white-space: normal; min-width: 20rem }
td.number, th.number { text-align: right } code { font-size: 13px } img { max-width: 100%; height: auto } figure { margin: 1.5rem 0 }
figcaption, .quiet { color: #52606d } .bad { color: #a12d20 } .wide { overflow-x: auto }
"""


def page(
    cells: Cells, rows: Sequence[Row], records: Records, drawn: Drawn, *, command: str, notes: Sequence[str] = ()
) -> str:
    """Return the page."""
    grid = cells.grid
    kept = [records[cell.id] for row in rows for cell in row.cells if cell.id in records]
    versions = ", ".join(f"{name} {one}" for name, one in (kept[0].versions if kept else {}).items())
    title = f"Comparison of {', '.join(axis.name for axis in grid.axes)}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(_scope(cells))}</p><p><code>{escape(command)}</code></p>",
        *(f'<p class="bad">{escape(note)}</p>' for note in (*notes, *remarks(cells, rows, records))),
        "<h2>Summary</h2>",
        _summary(cells, rows),
        *(_figure(name, drawn[name][1]) for name in CAPTIONS if name in drawn),
        *_tests(cells, rows),
        "<h2>Runs</h2>",
        f'<p class="quiet">Each command fits one run again; <code>{escape(command)} --cell ID</code> does too, and compares every bit.</p>',
        _runs(cells, rows, records),
        f'<p class="quiet">{escape(versions)}; {grid.threads} torch thread per process.</p>',
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def remarks(cells: Cells, rows: Sequence[Row], records: Records) -> list[str]:
    """Return what a reader of the figures must know: failures, runs that are missing, best values at an edge."""
    edges = [row for row in rows if row.choice.edges]
    tuning = [run.id for row in rows for _, runs in cells.tuning(row.variant) for run in runs]
    made = [*tuning, *(cell.id for row in rows for cell in row.cells)]
    failed = sum(bool(one in records and records[one].failure) for one in made)
    missing = sum(one not in records for one in made)
    told = []
    if failed:
        told.append(f"{failed} runs failed; their sentences stand in the table of runs, and they are in no mean.")
    if missing:
        told.append(f"{missing} runs are not finished yet.")
    if edges:
        where = "; ".join(f"{row.variant.title}: {', '.join(row.choice.edges)}" for row in edges[:5])
        more = f" and {len(edges) - 5} more" if len(edges) > 5 else ""
        told.append(
            f"The best tuned value lies at the edge of what was tried, so a better one may lie beyond: {where}{more}."
        )
    return told


def _scope(cells: Cells) -> str:
    grid = cells.grid
    words = f"{len(cells.variants)} variants of {grid.base}, seeds {', '.join(map(str, grid.seeds))}; {grid.metric} of the last evaluation"
    if grid.tune:
        words += f"; {', '.join(grid.tuned)} tuned for each variant, on validation data, over seeds {', '.join(map(str, grid.tune_seeds))}"
    if grid.baseline:
        words += f"; differences from {', '.join(f'{axis} {name}' for axis, name in grid.baseline.items())}, run by run on equal seeds"
    return f"{words}."


def _summary(cells: Cells, rows: Sequence[Row]) -> str:
    grid = cells.grid
    header = [axis.name for axis in grid.axes] + [*grid.tuned, "n", grid.metric] + ["difference"] * bool(grid.baseline)
    lines = []
    for row in rows:
        values = row.choice.values or {}
        tuned = [f"{values.get(path, '-')}{' (edge)' * (path in row.choice.edges)}" for path in grid.tune]
        failed = f" ({len(row.failures)} failed)" if row.failures else ""
        apart = [told(row.difference, signed=True)] * bool(grid.baseline)
        lines.append([*row.variant.names.values(), *tuned, f"{row.score.n}{failed}", told(row.score), *apart])
    return _table(header, lines, numbers=len(grid.axes))


def _figure(name: str, picture: bytes) -> str:
    data = b64encode(picture).decode()
    source = f"data:image/svg+xml;base64,{data}"
    return f'<figure><img alt="{escape(CAPTIONS[name])}" src="{source}"><figcaption>{escape(CAPTIONS[name])}</figcaption></figure>'


def _tests(cells: Cells, rows: Sequence[Row]) -> list[str]:
    lines = [[*row.variant.names.values(), name, told(one)] for row in rows for name, one in row.tests.items()]
    header = [*(axis.name for axis in cells.grid.axes), "metric", "mean ± standard error"]
    words = '<p class="quiet">Of the runs above; nothing was chosen by it.</p>'
    return ["<h2>Test data</h2>", words, _table(header, lines, numbers=len(header) - 1)] if lines else []


def _runs(cells: Cells, rows: Sequence[Row], records: Records) -> str:
    grid, lines = cells.grid, []
    for row in rows:
        tuning = [("tune", cell) for _, runs in cells.tuning(row.variant) for cell in runs]
        for purpose, cell in [*tuning, *(("compare", cell) for cell in row.cells)]:
            lines.append(_run(cells, purpose, cell, records))
    header = [
        "ID",
        "purpose",
        *(axis.name for axis in grid.axes),
        *grid.tuned,
        "seed",
        grid.metric,
        "seconds",
        "command",
    ]
    return _table(header, lines, numbers=len(header))


def _run(cells: Cells, purpose: str, cell: Cell, records: Records) -> list[str]:
    record, metric = records.get(cell.id), cells.grid.metric
    score = None if record is None else record.last(metric)
    said = "not finished" if record is None else record.failure or (f"no {metric}" if score is None else f"{score:.4f}")
    tuned = [str(cell.tuned[path]) for path in cells.grid.tune]
    seconds = f"{record.seconds:.1f}" if record else ""
    names = [*cell.variant.names.values(), *tuned]
    return [cell.id, purpose, *names, str(cell.seed), said, seconds, command_of(cell, cells.grid)]


def _table(header: Sequence[str], lines: Iterable[Sequence[Any]], *, numbers: int) -> str:
    kinds = ["" if place < numbers else ' class="number"' for place in range(len(header))]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, header, strict=True))
    body = "".join(
        f"<tr>{''.join(_cell(kind, cell) for kind, cell in zip(kinds, line, strict=True))}</tr>\n" for line in lines
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _cell(kind: str, text: str) -> str:
    code = text.startswith("OMP_NUM_THREADS=")
    kind = ' class="said"' if len(text) > 60 and not code else kind  # sentences of failures
    return f"<td{kind}>{'<code>' * code}{escape(text)}{'</code>' * code}</td>"


def command_line(config: str, output: str | None, settings: Sequence[str] = ()) -> str:
    """Return the command that makes the whole comparison."""
    options = [("--config", config), *(("--set", one) for one in settings), *([("--output", output)] if output else [])]
    return " ".join(["lightning-byz compare", *(f"{name} {shlex.quote(value)}" for name, value in options)])
