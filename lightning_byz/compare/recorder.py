"""What a run logged, evaluation by evaluation."""

import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from lightning_byz.compare.records import Evaluation


class Recorder(Callback):
    """Keeps what was logged whenever a validation ends, and when the fit does. It draws nothing, and makes no collective."""

    def __init__(self) -> None:
        self.evaluations: list[Evaluation] = []
        self.test: dict[str, float] = {}
        self._start = time.perf_counter()
        self._received: int | None = None
        self._messages: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Count the bytes of a step whose strategy knows them."""
        report = getattr(trainer.strategy, "report", None)
        if report is not None:
            self._received = (self._received or 0) + report.bytes_received
            self._messages = (self._messages or 0) + report.uplink_bytes

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep an evaluation."""
        if not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING:
            self._keep(trainer, trainer.current_epoch + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what the last epoch has logged since its validation."""
        if self.evaluations and self.evaluations[-1].step == trainer.global_step:
            self.evaluations.pop()
        self._keep(trainer, trainer.current_epoch)

    def _keep(self, trainer: Trainer, epoch: int) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if _number(value)}
        seconds = time.perf_counter() - self._start
        self.evaluations.append(
            Evaluation(epoch, trainer.global_step, seconds, self._received, metrics, self._messages)
        )


def _number(value: Any) -> bool:
    return getattr(value, "numel", lambda: 1)() == 1


def better(mine: float, other: float | None, mode: str) -> bool:
    """Whether a score is better than another; NaN is worse than everything.

    Example:
        >>> better(0.9, 0.8, "max"), better(0.9, 0.8, "min"), better(math.nan, 0.1, "max"), better(0.1, math.nan, "min")
        (True, False, False, True)
    """
    if math.isnan(mine):
        return False
    return other is None or math.isnan(other) or (mine > other if mode == "max" else mine < other)
