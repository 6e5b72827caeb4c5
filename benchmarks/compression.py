"""What compressed messages cost and save in a whole training step, on gloo ranks of one thread, beside DDP and its own hooks.

    python benchmarks/compression.py
    python benchmarks/compression.py --mbits=100
    python benchmarks/compression.py --accuracy=true

The work is that of benchmarks/step.py: 10M parameters, batches of 64 per rank, SGD. All strategies run in the same processes, in windows of a few
steps that take turns. The ranks have a network of their own (``unshare --net``, which needs the right to make one), so that the kernel's count of
bytes on it is what they have moved, whatever a strategy says of itself; with --mbits its one link is held to that many megabits per second for each
rank, by ``tc``. With --accuracy, each strategy trains the digits for as many epochs and says how well it does.
"""

import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from fits import UNCOUNTED, Clock, quiet, trainer
from jsonargparse import auto_cli
from launch import hand_in, is_rank, launch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from step import BATCH, WIDTHS, Work
from tables import console, spread, table
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from lightning_byz import RobustStrategy
from lightning_byz.aggregators import CTMA, CoordinateMedian
from lightning_byz.compressors import Cast, Quantize, ScaledSign, TopK
from lightning_byz.demos import DigitsClassifier, DigitsData
from lightning_byz.estimators import WorkerMomentum
from lightning_byz.links import EF21, Downlink, ErrorFeedback

OWN_NETWORK = "BENCHMARK_OWN_NETWORK"
BASE = "WorkerMomentum, CTMA"
Windows = dict[str, list[dict[str, float]]]


class Hooked(DDPStrategy):
    """DDP with a communication hook on CPUs too, where Lightning registers none."""

    def setup(self, trainer: Trainer) -> None:
        """Register the hook on the wrapped module."""
        super().setup(trainer)
        assert isinstance(self.model, DistributedDataParallel)
        assert self._ddp_comm_hook is not None
        self.model.register_comm_hook(self._ddp_comm_state, self._ddp_comm_hook)


def strategies() -> dict[str, Callable[[], Strategy]]:
    """Return what is measured, by name."""
    ddp = partial(DDPStrategy, process_group_backend="gloo")
    robust = partial(RobustStrategy, f=1, aggregator=CTMA(CoordinateMedian()), estimator=WorkerMomentum())
    sparse = {"link": EF21(), "compressor": TopK(0.01)}
    return {
        BASE: robust,
        "EF21, TopK(0.01)": partial(robust, **sparse),
        "EF21, TopK(0.01), back as bfloat16": partial(robust, **sparse, downlink=Cast("bfloat16")),
        "EF21, TopK(0.01), both ways": partial(robust, **sparse, downlink=Downlink(TopK(0.01), EF21())),
        "ErrorFeedback, ScaledSign": partial(robust, link=ErrorFeedback(), compressor=ScaledSign()),
        "Quantize(4)": partial(robust, compressor=Quantize(4)),
        "bfloat16 both ways": partial(robust, compressor=Cast("bfloat16"), downlink=Cast("bfloat16")),
        "DDP": ddp,
        "DDP, fp16_compress_hook": partial(  # bf16 wants a GPU
            Hooked, process_group_backend="gloo", ddp_comm_hook=default_hooks.fp16_compress_hook
        ),
        "DDP, PowerSGD rank 4": lambda: Hooked(  # in one bucket: over gloo, ranks mix up the reductions of several
            process_group_backend="gloo",
            bucket_cap_mb=1000,
            ddp_comm_state=powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=4, start_powerSGD_iter=2),
            ddp_comm_hook=powerSGD_hook.powerSGD_hook,
        ),
    }


def moved() -> int:
    """Return the bytes that have gone over this network's only link."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return int(next(line for line in lines if line.strip().startswith("lo:")).split()[1])


class Counter(Callback):
    """Counts the bytes of the steps that :class:`Clock` times."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Note what has gone over the link."""
        self.seen.append(moved())

    def per_step(self) -> float:
        """Return bytes per counted step, of all ranks."""
        counted = self.seen[UNCOUNTED - 1 :]
        return (counted[-1] - counted[0]) / (len(counted) - 1)


def window(strategy: Strategy, ranks: int, steps: int) -> dict[str, float]:
    """Train for a few steps; return this rank's seconds and all ranks' bytes per counted step."""
    count, clock, counter = steps + UNCOUNTED, Clock(), Counter()
    rows = ranks * BATCH * count
    data = TensorDataset(torch.randn(rows, WIDTHS[0]), torch.randint(WIDTHS[-1], (rows,)))
    trainer(strategy, [clock, counter], ranks=ranks).fit(Work(), DataLoader(data, batch_size=BATCH))
    return {**clock.per_step(), "bytes": counter.per_step()}


def accuracy(strategy: Strategy, ranks: int, epochs: int) -> float:
    """Train the digits; return the accuracy on those held out."""
    torch.manual_seed(1)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    place = {"accelerator": "cpu", "devices": ranks, "plugins": [LightningEnvironment()]}
    fit = Trainer(strategy=strategy, max_epochs=epochs, **place, **quiet)
    fit.fit(DigitsClassifier(hidden=128, learning_rate=0.3), datamodule=DigitsData(batch_size=16))
    return float(fit.callback_metrics["val_accuracy"])


def run_rank(ranks: int, pairs: int, steps: int, epochs: int) -> dict[str, list[dict[str, float]]]:
    """Run everything on this rank."""
    quiet(threads=1)
    subjects, windows = strategies(), {}
    for turn in range(pairs):
        order = list(subjects)
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            windows.setdefault(name, []).append(window(subjects[name](), ranks, steps))
    if epochs:
        windows = {name: [{"accuracy": accuracy(made(), ranks, epochs)}] for name, made in subjects.items()}
    return windows


def shown(windows: Windows, ranks: int, mbits: float | None) -> None:
    """Print medians, ratios to the uncompressed robust step, and bytes."""
    base, where = windows[BASE], "in memory" if mbits is None else f"of {mbits:g} Mbit/s per rank"
    result = table(
        f"One training step of {ranks} ranks on a link {where}, {len(base)} interleaved windows",
        *("strategy", "ms", f"ratio to {BASE}", "from - to", "MB moved per rank and step"),
    )
    for name, mine in windows.items():
        seconds = [one["wall"] for one in mine]
        cells = [f"{1000 * statistics.median(seconds):.0f}", *spread(seconds, [one["wall"] for one in base])]
        result.add_row(name, *cells, f"{statistics.median(one['bytes'] for one in mine) / ranks / 1e6:.2f}")
    console().print(result)


def main(
    *, ranks: int = 4, pairs: int = 5, steps: int = 4, mbits: float | None = None, accuracy: bool = False,
    epochs: int = 20, timeout: float = 3000.0,
) -> None:  # fmt: skip
    """Compare training steps with and without compressed messages.

    Args:
        ranks: Processes, of one thread each.
        pairs: Windows of each strategy.
        steps: Counted steps of a window.
        mbits: What the link carries for each rank, in megabits per second; as fast as memory where not given.
        accuracy: Whether to train the digits instead of timing steps.
        epochs: For how long.
        timeout: Seconds until the benchmark gives up.
    """
    if is_rank():
        hand_in(run_rank(ranks, 0 if accuracy else pairs, steps, epochs if accuracy else 0))
    if OWN_NETWORK not in os.environ:
        limit = (
            ""
            if mbits is None
            else f"tc qdisc add dev lo root tbf rate {mbits * ranks}mbit burst 256kb latency 400ms && "
        )
        command = f'ip link set lo up && {limit}exec "$@"'
        told = ["unshare", "--net", "bash", "-c", command, "bash", sys.executable, *sys.argv]
        os.execvpe("unshare", told, os.environ | {OWN_NETWORK: "1"})
    by_rank = launch(ranks, timeout)
    if not accuracy:
        shown(by_rank[0], ranks, mbits)
        return
    result = table(f"Digits, {epochs} epochs, {ranks} ranks, no attack", "strategy", "accuracy")
    for name, (one,) in by_rank[0].items():
        result.add_row(name, f"{one['accuracy']:.3f}")
    console().print(result)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
