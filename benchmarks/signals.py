"""SIGTERM at random moments of a run on two ranks: how long it then takes, with which exit code, and whether a process is left.

python benchmarks/signals.py --signals 20 --strategy robust --launcher torchrun
python benchmarks/signals.py --signals 0 --ends 100 --strategy robust --launcher torchrun
"""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from uuid import uuid4

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_byz.aggregators import CoordinateMedian
from lightning_byz.strategies import RobustStrategy

GRACE = 60.0
MARK = "RUN_TO_BE_ENDED"


class Small(pl.LightningModule):
    """Steps of a few milliseconds, in most of which it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Say that the run has begun, and compute."""
        if batch_idx == 0:
            print("begun", flush=True)
        time.sleep(0.005)
        return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(strategy: str, batches: int) -> None:
    data = TensorDataset(torch.randn(8 * batches, 8), torch.randint(0, 2, (8 * batches,)))
    chosen = DDPStrategy() if strategy == "ddp" else RobustStrategy(f=0, aggregator=CoordinateMedian())
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=chosen,
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Small(), DataLoader(data, batch_size=4))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(strategy: str, launcher: str, batches: int, mark: str) -> subprocess.Popen:
    """Start a run that can be told from others."""
    own = [str(Path(__file__).resolve()), "--train", "--strategy", strategy, "--batches", str(batches)]
    command = [sys.executable, *own]
    if launcher == "torchrun":
        command[1:1] = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", MARK: mark}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
    )


def left_of(mark: str) -> list[int]:
    """Return the processes that still run of those which inherited a mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def end(strategy: str, launcher: str, wait: float | None) -> tuple[float, int | str, int]:
    """Let a run end, by a signal ``wait`` seconds after its first batch or by itself; return seconds, exit code, and how many processes it left."""
    mark = uuid4().hex
    run = start(strategy, launcher, 20 if wait is None else 10_000, mark)
    assert run.stdout is not None
    while wait is not None and b"begun" not in (line := run.stdout.readline()) and line:
        pass
    if wait is not None:
        time.sleep(wait)
        run.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    code: int | str = "none"
    try:
        run.communicate(timeout=GRACE)
        code = run.returncode
    except subprocess.TimeoutExpired:
        pass
    seconds = time.monotonic() - begun
    time.sleep(1.0)
    left = left_of(mark)
    for process in left:
        os.kill(process, signal.SIGKILL)
    return seconds, code, len(left)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--signals", type=int, default=20)
    parser.add_argument("--ends", type=int, default=0)
    parser.add_argument("--strategy", choices=["robust", "ddp"], default="robust")
    parser.add_argument("--launcher", choices=["script", "torchrun"], default="torchrun")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--train", action="store_true")
    options = parser.parse_args()
    if options.train:
        train(options.strategy, options.batches)
        return
    draws = random.Random(0)
    for kind, count in (("SIGTERM", options.signals), ("end", options.ends)):
        ended = [
            end(options.strategy, options.launcher, 2 * draws.random() if kind == "SIGTERM" else None)
            for _ in range(count)
        ]
        if ended:
            seconds = sorted(one[0] for one in ended)
            print(
                f"{options.strategy} by {options.launcher}, {count} times {kind}: {seconds[len(seconds) // 2]:.1f} s (longest {seconds[-1]:.1f}),"
                f" exit codes {dict(Counter(one[1] for one in ended))}, processes left {sum(one[2] for one in ended)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
