"""How much slower rules become where other processes want the cores, with compiled kernels and with torch's, beside a plain sort.

    python benchmarks/contention.py
    python benchmarks/contention.py --rules='[Median, Krum]' --unequal_weights=true --processes=1

In each round every subject is called alone and then beside busy processes, one per core; the table shows the medians of both times, and the median of
the rounds' ratios, the smallest and the largest, and how many times the slow-down of ``torch.sort`` that is: a sort is one long operation, so that it
loses what the other processes take and no more. Subjects and stacks are those of rules.py.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jsonargparse import auto_cli
from rich.table import Table
from rules import PATHS, Subject, called, chains, rivals, seconds
from tables import console, spread, table

from lightning_byz import ToleranceError
from lightning_byz.kernels import paths

SORT = "torch.sort"
BUSY = """
import os, sys
print(flush=True)
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""  # it ends by itself when who started it has ended, however that was


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep so many processes running."""
    command = [sys.executable, "-c", BUSY, str(os.getpid())]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(processes):
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.communicate()


def measure(
    subjects: dict[str, Subject], rounds: int, processes: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The seconds of each subject alone, and beside busy ``processes``."""
    alone, beside = {name: [] for name in subjects}, {name: [] for name in subjects}
    device = torch.device("cpu")
    for _ in range(rounds):
        for name, subject in subjects.items():
            alone[name].append(seconds(subject, device)[0])
        with busy(processes):
            for name, subject in subjects.items():
                beside[name].append(seconds(subject, device)[0])
    return alone, beside


def through(path: str, subject: Subject) -> Subject:
    """The same through the kernels of one path."""

    def call() -> object:
        paths.choose(path == "compiled")
        return subject()

    return call


def tolerated(subjects: dict[str, Subject]) -> dict[str, Subject]:
    """Those that do not refuse, each called once."""
    result = {}
    for name, subject in subjects.items():
        try:
            subject()
        except ToleranceError as error:
            sys.stderr.write(f"left out, {name}: {error}\n")
        else:
            result[name] = subject
    return result


def slow_downs(title: str, alone: dict[str, list[float]], beside: dict[str, list[float]]) -> Table:
    """A row for each subject."""
    result = table(title, "rule", "alone", "contended", "slow-down", "from - to", "of the sort's")
    ratios = {
        name: statistics.median(late / early for late, early in zip(beside[name], alone[name], strict=True))
        for name in alone
    }
    for name, ratio in ratios.items():
        times = (f"{1e3 * statistics.median(seen[name]):.1f} ms" for seen in (alone, beside))
        result.add_row(name, *times, *spread(beside[name], alone[name]), f"{ratio / ratios[SORT]:.2f}")
    return result


def main(
    workers: int = 17,
    coordinates: int = 1_000_000,
    dtype: str = "float32",
    rules: list[str] = [],  # noqa: B006
    *,
    rounds: int = 7,
    processes: int = os.cpu_count() or 1,
    unequal_weights: bool = False,
) -> None:
    """Measure and print the table.

    Args:
        workers: Number of rows.
        coordinates: Length of a row.
        dtype: Of the rows.
        rules: Only rules whose name contains one of these; all, if empty.
        rounds: How often each subject is timed.
        processes: Busy ones.
        unequal_weights: Whether the rows weigh from 1 to 2, rather than 1 each.
    """
    f = workers // 5
    rows = torch.randn(workers, coordinates, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    subjects = {
        f"{name}, {path}": through(path, called(before, rule, rows, f, unequal=unequal_weights))
        for name, (before, rule) in chains().items()
        for path in PATHS
        if (not rules or any(wanted in name for wanted in rules)) and (path == "torch" or paths.available())
    }
    times = measure(tolerated({SORT: rivals(rows, f)[SORT], **subjects}), rounds, processes)
    cell = f"{workers} workers, {coordinates:,} coordinates, {dtype}, {torch.get_num_threads()} threads"
    console().print(slow_downs(f"{cell}, {processes} busy processes", *times))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
