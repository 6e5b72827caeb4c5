"""How long a whole training step takes through the Trainer, in ratio to DDPStrategy, on gloo ranks of one thread.

    python benchmarks/step.py
    python benchmarks/step.py --f=2 --ranks=5
    python benchmarks/step.py --aggregators=[Mean] --monitor=true --steps=50
    python benchmarks/step.py --aggregators='[Mean, {class_path: CTMA, init_args: {base: CoordinateMedian}}, own_average.OwnAverage]'

The work is fixed: linear layers 784-2048-2048-2048-10 with ReLU between them (10M parameters), batches of 64 per rank, SGD. All strategies run in
the same processes and process group, in windows of a few steps that take turns; a window's first steps are not counted. A pair is one window of a
strategy and the window of DDPStrategy of the same round; the table shows the median of the pairs' ratios, and their smallest and largest, of the
time by the wall and of the processor time that all ranks together spend on a step. With --monitor, each rule has a second row with WorkerMonitor,
which measures every 50th step: its price shows over 50 counted steps.
"""

import gc
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from fits import UNCOUNTED, Clock, forget_peak, quiet, resident, trainer
from jsonargparse import auto_cli
from launch import hand_in, is_rank, launch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, Strategy
from own_average import OwnAverage
from rich.table import Table
from tables import console, spread, table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_byz import RobustStrategy, Stack, ToleranceError, WorkerMonitor
from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian, Mean

WIDTHS, BATCH = (784, 2048, 2048, 2048, 10), 64
MONITORED = " + WorkerMonitor"
Windows = dict[str, list[dict[str, float]]]


class Work(LightningModule):
    """The fixed work."""

    def __init__(self) -> None:
        super().__init__()
        layers = [part for sizes in pairwise(WIDTHS) for part in (nn.Linear(*sizes), nn.ReLU())]
        self.layers = nn.Sequential(*layers[:-1])

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def strategies(aggregators: Sequence[Aggregator], f: int) -> dict[str, Callable[[], Strategy]]:
    """Return what is measured, by name: DDPStrategy, its own remedy against a second copy of the gradients, and the rules."""
    ddp = partial(DDPStrategy, process_group_backend="gloo")
    result: dict[str, Callable[[], Strategy]] = {
        "DDPStrategy": ddp,
        "DDPStrategy(gradient_as_bucket_view=True)": partial(ddp, gradient_as_bucket_view=True),
    }
    for rule in aggregators:
        name = repr(rule) if "object at" not in repr(rule) else type(rule).__name__
        result[f"{name}, f = {given(rule, f)}"] = partial(RobustStrategy, f=given(rule, f), aggregator=rule)
    return result


def given(rule: Aggregator, f: int) -> int:
    """Return the f of a rule: 0 for one that does not say what it tolerates, which is all that it is good for."""
    return 0 if rule.condition == Aggregator.condition else f


def refuse(aggregators: Sequence[Aggregator], f: int, *, ranks: int) -> None:
    """End with a sentence, before any process is started, if a rule cannot tolerate its f."""
    for rule in aggregators:
        try:
            rule(Stack(torch.randn(ranks, 64), f=given(rule, f)), generator=torch.Generator().manual_seed(0))
        except ToleranceError as error:
            sys.exit(f"error: {error}")


def window(strategy: Strategy, ranks: int, steps: int, *, monitored: bool) -> dict[str, float]:
    """Train for a few steps; return this rank's seconds per counted step and its peak memory in MiB."""
    gc.collect()
    forget_peak()
    count, clock = steps + UNCOUNTED, Clock()
    data = TensorDataset(
        torch.randn(ranks * BATCH * count, WIDTHS[0]), torch.randint(WIDTHS[-1], (ranks * BATCH * count,))
    )
    callbacks = [clock, *([WorkerMonitor()] if monitored else [])]
    trainer(strategy, callbacks, ranks=ranks).fit(Work(), DataLoader(data, batch_size=BATCH))
    return {**clock.per_step(), "peak": resident("VmHWM")}


def run_rank(
    aggregators: Sequence[Aggregator], f: int, *, ranks: int, pairs: int, steps: int, monitor: bool = False
) -> Windows:
    """Run all windows on this rank."""
    quiet(threads=1)
    subjects = strategies(aggregators, f)
    if monitor:
        rules = {name: made for name, made in subjects.items() if not name.startswith("DDPStrategy")}
        subjects |= {f"{name}{MONITORED}": made for name, made in rules.items()}
    windows: Windows = {name: [] for name in subjects}
    for turn in range(pairs):
        order = list(subjects)
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            windows[name].append(window(subjects[name](), ranks, steps, monitored=name.endswith(MONITORED)))
    return windows


def together(by_rank: Sequence[Windows]) -> Windows:
    """Return the windows of rank 0, with the processor time of all ranks."""
    return {
        name: [
            {**window, "processor": sum(windows[name][place]["processor"] for windows in by_rank)}
            for place, window in enumerate(first)
        ]
        for name, first in by_rank[0].items()
    }


def rows(windows: Windows, *, ranks: int) -> Table:
    """Lay out medians, ratios, their spread and peak memory."""
    base = windows["DDPStrategy"]
    result = table(
        f"One training step of {ranks} ranks, {len(base)} interleaved pairs",
        *("strategy", "ms", "ratio to DDP", "from - to"),
        *("processor ms", "ratio to DDP", "from - to", "peak MiB of rank 0"),
    )
    for name, mine in windows.items():
        cells = []
        for kind in ("wall", "processor"):
            seconds = [window[kind] for window in mine]
            cells += [f"{1000 * statistics.median(seconds):.0f}", *spread(seconds, [window[kind] for window in base])]
        result.add_row(name, *cells, f"{max(window['peak'] for window in mine):.0f}")
    return result


def main(
    aggregators: list[Aggregator] = [Mean(), CoordinateMedian(), CTMA(CoordinateMedian()), OwnAverage()],  # noqa: B006, B008 - frozen
    *,
    f: int = 1,
    ranks: int = 4,
    pairs: int = 7,
    steps: int = 6,
    monitor: bool = False,
    timeout: float = 1200.0,
) -> None:
    """Measure and print the table.

    Args:
        aggregators: The rules to measure, as class names, class paths or dicts of class_path and init_args.
        f: How many ranks may be Byzantine, for the rules that say what they tolerate; the others, such as Mean, get 0.
        ranks: Processes, each with one thread.
        pairs: Windows per strategy.
        steps: Counted steps per window.
        monitor: Whether to measure the rules with WorkerMonitor too.
        timeout: Seconds after which every process is killed.
    """
    if is_rank():
        hand_in(run_rank(aggregators, f, ranks=ranks, pairs=pairs, steps=steps, monitor=monitor))
    else:
        refuse(aggregators, f, ranks=ranks)
        console().print(rows(together(launch(ranks, timeout)), ranks=ranks))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
