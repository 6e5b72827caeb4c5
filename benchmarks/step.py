"""How long a whole training step takes through the Trainer, in ratio to DDPStrategy, on gloo ranks of one thread.

    python benchmarks/step.py
    python benchmarks/step.py --aggregators='[Mean, {class_path: CTMA, init_args: {base: CoordinateMedian}}, own_average.OwnAverage]'

The work is fixed: linear layers 784-2048-2048-2048-10 with ReLU between them (10M parameters), batches of 64 per rank, SGD. All strategies run in
the same processes and process group, in windows of a few steps that take turns; a window's first steps are not counted. A pair is one window of a
strategy and the window of DDPStrategy of the same round; the table shows the median of the pairs' ratios, and their smallest and largest.
"""

import gc
import json
import logging
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from jsonargparse import auto_cli
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from own_average import OwnAverage
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_byz import RobustStrategy
from lightning_byz.aggregators import Aggregator, CoordinateMedian, Mean

WIDTHS, BATCH, UNCOUNTED = (784, 2048, 2048, 2048, 10), 64, 2
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


class Clock(Callback):
    """Remember when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def window(strategy: Strategy, ranks: int, steps: int) -> dict[str, float]:
    """Train for a few steps; return the seconds per counted step and the peak memory of this rank in MiB."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    count = steps + UNCOUNTED
    data = TensorDataset(
        torch.randn(ranks * BATCH * count, WIDTHS[0]), torch.randint(WIDTHS[-1], (ranks * BATCH * count,))
    )
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu", devices=ranks, strategy=strategy, plugins=[LightningEnvironment()], max_epochs=1, callbacks=[clock],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Work(), DataLoader(data, batch_size=BATCH))
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"seconds": (clock.ends[-1] - clock.ends[UNCOUNTED - 1]) / steps, "peak": int(peak.split()[1]) / 1024}


def run_rank(aggregators: Sequence[Aggregator], *, ranks: int, pairs: int, steps: int) -> None:
    """Run all windows on this rank; rank 0 writes them to the file the parent named."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    names = [
        "DDPStrategy",
        *(repr(rule) if "object at" not in repr(rule) else type(rule).__name__ for rule in aggregators),
    ]
    windows: Windows = {name: [] for name in names}
    for turn in range(pairs):
        order = list(range(len(names)))
        for place in order[turn % len(order) :] + order[: turn % len(order)]:
            strategy = (
                DDPStrategy(process_group_backend="gloo")
                if place == 0
                else RobustStrategy(f=0, aggregator=aggregators[place - 1])
            )
            windows[names[place]].append(window(strategy, ranks, steps))
    if os.environ["LOCAL_RANK"] == "0":
        Path(os.environ["BENCHMARK_RESULT"]).write_text(json.dumps(windows))


def launch(ranks: int, timeout: float) -> Windows:
    """Start this script once per rank; kill every rank's process group when one fails or time is up."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port, result = str(free.getsockname()[1]), Path(folder) / "windows.json"
        free.close()
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "NODE_RANK": "0",
            "OMP_NUM_THREADS": "1",
            "BENCHMARK_RESULT": str(result),
        }
        started = [
            subprocess.Popen(
                [sys.executable, *sys.argv], env=os.environ | shared | {"LOCAL_RANK": str(rank)}, start_new_session=True
            )
            for rank in range(ranks)
        ]
        try:
            deadline = time.monotonic() + timeout
            while any(process.poll() is None for process in started) and not any(process.poll() for process in started):
                if time.monotonic() > deadline:
                    sys.exit(f"error: the benchmark took longer than --timeout={timeout:g} seconds.")
                time.sleep(0.2)
        finally:
            for process in started:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        if any(process.wait() for process in started):
            sys.exit("error: a rank failed.")
        return json.loads(result.read_text())


def table(windows: Windows, *, ranks: int) -> Table:
    """Lay out medians, ratios, their spread and peak memory."""
    base = [window["seconds"] for window in windows["DDPStrategy"]]
    result = Table(title=f"One training step of {ranks} ranks, {len(base)} interleaved pairs")
    for column in ("strategy", "ms", "ratio to DDP", "from - to", "peak MiB of rank 0"):
        result.add_column(column, justify="left" if column == "strategy" else "right", no_wrap=True)
    for name, mine in windows.items():
        ratios = [window["seconds"] / other for window, other in zip(mine, base, strict=True)]
        seconds, peak = statistics.median(window["seconds"] for window in mine), max(window["peak"] for window in mine)
        result.add_row(
            name,
            f"{1000 * seconds:.0f}",
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f} - {max(ratios):.2f}",
            f"{peak:.0f}",
        )
    return result


def main(
    aggregators: list[Aggregator] = [Mean(), CoordinateMedian(), OwnAverage()],  # noqa: B006, B008 - frozen
    *,
    ranks: int = 4,
    pairs: int = 7,
    steps: int = 6,
    timeout: float = 1200.0,
) -> None:
    """Measure and print the table.

    Args:
        aggregators: The rules to measure, as class names, class paths or dicts of class_path and init_args.
        ranks: Processes, each with one thread.
        pairs: Windows per strategy.
        steps: Counted steps per window.
        timeout: Seconds after which every process is killed.
    """
    if "BENCHMARK_RESULT" in os.environ:
        run_rank(aggregators, ranks=ranks, pairs=pairs, steps=steps)
    else:
        Console().print(table(launch(ranks, timeout), ranks=ranks))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
