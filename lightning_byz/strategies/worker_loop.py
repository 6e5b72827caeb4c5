"""Training steps of the logical workers of one rank."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from operator import attrgetter
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_byz.exchange import Exchange, Placement
from lightning_byz.random import Streams
from lightning_byz.rounds import Aggregation, EarlierGradients, Sent, Turn, WorkerBuffers
from lightning_byz.strategies.computed_twice import ComputedTwice
from lightning_byz.strategies.earlier_pass import EarlierPass
from lightning_byz.strategies.inside_lightning import accumulates, loss_of, skips_backward
from lightning_byz.strategies.loaders import WorkerBatches
from lightning_byz.strategies.splitting import NoPart, parts_of
from lightning_byz.strategies.step_values import StepValues


class WorkerLoop:
    """Takes the turns of the local workers: each in its own random streams, with its own buffers and gradients.

    Args:
        module: The user's module.
        exchange: Tells ranks what others have found.
        placement: Which workers live here.
        buffers: Their buffers.
        streams: The global random streams.
        seed: The run's seed.
        values: What several workers log.
        parts: The parts that each worker computes, where workers compute the same ones: they name draws then.

    """

    def __init__(
        self,
        module: pl.LightningModule,
        exchange: Exchange,
        placement: Placement,
        *,
        buffers: WorkerBuffers,
        streams: Streams,
        seed: int,
        values: StepValues,
        parts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self._module = module
        self._placement = placement
        self._buffers = buffers
        self._streams = streams
        self._seed = seed
        self._values = values
        self._named = placement.draws(parts)
        unseen = EarlierGradients(module, buffers, streams, seed=seed)
        self._earlier, self._twice = EarlierPass(module, unseen), ComputedTwice(module, unseen, exchange, streams, seed)
        self._accumulated: dict[int, dict[int, Tensor | None]] = {}
        self._sent: dict[int, Sent] = {}
        self._computed = False
        self.worker: int | None = None
        """The logical worker whose training step runs now."""
        self.finished = False
        """Whether the backward pass of this micro-batch is done, so that Lightning's own must do nothing."""
        self.apart = False
        """Whether ranks take the turns of several workers, so that nothing may wait for other ranks."""

    def run_one(self, aggregation: Aggregation, step: Callable[..., Any], batch: Any, *rest: Any) -> Any:
        """Run the step of the only worker of this rank; Lightning does the backward pass."""
        self._begin()
        self.finished = False
        aggregation.withdraw()
        *earlier, turn = aggregation.turns(self._position)
        with self._at_work(turn.worker):
            for unseen in earlier:
                self._earlier.run(unseen, aggregation, self._trained(()), step, batch, *rest)
            with self._streams.inside(self._seed, *turn.key, remember=True):
                output = step(aggregation.round.poisoned(turn, batch) if turn.attacks else batch, *rest)
        self._earlier.seen(turn.worker, loss=output is not None)
        if output is None and self._module.automatic_optimization:
            self.finished = True
            return self._nothing()
        return output

    def run_each(
        self,
        aggregation: Aggregation,
        parameters: Sequence[Tensor],
        step: Callable[..., Any],
        backward: Callable[[Tensor], Any],
        batches: WorkerBatches,
        *rest: Any,
    ) -> Tensor:
        """Run step and backward pass of each worker; return their mean loss, which needs no backward pass any more.

        Args:
            aggregation: Takes each worker's gradients as soon as its last micro-batch is done.
            parameters: What it aggregates.
            step: The module's training step.
            backward: The backward pass.
            batches: One batch per local worker.
            rest: What else the step takes.

        """
        trainer, losses = self._module.trainer, []
        self._begin()
        aggregation.withdraw()
        last, computes, trained = not accumulates(trainer), not skips_backward(trainer), self._trained(parameters)
        with self._turns_apart(), self._streams.together() as enter:
            given = dict(zip(self._placement.seats, batches, strict=True))
            for seat, (*earlier, turn) in groupby(aggregation.turns(self._position), attrgetter("sits")):
                worker, batch, here = turn.worker, given[seat], seat in self._accumulated
                own = self._accumulated.pop(seat, {})
                for parameter in trained:
                    parameter.grad = own.get(id(parameter))
                with self._at_work(worker, seat):
                    for unseen in earlier if not isinstance(batch, NoPart) else ():
                        self._earlier.run(unseen, aggregation, trained, step, batch, *rest)
                    self._twice.compute(turn, aggregation, trained, step, batch, *rest)
                    enter(self._seed, *turn.key)
                    with self._values.turn(seat):
                        loss = None
                        if not isinstance(batch, NoPart):
                            poisoned = aggregation.round.poisoned(turn, batch) if turn.attacks else batch
                            loss = loss_of(step, trainer, poisoned, *rest)
                            self._earlier.seen(worker, loss=loss is not None)
                        if loss is not None:
                            losses.append(loss.detach() * trainer.accumulate_grad_batches)
                        if loss is not None and computes:
                            backward(loss)
                            here = True
                here = here or (computes and last and aggregation.round.silence_is_zero)
                self._put_away(turn, aggregation, trained, count=len(parameters), here=here, last=last)
        self._twice.judge(aggregation)
        self.finished = True
        return torch.stack(losses).mean().requires_grad_() if losses else self._nothing()

    @contextmanager
    def around_backward(self) -> Iterator[None]:
        """Be in the random streams where the only worker's step left them, with its buffers; by hand, its step still runs."""
        self._computed = True
        if self.worker is not None:
            yield
            return
        with self._streams.again(), self._buffers.inside(self._placement.local[0]):
            yield

    def sent(self, aggregation: Aggregation, parameters: Sequence[Tensor]) -> dict[int, Sent]:
        """Return what the local workers have sent, and start the next step without gradients."""
        computed = self._computed or not self._module.automatic_optimization
        if self._placement.one_per_rank and computed and parameters:
            worker = self._placement.local[0]
            self._collect(worker, aggregation, parameters)
            for parameter in parameters:
                parameter.grad = None  # its memory is needed for the other workers' messages
        sent, self._sent = self._sent, {}
        self._forget()
        return sent

    def each(self, function: Callable[[Any], Any], batch: Any, *, purpose: str | None = None) -> Any:
        """Apply ``function`` to each worker's part of a batch; in a random stream of its own where it has a purpose that draws."""
        epoch, batch_idx = self._position
        seats = self._placement.seats
        parts = [batch] if self._placement.one_per_rank else parts_of(batch, len(seats))
        if purpose is None:
            done = [part if part is None or isinstance(part, NoPart) else function(part) for part in parts]
        else:
            done = []
            with self._streams.together() as enter:
                for seat, part in zip(seats, parts, strict=True):
                    enter(self._seed, purpose, epoch, batch_idx + 1, self._named[seat])
                    done.append(part if part is None or isinstance(part, NoPart) else function(part))
        return done[0] if self._placement.one_per_rank else WorkerBatches(done)

    @contextmanager
    def _turns_apart(self) -> Iterator[None]:
        """Keep what workers log from waiting for other ranks; reduce it once all have had their turns."""
        self.apart = True
        metrics = [part for part in self._module.modules() if isinstance(part, Metric)]
        available = [metric.distributed_available_fn for metric in metrics]
        for metric in metrics:
            metric.distributed_available_fn = _never
        try:
            yield
            self._values.reduce()
        finally:
            self.apart = False
            for metric, function in zip(metrics, available, strict=True):
                metric.distributed_available_fn = function

    @contextmanager
    def _at_work(self, worker: int, seat: int | None = None) -> Iterator[None]:
        """Make ``worker`` the one that computes, with the buffers of its seat."""
        self.worker = worker
        try:
            with self._buffers.inside(worker if seat is None else seat) if self._buffers.some else nullcontext():
                yield
        finally:
            self.worker = None

    @property
    def _position(self) -> tuple[int, int]:
        trainer = self._module.trainer
        return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx

    def _trained(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return every parameter that a backward pass may reach, the aggregated ones first."""
        groups = [group for optimizer in self._module.trainer.optimizers for group in optimizer.param_groups]
        others = (*self._module.parameters(), *(parameter for group in groups for parameter in group["params"]))
        return list({id(p): p for p in (*parameters, *others) if p.requires_grad}.values())

    def _put_away(
        self, turn: Turn, aggregation: Aggregation, trained: Sequence[Tensor], *, count: int, here: bool, last: bool
    ) -> None:
        """Keep the gradients of a turn for its next micro-batch, or hand them over; leave none on the parameters."""
        if here and last and count:
            self._collect(turn.worker, aggregation, trained[:count])
        elif here:
            self._accumulated[turn.sits] = {id(parameter): parameter.grad for parameter in trained}
        for parameter in trained:
            parameter.grad = None

    def _collect(self, worker: int, aggregation: Aggregation, parameters: Sequence[Tensor]) -> None:
        if (sent := self._earlier.collect(aggregation, worker, parameters)) is not None:
            self._sent[worker] = sent

    def _begin(self) -> None:
        """At the first micro-batch of a window, forget what a window without an optimizer step has left, as Lightning's zero_grad does."""
        if (
            self._module.automatic_optimization
            and self._position[1] % self._module.trainer.accumulate_grad_batches == 0
        ):
            self._forget()

    def _forget(self) -> None:
        self._accumulated.clear()
        self._sent.clear()
        self._earlier.forget()
        self._computed = False

    def _nothing(self) -> Tensor:
        return torch.zeros((), device=self._module.device, requires_grad=True)


def _never() -> bool:
    """Whether a metric may wait for other ranks."""
    return False
