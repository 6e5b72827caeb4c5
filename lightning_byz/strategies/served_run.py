"""One fit of workers that go at their own pace: their messages become updates of the server's module."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_byz.census import Arrival
from lightning_byz.exchange import Local
from lightning_byz.rounds import Report, Sent
from lightning_byz.serving.common import Message
from lightning_byz.serving.messages import Sizes, packed_memory
from lightning_byz.serving.service import Service
from lightning_byz.serving.serving import UPDATES, Desk, handed_over, remembered_by
from lightning_byz.strategies.digests import digests_of
from lightning_byz.strategies.run import Run
from lightning_byz.strategies.served_data import ServedData
from lightning_byz.strategies.served_jobs import engine_of, jobs_of
from lightning_byz.strategies.worker_log import WorkerLog

PATIENCE = 20
"""Arrivals per worker, in a row without an update, after which that is worth a warning; the next at twice as many."""


class RunOfMany(Run):
    """A run whose messages come one at a time, and whose workers' buffers are compared all at once."""

    def consensus(self) -> dict[str, Tensor]:
        """Return what all workers' buffers have in common."""
        aggregation = self.aggregation(0)
        return self.buffers.consensus(Local(), self.placement, aggregation.round.worth(aggregation.memory))


class ServedRun:
    """The workers of one fit, and what the server does with their messages.

    Args:
        strategy: The strategy, whose arguments say how.
        run: The aggregation of the server's module.
        data: Makes the workers' loaders.
        desk: Tells the round which message is there.

    """

    def __init__(self, strategy: Any, run: Run, data: ServedData, desk: Desk) -> None:
        self._strategy = strategy
        self._run = run
        self._desk = desk
        self._module = run.module
        self._log = WorkerLog(run.module)
        self._buffers: dict[int, np.ndarray] = {}
        self._gradients: list[Tensor | None] = []
        self._waiting: tuple[int, bool] | None = None
        self._refused, self._warn_at = 0, PATIENCE * strategy.workers
        self._ended = False
        self._began, self._stopped = monotonic(), 0.0
        self.delivered = dict.fromkeys(range(strategy.workers), 0)
        """Messages of each worker that were accepted in this fit."""
        self._aggregation, self._trained = run.ready(0, strategy.optimizers[0])
        memory, layout = self._aggregation.memory, self._aggregation.layout
        self._remembered = remembered_by(memory)
        self._aggregation.memory = replace(memory, workers={})
        desk.updates = memory.counts[UPDATES][0] if UPDATES in memory.counts else 0
        self._sizes = Sizes(layout, sum(one.numel() for one in run.module.buffers()), strategy.estimator)
        self._digests = digests_of(run.module)
        jobs = jobs_of(strategy, data, layout)
        self.engine = engine_of(strategy, jobs)
        limits = {"deadline": strategy.deadline, "restarts": strategy.restarts}
        self.service = Service(self.engine, self._sizes, self._digests, tell=rank_zero_warn, **limits)

    # ------------------------------------------------------------------ the run

    def start(self) -> None:
        """Start the workers, and wait for a first message of each."""
        self._publish()
        remembered = {worker: packed_memory(own, self._sizes) for worker, own in self._remembered.items()}
        try:
            self.service.open(remembered, self._turns)
        except BaseException:
            self.close()
            raise
        self._began = monotonic()

    def update(self, *, diagnose: bool) -> tuple[Report, Tensor]:
        """Take messages until the rules have made an update of them; return what became of the last, and the mean loss."""
        self._refuse_other_parameters()
        losses: list[float] = []
        deliveries = [0] * self._strategy.workers
        while True:
            message = self._awaited()
            report = self._take(message, diagnose=diagnose)
            losses.append(message.loss)
            self._log.note(message.logged)
            accepted = report.census.arrival[message.worker] is Arrival.ARRIVED
            if accepted:
                self.delivered[message.worker] += 1
                deliveries[message.worker] += 1
                self._buffers[message.worker] = message.buffers
            if report.taken:
                self._waiting = message.worker, accepted
                break
            self._look_at(report)
            self.service.answer(message.worker, accepted=accepted)
        self._refused = 0
        self._gradients = [parameter.grad for parameter in self._trained]
        for parameter in self._trained:
            parameter.grad = None  # what clears gradients before the backward pass is not to clear these
        self._log.tell()
        report = replace(report, deliveries=deliveries)
        return report, torch.tensor(float(np.mean(losses)), device=self._module.device, requires_grad=True)

    def show_gradients(self) -> None:
        """Give the parameters the aggregate of the last update."""
        for parameter, gradient in zip(self._trained, self._gradients, strict=True):
            parameter.grad = gradient

    def go_on(self) -> None:
        """Send the parameters as they are now to whoever has delivered last."""
        self._desk.updates += 1
        self._publish(stepped=1)
        if self._waiting is not None:
            self.service.answer(self._waiting[0], accepted=self._waiting[1])
        self._waiting = None

    def end(self) -> None:
        """Keep what the workers remember, and end them."""
        if not self._ended:
            self._remembered |= self.service.memories()
        self.close()

    def close(self) -> None:
        """End the workers, whatever they do."""
        if not self._ended:
            self._ended, self._stopped = True, monotonic()
            self.service.close()

    @property
    def rates(self) -> dict[int, float]:
        """Messages per second of each worker that were accepted since the start."""
        seconds = max((self._stopped or monotonic()) - self._began, 1e-9)
        return {worker: count / seconds for worker, count in self.delivered.items()}

    # ------------------------------------------------------------------ memories

    @contextmanager
    def handed_over(self) -> Iterator[None]:
        """Have what workers remember in the memory for the length of the block, as far as they have told."""
        if not self._ended:
            self._remembered |= self.service.memories()
        self._aggregation.withdraw()
        held = self._aggregation.memory
        self._aggregation.memory = handed_over(self._aggregation.memory, self._remembered)
        self.share_buffers()
        try:
            yield
        finally:
            self._aggregation.memory = held
            if not self._ended:
                self._remembered = {}

    def share_buffers(self) -> None:
        """Let evaluation and files have the workers' buffers."""
        buffers = self._run.buffers
        if self._buffers and buffers.some:
            named = dict(self._module.named_buffers())
            states = {worker: _named(self._buffers.get(worker), named) for worker in self.delivered}
            buffers.restore(states, {})

    # ------------------------------------------------------------------ inside

    def _awaited(self) -> Message:
        """Return the next message, however long that takes."""
        trainer = self._module.trainer
        while (message := self.service.next()) is None:
            if trainer.received_sigterm:
                raise SIGTERMException
        return message

    def _take(self, message: Message, *, diagnose: bool) -> Report:
        """Let a message meet the rules, if it is time for them."""
        desk, arrived = self._desk, self._aggregation.memory.step + 1
        desk.worker, desk.turn, desk.version = message.worker, message.turn, message.version
        desk.ruled = arrived % self._strategy.every == 0
        row = message.row.to(self._module.device)
        return self._aggregation.step({message.worker: Sent([row], message.used)}, diagnose=diagnose)

    def _look_at(self, report: Report) -> None:
        """Warn where arrivals make no update for long."""
        self._refused += self._desk.ruled
        if self._refused >= self._warn_at:
            self._warn_at *= 2
            rank_zero_warn(
                f"{self._refused} looks of the rules at the messages in a row made no update, and messages go on being collected; the last because:"
                f" {report.reason}. Lower f, state byzantine_share=, or choose a rule that tolerates more."
            )

    def _publish(self, *, stepped: int = 0) -> None:
        """Send the parameters as they are now from now on."""
        layout, trainer = self._aggregation.layout, self._module.trainer
        vector = torch.empty(layout.total, dtype=layout.dtype, device=self._module.device)
        layout.flatten([parameter.detach() for parameter in self._trained], out=layout.views(vector))
        about = {"epoch": trainer.current_epoch, "step": trainer.global_step + stepped}
        self.service.publish(vector.cpu(), version=self._desk.updates, **about)

    def _turns(self, worker: int) -> int:
        """Return how many turns a worker has taken."""
        counts = self._aggregation.memory.counts
        return counts["turns"][worker] if "turns" in counts else 0

    def _refuse_other_parameters(self) -> None:
        known = self._trained
        trained = self._run.ready(0, self._strategy.optimizers[0])[1]
        if len(trained) != len(known) or any(one is not other for one, other in zip(trained, known, strict=True)):
            raise ValueError(
                f"The optimizer trains {len(trained)} parameters now and {len(known)} when the workers started, who know of these: freeze and thaw"
                " before the fit, or use RobustStrategy."
            )


def _named(numbers: np.ndarray | None, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return buffers by name from a worker's numbers."""
    if numbers is None:
        return {name: buffer.clone() for name, buffer in like.items()}
    values, place = torch.from_numpy(numbers), 0
    named = {}
    for name, buffer in like.items():
        part = values[place : place + buffer.numel()].view(buffer.shape)
        whole = part if buffer.is_floating_point() else part.nan_to_num().round()
        named[name], place = whole.to(buffer.dtype), place + buffer.numel()
    return named
