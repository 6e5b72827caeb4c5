"""A step at which one of many stale workers is due, in ratio to a step of one worker alone plus the rule on the table of all.

    python benchmarks/arrivals.py
    python benchmarks/arrivals.py --aggregator=GeometricMedian --estimator=WorkerMomentum
    python benchmarks/arrivals.py --attackers=8 --pairs=3

The work is the small convolutional network of simulation.py (about 30 000 parameters) on random images, with plain SGD; each worker draws from all
samples. One process. Windows of three subjects take turns: a fit with arrivals, at each step of which one worker computes, delivers and changes the
table; a fit of the same module on batches of the same size by Trainer alone, which calls the rule on a table at each step and drops what comes of it;
and a loop without Lightning that does likewise. That table holds as many gradients of this network, with the counts of a run for weights. Steps 0 and
1, at which everyone computes, are not counted. Ratios are of the first to each other, in processor time and by the wall; what estimator, attack and
the table itself cost is in them.
"""

import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from fits import UNCOUNTED, Clock, quiet, trainer
from jsonargparse import auto_cli
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy
from simulation import Work
from tables import console, spread, table
from torch.utils.data import DataLoader, TensorDataset

from lightning_byz import RobustStrategy, Stack
from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian
from lightning_byz.arrivals import RandomArrivals
from lightning_byz.attacks import SignFlip
from lightning_byz.data import Everyone
from lightning_byz.estimators import Estimator, Gradient

SHARE = 0.4
Times = dict[str, float]
ARRIVING, ALONE, LOOP = "with arrivals", "one worker and the rule, Trainer", "one worker and the rule, no Lightning"


@dataclass(frozen=True)
class Setting:
    """What all subjects are given."""

    aggregator: Aggregator
    estimator: Estimator
    workers: int
    f: int
    attackers: int
    batch: int
    steps: int

    def work(self) -> Work:
        """Return the network, with the same parameters each time."""
        torch.manual_seed(0)
        return Work("convolutions")

    def loader(self) -> DataLoader:
        """Return one epoch of as many batches as a window has steps."""
        count, draws = self.batch * (self.steps + UNCOUNTED), torch.Generator().manual_seed(0)
        images = torch.randn(count, 1, 28, 28, generator=draws)
        return DataLoader(TensorDataset(images, torch.randint(10, (count,), generator=draws)), batch_size=self.batch)

    def robust(self) -> Strategy:
        """Return the strategy with arrivals."""
        byzantine = list(range(self.workers - self.attackers, self.workers))
        return RobustStrategy(
            workers=self.workers,
            f=self.f,
            aggregator=self.aggregator,
            estimator=self.estimator,
            partition=Everyone(),
            arrivals=RandomArrivals("squared", byzantine_share=SHARE),
            weights="counts",
            attackers=byzantine,
            attack=SignFlip() if byzantine else None,
        )

    def counts(self) -> list[int]:
        """Return how often each worker has delivered half-way through a window."""
        byzantine = list(range(self.workers - self.attackers, self.workers))
        schedule = RandomArrivals("squared", byzantine_share=SHARE).schedule(self.workers, byzantine, 0)
        seen = [worker for step in range(self.steps // 2) for worker in schedule.due(step)]
        return [seen.count(worker) for worker in range(self.workers)]


def fit(setting: Setting, strategy: Strategy, *callbacks: Callback) -> Times:
    """Return the seconds per counted step of a fit."""
    clock = Clock()
    trainer(strategy, [*callbacks, clock]).fit(setting.work(), setting.loader())
    return clock.per_step()


def loop(setting: Setting) -> Times:
    """Return those of a loop without Lightning, which calls the rule on a table and drops what comes of it."""
    work, clock, rule = setting.work(), Clock(), OnTable(setting)
    optimizer = torch.optim.SGD(work.parameters(), lr=0.05)
    for batch in setting.loader():
        optimizer.zero_grad()
        work.training_step(batch, 0).backward()
        rule()
        optimizer.step()
        clock.note()
    return clock.per_step()


class OnTable(Callback):
    """Calls the rule on a table of gradients at each step, and drops what comes of it."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.draws, work, rows = setting, torch.Generator().manual_seed(0), setting.work(), []
        for _, batch in zip(range(setting.workers), setting.loader(), strict=False):
            gradients = torch.autograd.grad(work.training_step(batch, 0), list(work.parameters()))
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
        self.rows, self.counts = torch.stack(rows), setting.counts()

    def __call__(self) -> None:
        """Call it once."""
        stack = Stack(self.rows, self.counts, SHARE * sum(self.counts))
        self.setting.aggregator.explain(stack, generator=self.draws)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Call it once in a step of a fit."""
        with torch.no_grad():
            self()


def measure(setting: Setting, pairs: int) -> dict[str, list[Times]]:
    """Time windows of all subjects in turns."""
    subjects: dict[str, Callable[[], Times]] = {
        ARRIVING: lambda: fit(setting, setting.robust()),
        ALONE: lambda: fit(setting, SingleDeviceStrategy(torch.device("cpu")), OnTable(setting)),
        LOOP: lambda: loop(setting),
    }
    windows: dict[str, list[Times]] = {name: [] for name in subjects}
    for turn in range(pairs):
        for name in list(subjects)[:: 1 if turn % 2 else -1]:
            gc.collect()
            windows[name].append(subjects[name]())
    return windows


def main(
    aggregator: Aggregator = CTMA(CoordinateMedian()),  # noqa: B008 - frozen
    estimator: Estimator = Gradient(),  # noqa: B008 - frozen
    *,
    workers: int = 17,
    f: int = 8,
    attackers: int = 0,
    batch: int = 16,
    pairs: int = 7,
    steps: int = 100,
    threads: int = 1,
) -> None:
    """Measure and print the table.

    Args:
        aggregator: The rule, as a class name, a class path or a dict of class_path and init_args.
        estimator: What workers send, likewise; what it costs is in the ratio.
        workers: Logical workers, all in this process.
        f: How many may be Byzantine; the rule is told a share of 0.4 of the weight.
        attackers: How many of them flip their sign.
        batch: Samples of the worker that is due.
        pairs: Windows per subject.
        steps: Counted steps per window.
        threads: Threads of torch.

    """
    quiet(threads)
    setting = Setting(aggregator, estimator, workers, f, attackers, batch, steps)
    windows = measure(setting, pairs)
    result = table(
        f"One step, one of {workers} workers due, batch {batch}, {pairs} interleaved pairs of {steps} steps",
        *("", "processor ms", "ratio", "from - to", "ms", "ratio", "from - to"),
    )
    result.caption = f"{aggregator!r}, {estimator!r}, {attackers} attackers; ratios of the first line to each other"
    for name, mine in windows.items():
        cells = []
        for kind in ("processor", "wall"):
            seconds = [window[kind] for window in mine]
            base = [window[kind] for window in windows[ARRIVING]]
            ratio = ("", "") if name == ARRIVING else spread(base, seconds)
            cells += [f"{1000 * statistics.median(seconds):.2f}", *ratio]
        result.add_row(name, *cells)
    console().print(result)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
