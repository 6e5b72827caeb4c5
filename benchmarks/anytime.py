"""What Anytime's hooks cost around an optimizer's step: time in copies of the parameters and as a share of a training step, and memory.

    python benchmarks/anytime.py
    python benchmarks/anytime.py --schedule='{class_path: Anytime, init_args: {gamma: 0.1}}' --threads=2
    python benchmarks/anytime.py --width=64 --layers=200

The work is linear layers of one width with ReLU between them; a training step is forward, backward and SGD on one batch. The hooks alone are those of
an optimizer that does nothing. All sides take turns in every round; the table shows the fastest and the median round, and the median of the rounds'
ratios, with the smallest and the largest, to a copy of the parameters into memory that is there and to a training step. The memory is that of the C
library's own account: blocks of 64 KiB or more that are alive after the first step with hooks and were not before.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from jsonargparse import auto_cli
from memory import Account
from tables import console, spread, table
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from lightning_byz.optimizers import Anytime


class Nothing(Optimizer):
    """An optimizer whose step moves nothing."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Do nothing."""


MADE: dict[str, Callable[[Sequence[Tensor]], Optimizer]] = {
    "nothing": Nothing,
    "SGD": lambda parameters: SGD(parameters, lr=1e-6, momentum=0.9),
    "AdamW": lambda parameters: AdamW(parameters, lr=1e-6),
}


def work(width: int, layers: int) -> nn.Sequential:
    """Return the layers."""
    parts = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*parts[:-1])


def trained(module: nn.Module) -> list[Tensor]:
    """Return its parameters, each with a gradient."""
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    return list(module.parameters())


def sides(schedule: Anytime, width: int, layers: int, batch: int) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name; each optimizer has parameters of its own."""
    source, module, points = (
        [p.detach() for p in work(width, layers).parameters()],
        work(width, layers),
        torch.randn(batch, width),
    )
    target = [p.clone() for p in source]
    optimizer = SGD(module.parameters(), lr=1e-6)

    def copied() -> None:
        torch._foreach_copy_(target, source)  # pyright: ignore[reportPrivateImportUsage]

    def step() -> None:
        optimizer.zero_grad()
        module(points).square().mean().backward()
        optimizer.step()

    timed: dict[str, Callable[[], object]] = {"a copy": copied, "a training step": step}
    for name, make in MADE.items():
        plain, averaged = (make(trained(work(width, layers))) for _ in range(2))
        schedule.attach(averaged)
        timed |= {"hooks alone": averaged.step} if name == "nothing" else {}
        timed |= {name: plain.step, f"{name} + hooks": averaged.step} if name != "nothing" else {}
    return timed


def remembered(schedule: Anytime, width: int, layers: int) -> float:
    """Return what is alive after a step with hooks and was not before, in copies of the parameters."""
    account, parameters = Account(), trained(work(width, layers))
    optimizer = SGD(parameters, lr=1e-6)
    optimizer.step()
    gc.collect()
    before = account.present()
    handle = schedule.attach(optimizer)
    optimizer.step()
    bytes_each = account.present() - before
    handle.remove()
    return bytes_each / sum(p.numel() * p.element_size() for p in parameters)


def seconds(call: Callable[[], object], repeats: int) -> float:
    """How long one of several calls takes."""
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats


def main(
    schedule: Anytime = Anytime(),  # noqa: B008 - frozen
    *,
    width: int = 2048,
    layers: int = 3,
    batch: int = 64,
    rounds: int = 15,
    repeats: int = 3,
    threads: int = 1,
) -> None:
    """Measure and print the table.

    Args:
        schedule: What is attached.
        width: Of the layers.
        layers: How many there are.
        batch: Samples of a training step.
        rounds: How often each side takes its turn.
        repeats: Calls per turn.
        threads: Threads of torch.
    """
    torch.set_num_threads(threads)
    kept = remembered(schedule, width, layers)  # first, before freed memory is used again
    timed = sides(schedule, width, layers, batch)
    times: dict[str, list[float]] = {name: [] for name in timed}
    for call in timed.values():
        call()
    for _ in range(rounds):
        for name, call in timed.items():
            times[name].append(seconds(call, repeats))
    result = table(
        f"{schedule!r} on {layers * (width**2 + width):,} parameters in {2 * layers} tensors, batch {batch},"
        f" {rounds} rounds, {threads} threads; kept beside them: {kept:.2f} copies",
        *("what", "median ms", "fastest ms", "in copies", "from - to", "in training steps", "from - to"),
    )
    for name, seen in times.items():
        ratios = *spread(seen, times["a copy"]), *spread(seen, times["a training step"])
        result.add_row(name, f"{1e3 * statistics.median(seen):.2f}", f"{1e3 * min(seen):.2f}", *ratios)
    console().print(result)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
