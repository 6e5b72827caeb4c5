"""The price of simulating: many workers in one process, through the Trainer and in a loop written by hand.

    python benchmarks/simulation.py
    python benchmarks/simulation.py --aggregator=Krum --f=7 --works='[convolutions]'

Two pieces of work, on random images of 28 by 28: a small convolutional network (about 30 000 parameters) and a perceptron (about 100 000), with
plain SGD. Both sides have the same parameters at first, the same batches from one loader per worker, and call the same rule on the same Stack; the
loop by hand has nothing else: a forward and a backward pass per worker, gradients copied to the rows of a matrix, the rule, the aggregate as views
in ``.grad``, the optimizer's step. Windows take turns; their first steps, and what a fit does before them, are not counted. Where the rule does not
draw, both sides must end with the same parameters.
"""

import gc
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from fits import UNCOUNTED, Clock, quiet, trainer
from jsonargparse import auto_cli
from lightning.pytorch import LightningModule
from rich.table import Table
from tables import console, spread, table
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_byz import RobustStrategy, Stack
from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian

Kind = Literal["convolutions", "perceptron"]
Windows = dict[str, list[dict[str, float]]]
TRAINER, BY_HAND = "Trainer.fit with RobustStrategy", "loop by hand"


class Work(LightningModule):
    """One of the two networks."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        if kind == "convolutions":
            convolutions = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
            more = (nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
            self.layers = nn.Sequential(
                *convolutions, *more, nn.Flatten(), nn.Linear(784, 36), nn.ReLU(), nn.Linear(36, 10)
            )
        else:
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.05)


@dataclass(frozen=True)
class Setting:
    """What both sides are given."""

    kind: Kind
    aggregator: Aggregator
    f: int
    workers: int
    batch: int
    steps: int

    def work(self) -> Work:
        """Return the network, with the same parameters each time."""
        torch.manual_seed(0)
        return Work(self.kind)

    def data(self) -> TensorDataset:
        """Return samples for one epoch of as many steps as a window has."""
        count, draws = self.workers * self.batch * (self.steps + UNCOUNTED), torch.Generator().manual_seed(0)
        return TensorDataset(
            torch.randn(count, 1, 28, 28, generator=draws), torch.randint(10, (count,), generator=draws)
        )


def through_trainer(setting: Setting) -> tuple[Work, Clock]:
    """Train as a user of the library does."""
    work, clock = setting.work(), Clock()
    strategy = RobustStrategy(workers=setting.workers, f=setting.f, aggregator=setting.aggregator)
    trainer(strategy, [clock]).fit(work, DataLoader(setting.data(), batch_size=setting.batch))
    return work, clock


def by_hand(setting: Setting) -> tuple[Work, Clock]:
    """Train in a loop."""
    work, clock, draws = setting.work(), Clock(), torch.Generator().manual_seed(0)
    parameters, optimizer = list(work.parameters()), work.configure_optimizers()
    sizes = [parameter.numel() for parameter in parameters]
    rows = torch.empty(setting.workers, sum(sizes))
    for batches in zip(*loaders(setting), strict=True):
        for row, batch in zip(rows, batches, strict=True):
            optimizer.zero_grad()
            work.training_step(batch, 0).backward()
            torch.cat([gradient.flatten() for gradient in gradients(parameters)], out=row)
        vector = setting.aggregator(Stack(rows, f=setting.f), generator=draws)
        for parameter, part in zip(parameters, vector.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)
        optimizer.step()
        clock.note()
    return work, clock


def loaders(setting: Setting) -> list[DataLoader]:
    """Return one loader per worker, over the shards that the strategy deals out; Lightning shuffles whatever is for training."""
    data, workers = setting.data(), range(setting.workers)
    samplers = [DistributedSampler(data, len(workers), worker) for worker in workers]
    return [DataLoader(data, batch_size=setting.batch, sampler=sampler) for sampler in samplers]


def gradients(parameters: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the gradients, all of which are there."""
    for parameter in parameters:
        assert parameter.grad is not None
        yield parameter.grad


def measure(setting: Setting, pairs: int) -> Windows:
    """Time windows of both sides in turns, and compare what they end with.

    Raises:
        AssertionError: If the two sides end with different parameters, and the rule does not draw.

    """
    sides = {BY_HAND: by_hand, TRAINER: through_trainer}
    windows: Windows = {name: [] for name in sides}
    for turn in range(pairs):
        ends = []
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            gc.collect()
            work, clock = sides[name](setting)
            windows[name].append(clock.per_step())
            ends.append(nn.utils.parameters_to_vector(work.parameters()).detach())
        if not setting.aggregator.random:
            torch.testing.assert_close(*ends)
    return windows


def rows(windows: Windows, setting: Setting) -> Table:
    """Lay out medians, ratios and their spread."""
    base, length = windows[BY_HAND], sum(parameter.numel() for parameter in setting.work().parameters())
    result = table(
        f"One step of {setting.workers} workers, {setting.kind}, {length:,} parameters, {len(base)} interleaved pairs",
        *("", "ms", "ratio", "from - to", "processor ms", "ratio", "from - to"),
    )
    result.caption = f"{setting.aggregator!r}, f = {setting.f}"
    for name, mine in windows.items():
        cells = []
        for kind in ("wall", "processor"):
            seconds = [window[kind] for window in mine]
            cells += [f"{1000 * statistics.median(seconds):.1f}", *spread(seconds, [window[kind] for window in base])]
        result.add_row(name, *cells)
    return result


def main(
    aggregator: Aggregator = CTMA(CoordinateMedian()),  # noqa: B008 - frozen
    *,
    f: int = 8,
    works: list[Kind] = ["convolutions", "perceptron"],  # noqa: B006
    workers: int = 17,
    batch: int = 16,
    pairs: int = 7,
    steps: int = 20,
    threads: int = 1,
) -> None:
    """Measure, and print one table per piece of work.

    Args:
        aggregator: The rule, as a class name, a class path or a dict of class_path and init_args.
        f: How many workers may be Byzantine.
        works: The networks to train.
        workers: Logical workers, all in this process.
        batch: Samples per worker and step.
        pairs: Windows per side.
        steps: Counted steps per window.
        threads: Threads of torch.
    """
    quiet(threads)
    for kind in works:
        setting = Setting(kind, aggregator, f, workers, batch, steps)
        console().print(rows(measure(setting, pairs), setting))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
