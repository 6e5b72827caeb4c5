"""What ``lightning-byz compare`` costs beside its fits, and how much faster two processes are than one.

    python benchmarks/compare.py
    python benchmarks/compare.py --runs=24 --epochs=2 --rounds=1

First, runs of one epoch of the quickstart's config, one after the other in a process that has made one before. *Overhead* is what a run takes beyond
its fit, from parsing its options to keeping its record; by the wall and by the processor, median, smallest and largest.

Then whole commands, from an empty folder to the page: a grid of the quickstart's config with as many seeds as there are runs, in one process and in
two, which take turns. *Alone* is the processor time of what no second process shares: the command itself, and the imports for all workers. *Free
cores* is that and the processor time of the busiest worker, which is how long the command takes where every process has a core of its own; where
others use the machine (*others*: the share of all processors that the command did not have, of what was used) the wall says more about them.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from fits import quiet
from jsonargparse import auto_cli
from tables import console, spread, table

from lightning_byz.compare import fit, recorder
from lightning_byz.compare.cells import Cells
from lightning_byz.compare.command import job_of
from lightning_byz.compare.grid import read_grid
from lightning_byz.compare.isolation import printing_to

ROOT, TICK = Path(__file__).resolve().parent.parent, os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Whole:
    """One command, in seconds; ``others`` is a share."""

    wall: float
    processor: float
    alone: float
    free: float
    others: float


def grid(folder: Path, *, runs: int, epochs: int, processes: int) -> Path:
    """Write a grid of so many runs; return its path."""
    told = {
        "base": str(ROOT / "configs" / "quickstart.yaml"),
        "set": {"trainer.max_epochs": epochs, "trainer.callbacks": []},
        "grid": {"trainer.strategy.attack": ["SignFlip"]},
        "seeds": list(range(1, runs + 1)),
        "metric": "val_accuracy",
        "processes": processes,
        "output": str(folder / "out"),
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump(told))
    return folder / "grid.yaml"


def overheads(count: int) -> dict[str, list[tuple[float, float]]]:
    """Return what each run takes beyond its fit, and its fit, by the wall and by the processor; the first run of each is not counted."""
    result: dict[str, list[tuple[float, float]]] = {"wall": [], "processor": []}
    with tempfile.TemporaryDirectory() as name:
        cells = Cells(read_grid(grid(Path(name), runs=count + 1, epochs=1, processes=1)))
        jobs = [job_of(cell, cells.grid, Path(name)) for cell in cells.compared(cells.variants[0], {})]
        for kind, clock in (("processor", time.process_time), ("wall", time.perf_counter)):
            watch: Any = SimpleNamespace(perf_counter=clock)
            fit.time, recorder.time = watch, watch  # pyright: ignore[reportAttributeAccessIssue] - a record says how long it took
            for job in jobs:
                with printing_to(Path(name) / "log.txt"):
                    record = fit.perform(job)
                inside = record.evaluations[-1].seconds
                result[kind].append((record.seconds - inside, inside))
    return {kind: taken[1:] for kind, taken in result.items()}


def command(*, runs: int, epochs: int, processes: int) -> Whole:
    """Run a grid from an empty folder, and look at its processes until it ends."""
    with tempfile.TemporaryDirectory() as name:
        path = grid(Path(name), runs=runs, epochs=epochs, processes=processes)
        line = [sys.executable, "-m", "lightning_byz", "compare", "--config", str(path)]
        busy, start, spent = used(), time.perf_counter(), dict[int, tuple[int, float]]()
        running = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=name)
        while running.poll() is None:
            spent |= family(running.pid)
            time.sleep(0.1)
        wall, busy = time.perf_counter() - start, used() - busy
        made = len(list((Path(name) / "out" / "records").glob("*.json")))
    if running.returncode or made != runs:
        sys.exit(f"error: the command ended with status {running.returncode} and {made} of {runs} runs.")
    floors = [[taken for floor, taken in spent.values() if floor == here] for here in (0, 1, 2)]
    processor, alone = sum(sum(taken) for taken in floors), sum(floors[0] + floors[1])
    return Whole(wall, processor, alone, alone + max(floors[2]), max(1 - processor / busy, 0.0))


def family(process: int, floor: int = 0) -> dict[int, tuple[int, float]]:
    """Return the processor time of a process and its descendants, and how far each is from it."""
    try:
        after = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        tasks = [task.read_text().split() for task in Path(f"/proc/{process}/task").glob("*/children")]
    except OSError:  # it has ended
        return {}
    result = {process: (floor, (int(after[11]) + int(after[12])) / TICK)}
    for child in {int(one) for children in tasks for one in children}:
        result |= family(child, floor + 1)
    return result


def used() -> float:
    """Return the seconds that all processors have been busy since the machine started."""
    user, nice, system, _, _, interrupts, soft, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + interrupts + soft + stolen) / TICK


def main(*, runs: int = 100, epochs: int = 20, rounds: int = 3, repeats: int = 20) -> None:
    """Measure, and print both tables.

    Args:
        runs: In each command.
        epochs: Of each run; the quickstart has 20.
        rounds: Pairs of commands, one with one process and one with two.
        repeats: Runs of one epoch whose overhead is measured.
    """
    quiet(threads=1)
    first = table(f"Overhead of {repeats} runs in a warm process", "by", "seconds", "from - to", "the fit itself")
    for kind, taken in overheads(repeats).items():
        beyond, inside = zip(*taken, strict=True)
        middle = f"{statistics.median(beyond):.2f}", f"{min(beyond):.2f} - {max(beyond):.2f}"
        first.add_row(kind, *middle, f"{statistics.median(inside):.2f}")
    console().print(first)
    whole: dict[int, list[Whole]] = {1: [], 2: []}
    for turn in range(rounds):
        for processes in (1, 2) if turn % 2 == 0 else (2, 1):
            whole[processes].append(command(runs=runs, epochs=epochs, processes=processes))
    names = (
        "processes",
        "wall s",
        "ratio",
        "from - to",
        "free cores s",
        "ratio",
        "from - to",
        "processor s",
        "alone s",
        "others",
    )
    second = table(f"{runs} runs of {epochs} epochs, {rounds} interleaved pairs", *names)
    for processes, mine in whole.items():
        cells = [f"{processes}"]
        for kind in ("wall", "free"):
            seconds, ones = ([getattr(one, kind) for one in some] for some in (mine, whole[1]))
            cells += [f"{statistics.median(seconds):.1f}", *spread(ones, seconds)]
        rest = [statistics.median(getattr(one, kind) for one in mine) for kind in ("processor", "alone", "others")]
        second.add_row(*cells, f"{rest[0]:.1f}", f"{rest[1]:.1f}", f"{rest[2]:.0%}")
    console().print(second)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
