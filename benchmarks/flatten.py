"""What many small parameters cost one worker: their gradients into a flat row, and the aggregate back into ``.grad``.

    python benchmarks/flatten.py
    python benchmarks/flatten.py --parameters=50 --size=100000

The floor is one ``torch.cat`` and one ``torch._foreach_copy_``. Both sides take turns; the table shows the fastest and the median round, and the
median of the rounds' ratios with the smallest and the largest.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from jsonargparse import auto_cli
from tables import console, spread, table
from torch import Tensor, nn

from lightning_byz.flat import Layout


def ours(parameters: Sequence[Tensor], gradients: Sequence[Tensor], row: Tensor) -> tuple[Callable, Callable]:
    """Return how the library flattens and writes back."""
    layout = Layout.of((f"parameter {place}", parameter) for place, parameter in enumerate(parameters))
    used, views = [1] * len(parameters), layout.views(row)

    def flatten() -> None:
        layout.flatten(gradients, out=views)

    def write() -> None:
        layout.write(row, parameters, used=used)

    return flatten, write


def floor(parameters: Sequence[Tensor], gradients: Sequence[Tensor], row: Tensor) -> tuple[Callable, Callable]:
    """Return the shortest way that torch has, with every view made beforehand."""
    flat = [gradient.view(-1) for gradient in gradients]
    parts = [
        part.view_as(parameter)
        for part, parameter in zip(row.split([part.numel() for part in flat]), parameters, strict=True)
    ]
    targets = [parameter.grad for parameter in parameters if parameter.grad is not None]

    def flatten() -> None:
        torch.cat(flat, out=row)

    def write() -> None:
        torch._foreach_copy_(targets, parts)  # pyright: ignore[reportPrivateImportUsage]

    return flatten, write


def seconds(call: Callable[[], None], repeats: int) -> float:
    """How long one of several calls takes."""
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats


def main(*, parameters: int = 400, size: int = 256, rounds: int = 15, repeats: int = 20, threads: int = 1) -> None:
    """Measure and print the table.

    Args:
        parameters: How many parameters there are.
        size: Coordinates of each.
        rounds: How often each side takes its turn.
        repeats: Calls per turn.
        threads: Threads of torch.
    """
    torch.set_num_threads(threads)
    trained = [nn.Parameter(torch.zeros(size)) for _ in range(parameters)]
    for parameter in trained:
        parameter.grad = torch.randn(size)
    local, row = [torch.randn(size) for _ in trained], torch.empty(parameters * size)
    sides = {"library": ours(trained, local, row), "torch.cat, _foreach_copy_": floor(trained, local, row)}
    parts = {"flatten": 0, "write back": 1}
    times: dict[tuple[str, str], list[float]] = {(part, side): [] for part in parts for side in sides}
    for _ in range(rounds):
        for (part, side), seen in times.items():
            seen.append(seconds(sides[side][parts[part]], repeats))
    for side in sides:
        times["both", side] = [sum(pair) for pair in zip(*(times[part, side] for part in parts), strict=True)]
    result = table(
        f"{parameters} parameters of {size} coordinates, one worker, {rounds} rounds, {threads} threads",
        *("what", "by", "median µs", "fastest µs", "ratio", "from - to"),
        names=2,
    )
    for (part, side), seen in times.items():
        ratio = spread(seen, times[part, list(sides)[-1]])
        result.add_row(part, side, f"{1e6 * statistics.median(seen):.1f}", f"{1e6 * min(seen):.1f}", *ratio)
    console().print(result)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
