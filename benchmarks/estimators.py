"""What estimators cost: whole training steps in ratio to steps with Gradient(), and what they add in bare gradients.

    python benchmarks/estimators.py
    python benchmarks/estimators.py --workers=8 --batch=64
    python benchmarks/estimators.py --estimators='[WorkerMomentum, {class_path: Storm, init_args: {clip: 2.0}}]'

The work is fixed: linear layers 784-1024-1024-10 with ReLU between them (1.9M parameters), SGD, one process, one thread. A bare gradient is a forward
and a backward pass of the same network on the same batch without Lightning. All subjects run in the same process in windows of a few steps that
take turns; a window's first steps are not counted, and a pair is one window of a subject and the window of Gradient() of the same round. "Added" is
the difference of the two per worker, in bare gradients: an estimator with two points cannot add less than 1.
"""

import gc
import statistics
import time
from collections.abc import Sequence

import torch
from fits import UNCOUNTED, Clock, forget_peak, quiet, resident, trainer
from jsonargparse import auto_cli
from lightning.pytorch import LightningModule
from tables import console, spread, table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_byz import RobustStrategy
from lightning_byz.aggregators import CoordinateMedian
from lightning_byz.estimators import Estimator, Gradient, Storm, WorkerMomentum

WIDTHS = (784, 1024, 1024, 10)


class Work(LightningModule):
    """The fixed work."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third, last = WIDTHS
        parts = [nn.Linear(first, second), nn.ReLU(), nn.Linear(second, third), nn.ReLU(), nn.Linear(third, last)]
        self.layers = nn.Sequential(*parts)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def samples(count: int) -> TensorDataset:
    """Return random data."""
    return TensorDataset(torch.randn(count, WIDTHS[0]), torch.randint(WIDTHS[-1], (count,)))


def window(estimator: Estimator, *, workers: int, batch: int, steps: int) -> tuple[float, float]:
    """Train for a few steps; return the seconds per counted step, and the peak of memory in MiB."""
    gc.collect()
    forget_peak()
    clock = Clock()
    strategy = RobustStrategy(f=(workers - 1) // 2, aggregator=CoordinateMedian(), estimator=estimator, workers=workers)
    data = DataLoader(samples(workers * batch * (steps + UNCOUNTED)), batch_size=batch)
    trainer(strategy, [clock]).fit(Work(), data)
    return clock.per_step()["wall"], resident("VmHWM")


def bare(*, batch: int, steps: int) -> float:
    """Return the seconds of one gradient without Lightning."""
    module, ends = Work(), []
    for part in DataLoader(samples(batch * (steps + UNCOUNTED)), batch_size=batch):
        module.zero_grad()
        module.training_step(part, 0).backward()
        ends.append(time.perf_counter())
    return (ends[-1] - ends[UNCOUNTED - 1]) / steps


def main(
    estimators: Sequence[Estimator] = (WorkerMomentum(), Storm(), Storm(clip=2.0)),
    workers: int = 1,
    batch: int = 256,
    pairs: int = 7,
    steps: int = 10,
) -> None:
    """Print each estimator's price.

    Args:
        estimators: What is measured beside Gradient().
        workers: Number of logical workers, all in this process.
        batch: Samples per worker and step.
        pairs: Number of interleaved pairs.
        steps: Counted steps per window.

    """
    quiet(threads=1)
    subjects = [Gradient(), *estimators]
    times: dict[int, list[float]] = {place: [] for place in range(len(subjects))}
    peaks, gradients = [0.0] * len(subjects), []
    for turn in range(pairs):
        gradients.append(bare(batch=batch, steps=steps))
        for place in [(turn + offset) % len(subjects) for offset in range(len(subjects))]:
            seconds, peak = window(subjects[place], workers=workers, batch=batch, steps=steps)
            times[place].append(seconds)
            peaks[place] = max(peaks[place], peak)
    title = f"{workers} workers, batch {batch}: one bare gradient takes {1000 * statistics.median(gradients):.1f} ms; {pairs} interleaved pairs"
    result = table(title, "estimator", "ms per step", "ratio to Gradient", "from - to", "added per worker", "peak MiB")
    for place, estimator in enumerate(subjects):
        added = [
            (mine - base) / workers / alone for mine, base, alone in zip(times[place], times[0], gradients, strict=True)
        ]
        ratio = spread(times[place], times[0])
        figures = f"{1000 * statistics.median(times[place]):.1f}", *ratio, f"{statistics.median(added):.2f}"
        result.add_row(repr(estimator), *figures, f"{peaks[place]:.0f}")
    console().print(result)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
