"""Training steps of the logical workers of one rank."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_byz.attacks import Attack
from lightning_byz.data.loaders import WorkerBatches
from lightning_byz.exchange import Placement
from lightning_byz.random import Streams, generator
from lightning_byz.strategies.buffers import WorkerBuffers

Gradients = list[Tensor | None]


class WorkerLoop:
    """Enters each local worker in turn: its random streams, its buffers, its gradients so far.

    Args:
        module: The user's module.
        placement: Which workers live here.
        buffers: Their buffers.
        streams: The global random streams.
        seed: The run's seed.
        attackers: Ids of the workers that attack.
        attack: What they do to their batches.

    """

    def __init__(
        self,
        module: pl.LightningModule,
        placement: Placement,
        *,
        buffers: WorkerBuffers,
        streams: Streams,
        seed: int,
        attackers: Sequence[int],
        attack: Attack | None,
    ) -> None:
        self._module = module
        self._placement = placement
        self._buffers = buffers
        self._streams = streams
        self._seed = seed
        self._attackers = attackers
        self._attack = attack
        self._kept: dict[int, dict[int, Tensor | None]] = {}
        self._present: set[int] = set()
        self.worker: int | None = None
        """The logical worker whose training step runs now."""
        self.finished = False
        """Whether the backward pass of this micro-batch is done, so that Lightning's own must do nothing."""

    def run_one(self, step: Callable[..., Any], batch: Any, *rest: Any) -> Any:
        """Run the step of the only worker of this rank; Lightning does the backward pass."""
        worker = self._placement.local[0]
        self._begin()
        self.finished = False
        with self.inside(worker):
            output = step(self._poisoned(worker, batch), *rest)
        if output is None and self._module.automatic_optimization:
            self.finished = True
            return self._nothing()
        return output

    def run_each(
        self, step: Callable[..., Any], backward: Callable[[Tensor], Any], batches: WorkerBatches, *rest: Any
    ) -> Tensor:
        """Run step and backward pass of each worker; return their mean loss, which needs no backward pass any more."""
        trainer = self._module.trainer
        losses = []
        self._begin()
        for worker, batch in zip(self._placement.local, batches, strict=True):
            trainer._results.batch, trainer._results.batch_size = batch, None  # type: ignore[union-attr]
            with self.inside(worker), self._own_gradients(worker):
                output = step(self._poisoned(worker, batch), *rest)
                result = ClosureResult.from_training_step_output(output, trainer.accumulate_grad_batches)
                if result.closure_loss is None:
                    continue
                losses.append(result.closure_loss.detach() * trainer.accumulate_grad_batches)
                if not trainer.fit_loop.epoch_loop.automatic_optimization._skip_backward:
                    backward(result.closure_loss)
                    self._present.add(worker)
        self.finished = True
        return torch.stack(losses).mean().requires_grad_() if losses else self._nothing()

    def backward_of_one(self, backward: Callable[[], Any]) -> Any:
        """Run Lightning's backward pass of the only worker, in the random streams where its step left them."""
        self._present.add(self._placement.local[0])
        if self.worker is not None:
            return backward()
        with self._streams.again(), self._buffers.inside(self._placement.local[0]):
            return backward()

    def gradients(self, parameters: Sequence[Tensor]) -> dict[int, Gradients | None]:
        """Return each local worker's accumulated gradients, ``None`` for a worker that sent nothing, and forget them."""
        if not self._placement.one_per_rank:
            return {worker: self._of(worker, parameters) for worker in self._placement.local}
        worker = self._placement.local[0]
        here = worker in self._present or not self._module.automatic_optimization
        return {worker: [parameter.grad for parameter in parameters] if here else None}

    def forget(self) -> None:
        """Start the next step without gradients."""
        self._kept.clear()
        self._present.clear()

    def each(self, function: Callable[[Any], Any], batch: Any, purpose: str) -> Any:
        """Apply ``function`` to each worker's part of a batch, in a random stream of its own."""
        if self._placement.one_per_rank:
            return self._keyed(function, batch, purpose, self._placement.local[0])
        parts = []
        for place, worker in enumerate(self._placement.local):
            part = apply_to_collection(
                batch, WorkerBatches, lambda batches, place=place: batches[place], include_none=True
            )
            parts.append(self._keyed(function, part, purpose, worker))
        return WorkerBatches(parts)

    @contextmanager
    def inside(self, worker: int) -> Iterator[None]:
        """Make ``worker`` the one that computes."""
        self.worker = worker
        try:
            with (
                self._streams.inside(self._seed, "step", *self._position, worker, remember=True),
                self._buffers.inside(worker),
            ):
                yield
        finally:
            self.worker = None

    @property
    def _position(self) -> tuple[int, int]:
        trainer = self._module.trainer
        return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx

    @contextmanager
    def _own_gradients(self, worker: int) -> Iterator[None]:
        """Exchange the parameters' gradients for the worker's own so far, so that autograd adds to these."""
        groups = [group for optimizer in self._module.trainer.optimizers for group in optimizer.param_groups]
        trained = {
            id(parameter): parameter
            for parameter in (*self._module.parameters(), *(p for group in groups for p in group["params"]))
        }
        parameters = [parameter for parameter in trained.values() if parameter.requires_grad]
        kept = self._kept.get(worker, {})
        for parameter in parameters:
            parameter.grad = kept.get(id(parameter))
        try:
            yield
        finally:
            self._kept[worker] = {id(parameter): parameter.grad for parameter in parameters}
            for parameter in parameters:
                parameter.grad = None

    def _begin(self) -> None:
        """At the first micro-batch of a window, forget what a window without an optimizer step has left, as Lightning's zero_grad does."""
        if (
            self._module.automatic_optimization
            and self._position[1] % self._module.trainer.accumulate_grad_batches == 0
        ):
            self.forget()

    def _of(self, worker: int, parameters: Sequence[Tensor]) -> Gradients | None:
        if worker not in self._present:
            return None
        kept = self._kept.get(worker, {})
        return [kept.get(id(parameter)) for parameter in parameters]

    def _keyed(self, function: Callable[[Any], Any], batch: Any, purpose: str, worker: int) -> Any:
        epoch, batch_idx = self._position
        with self._streams.inside(self._seed, purpose, epoch, batch_idx + 1, worker):
            return function(batch)

    def _poisoned(self, worker: int, batch: Any) -> Any:
        if self._attack is None or worker not in self._attackers:
            return batch
        return self._attack.poison(batch, generator=generator(self._seed, "poison", *self._position, worker))

    def _nothing(self) -> Tensor:
        return torch.zeros((), device=self._module.device, requires_grad=True)
