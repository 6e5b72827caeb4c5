"""The turns of a plain loop's workers: each in its own random streams, with its own buffers and gradients."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_byz.exchange import Placement
from lightning_byz.inside_torch import scalers_heard
from lightning_byz.optimizers.refusals import check_loss, check_position, refuse_own_backward, refuse_second_message
from lightning_byz.random import Streams
from lightning_byz.rounds import Aggregation, EarlierGradients, Sent, Turn, WorkerBuffers
from lightning_byz.rounds.trained import named, trained_by

Closure = Callable[[], Tensor | None]
Backward = Callable[[Tensor], Any]
Position = Sequence[int] | None


class PlainTurns:
    """Takes one worker's turns on one batch at a time, and keeps what it sends until the step.

    Args:
        optimizer: What it trains is aggregated.
        module: What the closures evaluate.
        aggregation: Takes each worker's gradients.
        placement: Which workers live here.
        buffers: Their buffers.
        seed: The run's seed.
        device: Where the parameters are.

    """

    def __init__(
        self,
        optimizer: Optimizer,
        module: nn.Module,
        aggregation: Aggregation,
        placement: Placement,
        *,
        buffers: WorkerBuffers,
        seed: int,
        device: torch.device,
    ) -> None:
        self.seed = seed
        self.device = device
        self._optimizer = optimizer
        self._module = module
        self._aggregation = aggregation
        self._placement = placement
        self._buffers = buffers
        self._streams = Streams(device)
        self._earlier = EarlierGradients(module, buffers, self._streams, seed=seed)
        self._scaler: torch.amp.GradScaler | None = None
        self._trained: list[Tensor] = []
        self._settled = False
        self._sent: dict[int, Sent] = {}
        self._apart: set[int] = set()
        self._calls: Counter[int] = Counter()
        self._turns: dict[tuple[int, ...], dict[int, list[Turn]]] = {}

    @property
    def scale(self) -> float | None:
        """The present scale of the gradient scaler that the last losses were scaled by; ``None`` for none."""
        return None if self._scaler is None else self._scaler.get_scale()

    def restart(self, seed: int) -> None:
        """Go on from another memory, with its seed."""
        self.seed, self._trained = seed, []
        self._earlier = EarlierGradients(self._module, self._buffers, self._streams, seed=seed)
        self.forget()
        self.next_step()

    def forget(self) -> None:
        """Drop what was sent."""
        self._sent.clear()
        self._apart.clear()
        self._calls.clear()
        self._turns.clear()
        self._earlier.forget()

    def next_step(self) -> None:
        """Start the next step."""
        self._calls.clear()
        self._turns.clear()
        self._settled = False

    def ready(self) -> list[Tensor]:
        """Return what the optimizer trains, settled at the first call of a step; where it has changed, room is made for it."""
        if self._settled:
            return self._trained
        known, trained = self._trained, trained_by(self._optimizer)
        if not trained:
            raise ValueError(
                f"{type(self._optimizer).__name__} trains nothing any more: set requires_grad=True on what should train."
            )
        if len(known) != len(trained) or any(a is not b for a, b in zip(known, trained, strict=True)):
            self._aggregation.fit(named(self._module, trained))
        self._trained, self._settled = trained, True
        return trained

    def of(self, worker: int, position: Position) -> list[Turn]:
        """Return a local worker's turns on its next batch, the visible one last."""
        if worker not in self._placement.local:
            raise ValueError(
                f"worker {worker!r} is not one of this process, which has {list(self._placement.local)}: call it for the workers in robust.local."
            )
        self.ready()
        call = self._aggregation.memory.step, self._calls[worker]
        place = call if position is None else check_position(position)
        if place not in self._turns:
            turns = groupby(self._aggregation.turns(place), attrgetter("worker"))
            self._turns[place] = {worker: list(own) for worker, own in turns}
        return self._turns[place][worker]

    def take(self, worker: int, closure: Closure, backward: Backward, position: Position) -> Tensor | None:
        """Take a worker's turns on one batch; return the loss of the visible one."""
        if worker in self._sent and not self._aggregation.round.adds_up:
            refuse_second_message(worker, self._aggregation.memory.step)
        trained = self.ready()
        *earlier, turn = self.of(worker, position)
        self._calls[worker] += 1
        before, reached, lossless = self._sent.pop(worker, None), self._reached(trained), False
        with (
            self._or_nothing(worker),
            self._gradients_of(before, trained, reached),
            self._buffers.inside(worker),
            scalers_heard() as heard,
        ):
            for unseen in earlier:
                with self._earlier.computing(unseen, self._aggregation, reached):
                    lossless = _loss(closure, backward, reached) is None
            with self._streams.inside(self.seed, *turn.key):
                loss = _loss(closure, backward, reached)
            if loss is not None:
                self._hear(worker, heard)
            if earlier and lossless != (loss is None):
                self._apart.add(worker)
            if loss is not None or before is not None:
                sent = self._aggregation.collect(worker, [parameter.grad for parameter in trained])
                self._sent.update({} if sent is None else {worker: sent})
        return loss

    def sent(self) -> dict[int, Sent]:
        """Return what the local workers send: with two points, where the gradients at both belong together."""
        if self._aggregation.round.points == 1:
            return dict(self._sent)
        earlier = {worker: self._earlier.take(worker, self._trained) for worker in self._sent}
        return {
            worker: self._aggregation.beside(own, gradients)
            for worker, own in self._sent.items()
            if (gradients := earlier.pop(worker)) is not None and worker not in self._apart
        }

    @contextmanager
    def _or_nothing(self, worker: int) -> Iterator[None]:
        """Drop all that a worker has sent in this step where its turn fails: sums may hold a part of it."""
        try:
            yield
        except BaseException:
            self._earlier.take(worker, ())
            self._apart.discard(worker)
            self._buffers.drop(worker)
            del self._calls[worker]
            raise

    def _reached(self, trained: Sequence[Tensor]) -> list[Tensor]:
        """Return every parameter that a backward pass may reach, the trained ones first."""
        others = (parameter for parameter in self._module.parameters() if parameter.requires_grad)
        return list({id(parameter): parameter for parameter in (*trained, *others)}.values())

    @contextmanager
    def _gradients_of(
        self, before: Sent | None, trained: Sequence[Tensor], reached: Sequence[Tensor]
    ) -> Iterator[None]:
        """Have what a worker has accumulated on the parameters; leave none there, and those of other optimizers as they were."""
        others = [(other, other.grad) for other in reached[len(trained) :]]
        for parameter in reached:
            parameter.grad = None
        if before is not None:
            values = self._aggregation.layout.values(before.gradients[0], trained)
            for parameter, value, used in zip(trained, values, before.used, strict=True):
                parameter.grad = value if used else None
        try:
            yield
        finally:
            for parameter in trained:
                parameter.grad = None
            for other, gradient in others:
                other.grad = gradient

    def _hear(self, worker: int, heard: Sequence[torch.amp.GradScaler]) -> None:
        """Learn which gradient scaler has scaled this loss; it must be one for all."""
        scaler = heard[0] if heard else None
        if len(heard) > 1 or (self._sent and scaler is not self._scaler):
            raise ValueError(
                f"The loss of worker {worker} was scaled by another GradScaler than those before it, or by two: scale each loss of a step with the"
                " same one, inside the closure, or none."
            )
        self._scaler = scaler


def _loss(closure: Closure, backward: Backward, reached: Sequence[Tensor]) -> Tensor | None:
    """Evaluate the closure and run the backward pass."""
    before = [parameter.grad for parameter in reached]
    loss = closure()
    refuse_own_backward(before, [parameter.grad for parameter in reached])
    if loss is None:
        return None
    check_loss(loss)
    backward(loss)
    return loss.detach()
