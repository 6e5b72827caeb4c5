"""A fit that does nothing but train, and the clock that times its steps."""

import logging
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import Strategy

UNCOUNTED = 2
"""First steps of a window, which are not timed."""


class Clock(Callback):
    """Remembers when each step ended, by the wall and by the processor time of this process with all its threads."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def note(self) -> None:
        """Note the end of a step."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Note the end of a step of a fit."""
        self.note()

    def per_step(self) -> dict[str, float]:
        """Return wall and processor seconds per counted step."""
        counted = self.ends[UNCOUNTED - 1 :]
        wall, processor = (end - start for start, end in zip(counted[0], counted[-1], strict=True))
        return {"wall": wall / (len(counted) - 1), "processor": processor / (len(counted) - 1)}


def quiet(threads: int) -> None:
    """Silence Lightning in this process, and give torch its threads."""
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # or else Lightning's launchers set the number of threads anew
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def trainer(strategy: Strategy, callbacks: Sequence[Callback], *, ranks: int = 1) -> Trainer:
    """Return a trainer for one epoch, without loggers, checkpoints and progress bars."""
    return Trainer(
        accelerator="cpu", devices=ranks, strategy=strategy, plugins=[LightningEnvironment()], max_epochs=1,
        callbacks=list(callbacks), logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


def forget_peak() -> None:
    """Start the peak of this process's memory anew."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(field: str) -> float:
    """Return a field of this process's memory in MiB: ``VmHWM`` is the peak, ``VmRSS`` the present."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024
