"""What CTMA and NNM cost beside the coordinate-wise median: times in medians, and what is added to one median.

    python benchmarks/added.py
    python benchmarks/added.py --workers='[17]' --coordinates=29034 --rounds=50

The three take turns in every round, with f as large as a minority allows; the table shows the median over the rounds, the median of the rounds'
ratios to the median rule's time, the smallest and the largest of them, and the same ratio of the processor's time. The stack is made anew for every
call, so that nothing cached helps.
"""

import statistics
from collections.abc import Sequence

import torch
from jsonargparse import auto_cli
from rules import called, seconds
from tables import console, spread, table

from lightning_byz.aggregators import CTMA, CoordinateMedian
from lightning_byz.kernels import paths
from lightning_byz.preaggregators import NNM

CHAINS = {
    "median": ((), CoordinateMedian()),
    "median + CTMA": ((), CTMA(CoordinateMedian())),
    "NNM + median": ((NNM(),), CoordinateMedian()),
}


def main(
    *,
    workers: Sequence[int] = (17, 64, 128),
    coordinates: int = 1_000_000,
    rounds: int = 7,
    threads: int = 1,
    compiled: bool | None = None,
) -> None:
    """Measure, and print a line per rule and number of workers.

    Args:
        workers: Numbers of rows.
        coordinates: Length of a row.
        rounds: How often each is timed.
        threads: Of torch.
        compiled: Whether through the kernels of the extra ``fast``; where they are there, if not given.
    """
    torch.set_num_threads(threads)
    path = paths.available() if compiled is None else compiled
    paths.choose(path)
    kernels = "compiled kernels" if path else "torch's kernels"
    title = f"{coordinates:,} float32 coordinates, {threads} threads, {rounds} rounds, {kernels}"
    result = table(title, "workers, rule", "median ms", "added ms", "in medians", "from - to", "processor")
    for count in workers:
        rows = torch.randn(count, coordinates, generator=torch.Generator().manual_seed(0))
        subjects = {name: called(before, rule, rows, (count - 1) // 2) for name, (before, rule) in CHAINS.items()}
        for subject in subjects.values():
            subject()  # compiles
        seen = [{name: seconds(subject, rows.device) for name, subject in subjects.items()} for _ in range(rounds)]
        walls, busy = ({name: [one[name][kind] for one in seen] for name in CHAINS} for kind in (0, 1))
        base = statistics.median(walls["median"])
        for name, times in walls.items():
            added = "-" if name == "median" else f"{1e3 * (statistics.median(times) - base):.1f}"
            ratios = *spread(times, walls["median"]), spread(busy[name], busy["median"])[0]
            result.add_row(f"{count}, {name}", f"{1e3 * statistics.median(times):.1f}", added, *ratios)
    console().print(result)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
