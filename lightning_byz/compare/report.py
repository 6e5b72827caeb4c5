"""Everything that is made of the records: tables, figures, the page."""

from lightning_byz.compare import tables
from lightning_byz.compare.cells import Cells
from lightning_byz.compare.page import page
from lightning_byz.compare.records import Folder, write_whole
from lightning_byz.compare.summaries import summarized
from lightning_byz.compare.wandb_runs import among, sweep

UNDRAWN = "There are no figures, as matplotlib is not installed: pip install 'lightning-byz[plots]' and give the command again."


def write_report(cells: Cells, folder: Folder, command: str) -> list[str]:
    """Write all of it from the records that are there; return what was written."""
    records = folder.records()
    rows = summarized(cells, records)
    written: dict[str, str | bytes] = {
        "results.csv": tables.results(cells, rows, records),
        "summary.csv": tables.summary(cells, rows),
        "summary.tex": tables.latex(cells, rows),
    }
    if cells.grid.test:
        written["test.csv"] = tables.tests(cells, rows)
    if text := sweep_of(cells, folder):
        written["sweep.yaml"] = text
    for name, text in written.items():
        write_whole(folder.path / name, text)
    drawn, notes = {}, []
    try:
        from lightning_byz.compare.figures import draw

        drawn = draw(cells, rows, records)
    except ImportError as missing:
        if (missing.name or "").split(".")[0] != "matplotlib":
            raise
        notes = [UNDRAWN]
        print(UNDRAWN)
    for name, (png, svg) in drawn.items():
        write_whole(folder.path / "figures" / f"{name}.png", png)
        write_whole(folder.path / "figures" / f"{name}.svg", svg)
    text = page(cells, rows, records, drawn, command=command, notes=notes)
    write_whole(folder.path / "index.html", text)
    return [*written, *(f"figures/{name}.png" for name in drawn)]


def sweep_of(cells: Cells, folder: Folder) -> str:
    """Return a sweep of W&B over the configs that are there; "" for runs that do not log to it."""
    grid, loggers = cells.grid, [logger for one in cells.loggers if (logger := among(one))]
    if len(loggers) < len(cells.loggers):
        return ""
    paths = [folder.path / "cells" / f"{one}.yaml" for one in cells.possible()]
    projects = {(one.get("init_args") or {}).get("project") if isinstance(one, dict) else None for one in loggers}
    return sweep(
        folder.path.absolute().name,
        [str(path) for path in paths if path.is_file()],
        metric=grid.metric,
        mode=grid.mode,
        threads=grid.threads,
        project=projects.pop() if len(projects) == 1 else None,
    )
