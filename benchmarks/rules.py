"""How long the rules take, with compiled kernels and with torch's, in ratio to copying the stack; beside a sort, a partition and ByzFL.

    python benchmarks/rules.py
    python benchmarks/rules.py --workers='[8, 17, 32, 64, 128]' --coordinates='[100000, 1000000, 10000000]' --dtypes='[float32, bfloat16]'
    python benchmarks/rules.py --unequal_weights=true
    python benchmarks/rules.py --rules='[CoordinateMedian, CTMA]' --exponents_too=true
    python benchmarks/rules.py --threads=1

The paths take turns in each round, and a round's copy, into memory that has been touched before, is what its times are divided by; the table
shows the median of these ratios over the rounds, the smallest and the largest, and the median for the processor's time, which several threads
share. The compiled kernels need the extra ``fast``; what they compile is compiled before.
 A stack is made anew for every call, so that nothing cached helps.
Rules are all that ``lightning_byz.aggregators`` exports, with defaults, and the pre-aggregators before the coordinate-wise median; ``f`` is a fifth
of the workers. Beside them: ``torch.sort`` along the workers, one ``numpy.partition`` of the transposed stack, and ByzFL's rules of the same names
where it is installed.
"""

import importlib
import inspect
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from rich.table import Table
from tables import console
from torch import Tensor

from lightning_byz import Stack, ToleranceError, aggregators, preaggregators
from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian
from lightning_byz.kernels import paths
from lightning_byz.preaggregators import NNM, PreAggregator

Subject = Callable[[], object]
Times = tuple[float, float]
Results = dict[str, dict[str, list[Times]] | str]
PATHS = ("compiled", "torch")
RIVALS = {
    "Median": {},
    "TrMean": {"f"},
    "GeometricMedian": {},
    "Krum": {"f"},
    "MultiKrum": {"f"},
    "Meamed": {"f"},
    "CenteredClipping": {},
}
SLOW = 20.0  # seconds per call from which on a subject is measured once


def chains() -> dict[str, tuple[tuple[PreAggregator, ...], Aggregator]]:
    """Each rule with defaults, alone or after a pre-aggregator."""
    concrete = [getattr(aggregators, name) for name in aggregators.__all__]
    plain = [rule() for rule in concrete if not inspect.isabstract(rule) and rule is not CTMA]
    result = {type(rule).__name__: ((), rule) for rule in plain} | {
        "CTMA(CoordinateMedian)": ((), CTMA(CoordinateMedian()))
    }
    before = [getattr(preaggregators, name) for name in preaggregators.__all__]
    median = {
        f"{rule.__name__} + CoordinateMedian": ((rule(),), CoordinateMedian())
        for rule in before
        if not inspect.isabstract(rule)
    }
    return {**result, **median, "NNM + CTMA(CoordinateMedian)": ((NNM(),), CTMA(CoordinateMedian()))}


def called(
    before: tuple[PreAggregator, ...], rule: Aggregator, rows: Tensor, f: int, *, unequal: bool = False
) -> Subject:
    """One step of a chain on a new stack."""
    weights = torch.linspace(1.0, 2.0, len(rows), dtype=torch.float64) if unequal else None

    def call() -> Tensor:
        stack, draws = Stack(rows, weights, f), torch.Generator(device=rows.device).manual_seed(0)
        for preaggregator in before:
            stack = preaggregator(stack, generator=draws)
        return rule(stack, generator=draws)

    return call


def rivals(rows: Tensor, f: int) -> dict[str, Subject]:
    """What others would do with the same rows."""
    result: dict[str, Subject] = {"torch.sort": lambda: rows.sort(dim=0)}
    if rows.dtype in (torch.float32, torch.float64) and rows.device.type == "cpu":
        result["numpy.partition"] = lambda: np.partition(np.ascontiguousarray(rows.numpy().T), len(rows) // 2, axis=1)
    try:
        byzfl: Any = importlib.import_module("byzfl")
    except ImportError:
        return result
    for name, needs in RIVALS.items():
        rule = getattr(byzfl, name)(**dict.fromkeys(needs, f))
        result[f"ByzFL {name}"] = lambda rule=rule: rule(rows)
    mixing, median = byzfl.NNM(f=f), byzfl.Median()
    return result | {"ByzFL NNM + Median": lambda: median(mixing(rows))}


def seconds(subject: Subject, device: torch.device) -> Times:
    """How long one call takes, and how much time of the processor."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started, busy = time.perf_counter(), time.process_time()
    subject()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, time.process_time() - busy


def measure(
    workers: int,
    coordinates: int,
    dtype: torch.dtype,
    names: list[str],
    *,
    rounds: int,
    device: torch.device,
    unequal: bool,
) -> Results:
    """The ratios of each subject to the copy of its round, or why there are none."""
    rows = torch.randn(
        workers,
        coordinates,
        generator=torch.Generator(device=device).manual_seed(0),
        dtype=torch.float32,
        device=device,
    ).to(dtype)
    target, f = torch.zeros_like(rows), workers // 5
    ours = {name: called(before, rule, rows, f, unequal=unequal) for name, (before, rule) in chains().items()}
    results: Results = {}
    for name, subject in (ours | rivals(rows, f)).items():
        if names and not any(wanted in name for wanted in names):
            continue
        here = [path for path in PATHS if path == "torch" or (name in ours and paths.available())]
        try:
            first = [on_path(path, subject, device)[0] for path in here]
        except ToleranceError as error:
            results[name] = str(error)
            continue
        ratios: dict[str, list[Times]] = {path: [] for path in here}
        for _ in range(1 if max(first) > SLOW else rounds):
            for path in here:
                walls, processors = zip(*[seconds(lambda: target.copy_(rows), device) for _ in range(3)], strict=True)
                wall, processor = on_path(path, subject, device)
                ratios[path].append((wall / min(walls), processor / min(processors)))
        results[name] = ratios
    return results


def on_path(path: str, subject: Subject, device: torch.device) -> Times:
    """The times of a call through the kernels of one path."""
    paths.choose(path == "compiled")
    return seconds(subject, device)


def table(title: str, results: Results) -> Table:
    """One cell's medians and spreads."""
    result = Table(title=title)
    for column in ("rule", *(name for path in PATHS for name in (f"{path}: copies", "from - to", "processor"))):
        result.add_column(column, justify="left" if column == "rule" else "right")
    for name, ratios in results.items():
        if isinstance(ratios, str):
            result.add_row(name, "refused", ratios.split(";")[0])
        else:
            result.add_row(name, *(cell for path in PATHS for cell in cells(ratios.get(path))))
    return result


def cells(ratios: list[Times] | None) -> tuple[str, str, str]:
    """What a table says of one path."""
    if ratios is None:
        return "-", "-", "-"
    walls, processors = zip(*ratios, strict=True)
    spread = f"{min(walls):.1f} - {max(walls):.1f}"
    return f"{statistics.median(walls):.1f}", spread, f"{statistics.median(processors):.1f}"


def exponents(names: list[str], *, rounds: int, device: torch.device) -> Table:
    """The slopes of log time over log d (17 workers) and log n (a million coordinates), from the fastest of each cell's rounds."""
    by_length, by_workers = [100_000, 1_000_000, 10_000_000], [8, 17, 32, 64]
    result = Table(title="Growth of the time")
    for column in ("rule", "exponent in d", "exponent in n"):
        result.add_column(column, justify="left" if column == "rule" else "right")
    times = {}
    for workers, coordinates in [*((17, d) for d in by_length), *((n, 1_000_000) for n in by_workers)]:
        rows = torch.randn(workers, coordinates, generator=torch.Generator(device=device).manual_seed(0), device=device)
        for name, (before, rule) in chains().items():
            if names and not any(wanted in name for wanted in names):
                continue
            try:
                subject = called(before, rule, rows, workers // 5)
                times[name, workers, coordinates] = min(seconds(subject, device)[0] for _ in range(rounds + 1))
            except ToleranceError:
                times[name, workers, coordinates] = float("nan")
    for name in dict.fromkeys(name for name, _, _ in times):
        lengths, workers = (
            [times[name, 17, value] for value in by_length],
            [times[name, value, 1_000_000] for value in by_workers],
        )
        slopes = [
            np.polyfit(np.log(sizes), np.log(seen), 1)[0]
            for sizes, seen in ((by_length, lengths), (by_workers, workers))
        ]
        result.add_row(name, *("refused in part" if np.isnan(slope) else f"{slope:.2f}" for slope in slopes))
    return result


def main(
    workers: list[int] = [17],  # noqa: B006
    coordinates: list[int] = [1_000_000],  # noqa: B006
    dtypes: list[str] = ["float32"],  # noqa: B006
    rules: list[str] = [],  # noqa: B006
    *,
    rounds: int = 7,
    exponents_too: bool = False,
    unequal_weights: bool = False,
    threads: int | None = None,
    device: str = "cpu",
    memory: float = 4.0,
) -> None:
    """Measure and print one table per cell.

    Args:
        workers: Numbers of rows.
        coordinates: Lengths of rows.
        dtypes: Of the rows.
        rules: Only subjects whose name contains one of these; all, if empty.
        rounds: How often each subject is timed.
        unequal_weights: Whether the rows weigh from 1 to 2, rather than 1 each.
        threads: Of torch; as many as it takes by itself, if not given.
        exponents_too: Whether to fit how the time grows, too.
        device: Where the rows are.
        memory: Cells whose rows take more GiB are left out, and named.
    """
    place = torch.device(device)
    torch.set_num_threads(threads or torch.get_num_threads())
    for name in dtypes:
        for length in coordinates:
            for count in workers:
                dtype = getattr(torch, name)
                title = f"{count} workers, {length:,} coordinates, {name}, {torch.get_num_threads()} threads"
                if count * length * dtype.itemsize > memory * 2**30:
                    sys.stderr.write(f"left out, more than --memory={memory:g} GiB: {title}\n")
                    continue
                console().print(
                    table(
                        title,
                        measure(count, length, dtype, rules, rounds=rounds, device=place, unequal=unequal_weights),
                    )
                )
    if exponents_too:
        console().print(exponents(rules, rounds=rounds, device=place))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
