"""The pass of a batch where its worker's adopted estimate was made: before the one that is seen, and unseen itself."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from lightning_byz.rounds import Aggregation, EarlierGradients, Sent, Turn
from lightning_byz.rounds.earlier import copied
from lightning_byz.strategies.inside_lightning import loss_of, silent, skips_backward


class EarlierPass:
    """Runs the module's training step where nobody sees it: neither logs nor hooks, buffers, metrics, loggers or progress.

    Args:
        module: The user's module.
        gradients: What the passes leave.

    """

    def __init__(self, module: pl.LightningModule, gradients: EarlierGradients) -> None:
        self._module = module
        self._gradients = gradients
        self._lossless: set[int] = set()
        self._apart: set[int] = set()

    def run(
        self,
        turn: Turn,
        aggregation: Aggregation,
        trained: Sequence[Tensor],
        step: Callable[..., Any],
        batch: Any,
        *rest: Any,
    ) -> None:
        """Compute the gradients of one batch of a turn; without a backward pass where Lightning does none."""
        trainer = self._module.trainer
        if skips_backward(trainer):
            return
        batch = copied(batch)
        poisoned = aggregation.round.poisoned(turn, batch) if turn.attacks else batch
        self._lossless.discard(turn.worker)
        with silent(self._module), self._gradients.computing(turn, aggregation, trained):
            loss = loss_of(step, trainer, poisoned, *rest)
            if loss is None:
                self._lossless.add(turn.worker)
            else:
                backward_unseen(self._module, loss)

    def seen(self, worker: int, *, loss: bool) -> None:
        """Note whether the pass that is seen had a loss; gradients of a worker where only one of both had say nothing together."""
        if loss == (worker in self._lossless):
            self._apart.add(worker)

    def collect(self, aggregation: Aggregation, worker: int, parameters: Sequence[Tensor]) -> Sent | None:
        """Return what a worker sends of the gradients that lie on the parameters and of those that were computed unseen, if they belong together."""
        gradients = [parameter.grad for parameter in parameters]
        if aggregation.round.points == 1:
            return aggregation.collect(worker, gradients)
        earlier = self._gradients.take(worker, parameters)
        if earlier is None or worker in self._apart:
            return None
        return aggregation.collect(worker, gradients, earlier)

    def forget(self) -> None:
        """Start the next step."""
        self._gradients.forget()
        self._lossless.clear()
        self._apart.clear()


def backward_unseen(module: pl.LightningModule, loss: Tensor) -> None:
    """Run the backward pass as the precision plugin does, without its hooks."""
    trainer = module.trainer
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scaled = loss if scaler is None else scaler.scale(loss)
    trainer.precision_plugin.backward(scaled, module, trainer.optimizers[0])
