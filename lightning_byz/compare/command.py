"""The command ``lightning-byz compare``."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from lightning_byz.compare.cells import Cell, Cells, Variant
from lightning_byz.compare.fit import Job, check
from lightning_byz.compare.grid import Grid, read_grid, refuse_counts
from lightning_byz.compare.options import SentenceParser, kept
from lightning_byz.compare.page import command_line
from lightning_byz.compare.processes import Processes
from lightning_byz.compare.progress import Meter, meter
from lightning_byz.compare.records import Folder, Record, write_whole
from lightning_byz.compare.report import sweep_of, write_report
from lightning_byz.compare.summaries import chosen
from lightning_byz.compare.wandb_runs import refuse_without_wandb
from lightning_byz.compare.yaml_file import GridMistake, value_of
from lightning_byz.kinds import hint, listed

MANY = 10_000
TO_WANDB = "set: {trainer.logger: lightning.pytorch.loggers.WandbLogger}"


def main(args: Sequence[str]) -> None:
    """Run the command with these arguments.

    Raises:
        SystemExit: With status 2 if the grid or the arguments are wrong, 1 if the disk is full or a replay differs, 130 if stopped by Ctrl-C.
    """
    try:
        _run(_options(args))
    except GridMistake as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)


def _options(args: Sequence[str]) -> argparse.Namespace:
    parser = SentenceParser(
        "lightning-byz compare", description="Run a grid of fits and compare them.", allow_abbrev=False
    )
    parser.add_argument("--config", metavar="GRID", help="the grid, such as configs/compare.yaml; see docs/compare.md")
    parser.add_argument("--output", type=Path, help="the folder of the results, instead of the grid's")
    parser.add_argument("--processes", type=int, help="how many runs at the same time, instead of the grid's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="what every run has, over the grid's set"
    )
    parser.add_argument(
        "--cell", metavar="ID", help="run one cell again, and compare every bit with what is kept of it"
    )
    parser.add_argument("--sweep", action="store_true", help="run nothing: write the configs and W&B's sweep.yaml")
    parser.add_argument("--retry", action="store_true", help="run failed cells again")
    parser.add_argument("--yes", action="store_true", help=f"go ahead with more than {MANY:,} runs")
    told = parser.parse_args(list(args))
    if told.config is None:
        raise GridMistake(
            "no grid is given: name its file with --config, such as lightning-byz compare --config configs/compare.yaml."
        )
    return told


def settings(given: Sequence[str]) -> dict[str, Any]:
    """Return what options ``--set`` write where.

    Raises:
        GridMistake: For one that is no path with a value.

    Example:
        >>> settings(["data.folder=folder/with/mnist", "trainer.max_steps=8"])
        {'data.folder': 'folder/with/mnist', 'trainer.max_steps': 8}
    """
    for one in given:
        if not all(one.partition("=")[:2]):
            raise GridMistake(f"--set {one}: give a dotted path and its value, such as --set trainer.max_epochs=5.")
    return {path: value_of(value) for path, _, value in (one.partition("=") for one in given)}


def _run(told: argparse.Namespace) -> None:
    grid = read_grid(Path(told.config), settings(told.set))
    given: dict[str, Any] = {"output": told.output, "processes": told.processes}
    grid = replace(grid, **{name: value for name, value in given.items() if value is not None})
    refuse_counts(grid.processes)
    cells = Cells(grid)
    if cells.count > MANY and not told.yes:
        raise GridMistake(f"the grid has {cells.count:,} runs: give --yes to go ahead, or fewer variants or seeds.")
    known = cells.possible()
    if told.cell is not None and told.cell not in known:
        near = hint(told.cell, known) or f"{grid.output / 'index.html'} lists them."
        raise GridMistake(f"there is no cell {told.cell!r} in this grid: {near}")
    folder = Folder(grid.output)
    refuse_without_wandb([] if told.sweep else cells.loggers)
    if told.cell is not None:
        _replay(known[told.cell], cells, folder)
        return
    if told.sweep and not sweep_of(cells, folder):
        raise GridMistake(f"sweep: runs of this grid do not log to W&B: give {TO_WANDB}.")
    with Processes(grid.processes, grid.threads) as processes:
        if not told.sweep and (told.retry or _count(cells, folder.records(known)) < cells.count):
            processes.warm()  # while the paths are checked
        check_paths(cells)
        with folder.locked():
            folder.refuse_others(known)
            if told.sweep:
                _write_sweep(cells, folder)
                return
            if told.retry:
                folder.forget(one.id for one in folder.records().values() if one.failure)
            command = command_line(told.config, str(told.output) if told.output else None, told.set)
            with kept(folder, cells.count, known):
                try:
                    complete(cells, folder, processes)
                finally:
                    written = write_report(cells, folder, command)
            print(f"{grid.output / 'index.html'}: {', '.join(written)}")


def _write_sweep(cells: Cells, folder: Folder) -> None:
    """Write the config of every run that the grid may come to, and the sweep over them."""
    with kept(folder, cells.count):
        for cell in cells.possible().values():
            path = folder.path / "cells" / f"{cell.id}.yaml"
            if not path.is_file():
                check(cell.arguments(cells.grid.base, cells.grid.output), path)
        write_whole(folder.path / "sweep.yaml", sweep_of(cells, folder))
    print(f"{folder.path / 'sweep.yaml'}: {len(cells.possible())} fits; wandb sweep {folder.path / 'sweep.yaml'}")


def check_paths(cells: Cells) -> None:
    """Have every value of the grid parsed once, so that a misspelt path is known before the first run.

    Raises:
        GridMistake: Saying where it stands and what is wrong.
    """
    grid = cells.grid
    common = {**cells.common, "seed_everything": grid.seeds[0]}
    parts: list[tuple[str, Any]] = [(f"base {grid.base}", {})] if not grid.set else []
    parts += [(f"base {grid.base} with set", grid.set)] if grid.set else []
    for axis in grid.axes:
        parts += [(f"axis {axis.name}, {name}", values) for name, values in axis.variants.items()]
    parts += [(f"tune, {path}", {path: value}) for path, values in grid.tune.items() for value in values]
    for place, values in parts:
        cell = Cell("check", Variant({}, {}), {}, grid.seeds[0], {**common, **values}, tests=False)
        try:
            check(cell.arguments(grid.base, grid.output))
        except GridMistake as mistake:
            raise GridMistake(f"{place}: {mistake}") from None


def complete(cells: Cells, folder: Folder, processes: Processes) -> None:
    """Make the runs that are missing: first those that tune, then those that are compared.

    Raises:
        GridMistake: If the first run that finishes has not logged the metric.
        FullDisk: If a run could not be kept.
    """
    done, tuning = (
        folder.records(),
        [run for variant in cells.variants for _, runs in cells.tuning(variant) for run in runs],
    )
    with meter(cells.count, _count(cells, done)) as progress:
        finish(tuning, cells, folder, processes, progress)
        done, compared = folder.records(), []
        for variant in cells.variants:
            values = chosen(cells, variant, done).values
            compared += [] if values is None else cells.compared(variant, values)
        progress.expect(len(tuning) + len(compared))
        finish(compared, cells, folder, processes, progress)


def job_of(cell: Cell, grid: Grid, output: Path) -> Job:
    """Return what a process must know of a cell."""
    arguments = cell.arguments(grid.base, grid.output)
    return Job(cell.id, arguments, str(output), tests=cell.tests, threads=grid.threads)


def _count(cells: Cells, done: dict[str, Record]) -> int:
    tuning = [run.id for variant in cells.variants for _, runs in cells.tuning(variant) for run in runs]
    compared = [
        run.id
        for variant in cells.variants
        if (values := chosen(cells, variant, done).values) is not None
        for run in cells.compared(variant, values)
    ]
    return sum(one in done for one in chain(tuning, compared))


def finish(runs: Sequence[Cell], cells: Cells, folder: Folder, processes: Processes, progress: Meter) -> None:
    """Make those of these runs that are not kept yet.

    Raises:
        GridMistake: If the first run that finishes has not logged the metric.
        FullDisk: If a run could not be kept.
    """
    done = folder.records(run.id for run in runs)
    logged = _refuse_unlogged(done.values(), cells.grid.metric, folder)
    titles = {run.id: f"{run.variant.title}, seed {run.seed}" for run in runs}
    jobs = [job_of(run, cells.grid, folder.path) for run in runs if run.id not in done]
    for job, failure in processes.finish(jobs):
        if failure:
            folder.save(Record(job.id, failure))
        record = folder.records([job.id])[job.id]
        logged = logged or _refuse_unlogged([record], cells.grid.metric, folder)
        progress.step(titles[job.id], record.failure)


def _refuse_unlogged(records: Any, metric: str, folder: Folder) -> bool:
    """Return whether some run has logged the metric; refuse to go on where one finished and none has."""
    finished = [record for record in records if not record.failure]
    if any(record.last(metric) is not None for record in finished):
        return True
    if finished:
        names = sorted(finished[0].evaluations[-1].metrics) if finished[0].evaluations else []
        near = hint(metric, names) or f"it logged {listed(names) or 'nothing'}."
        raise GridMistake(f"metric={metric}: the first run has not logged it, and is kept in {folder.path}: {near}")
    return False


def _replay(cell: Cell, cells: Cells, folder: Folder) -> None:
    """Run a cell again, and compare."""
    grid, kept = cells.grid, folder.records([cell.id]).get(cell.id)
    again = Folder(folder.path / "replays")
    print(f"{cell.id}: {cell.variant.title}, seed {cell.seed}", flush=True)
    with Processes(grid.processes, grid.threads) as processes:
        for _, failure in processes.finish([job_of(cell, grid, again.path)]):
            if failure:
                sys.exit(f"error: {failure}; see {again.path / 'logs' / f'{cell.id}.txt'}.")
    record = again.records([cell.id])[cell.id]
    if record.failure:
        print(f"failed: {record.failure}")
    elif record.evaluations:
        print(", ".join(f"{name} {value!r}" for name, value in sorted(record.evaluations[-1].metrics.items())))
    if kept is None:
        print(f"{folder.path} has no such run to compare with.")
    elif record.bits == kept.bits:
        print("every number of every evaluation is that of the kept run, bit for bit.")
    else:
        told = {name: one for name, one in record.versions.items() if kept.versions.get(name) != one}
        why = f": versions differ: {told}" if told else ""
        sys.exit(f"error: this is not what {folder.path / 'records' / f'{cell.id}.json'} has{why}.")
