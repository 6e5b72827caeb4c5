"""Everything that lives for one fit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_byz.census import Arrival
from lightning_byz.exchange import Exchange, Placement
from lightning_byz.random import Streams
from lightning_byz.rounds import Aggregation, MemoryFile, Report, Round, WorkerBuffers
from lightning_byz.rounds.drift import refuse_drifted
from lightning_byz.rounds.plan import said_at_the_end
from lightning_byz.rounds.trained import held_by, named, trained_by
from lightning_byz.strategies.backward_pass import BackwardPass
from lightning_byz.strategies.by_hand import ByHand
from lightning_byz.strategies.step_values import StepValues
from lightning_byz.strategies.worker_loop import WorkerLoop


class Run:
    """One fit's workers: their turns, their memories, and one aggregation per optimizer.

    Args:
        module: The user's module, with its parameters where they train.
        exchange: How messages reach the rules.
        placement: Which workers live here.
        buffers: The workers' buffers.
        streams: The global random streams.
        seed: The run's seed.
        parts: The parts that each worker computes, where workers compute the same ones.

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
        parts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.module = module
        self.exchange = exchange
        self.placement = placement
        self.buffers = buffers
        values = StepValues(module, exchange, placement)
        shared = {"buffers": buffers, "streams": streams, "seed": seed, "values": values}
        self.loop = WorkerLoop(module, exchange, placement, parts=parts, **shared)
        self.steps = 0
        """Steps of all optimizers in this fit."""
        self._tally = [0, 0]
        self._last: str | None = None
        self._seed = seed
        self._ended = False
        self._file = MemoryFile(exchange, placement, device=module.device)
        self._rounds: Callable[[int], Round] | None = None
        self._saved: Mapping[str, Any] | None = None
        self._aggregations: dict[int, Aggregation] = {}
        self._parameters: dict[int, list[Tensor]] = {}
        self.by_hand = ByHand(module, exchange, alone=placement.workers == 1, stepped=self.stepped)
        self.backward_pass = BackwardPass(self.loop, self.by_hand)

    def begin(self, rounds: Callable[[int], Round]) -> None:
        """Take the steps to come as ``rounds`` says, one round per optimizer."""
        self._rounds = rounds
        for index, aggregation in self._aggregations.items():
            aggregation.round = rounds(index)
        if self._saved is not None:
            self.restore(self._saved)

    def aggregation(self, index: int) -> Aggregation:
        """Return the aggregation of an optimizer."""
        if index not in self._aggregations:
            assert self._rounds is not None
            known = self._rounds(index)
            self._aggregations[index] = Aggregation(known, self.exchange, self.placement, device=self.module.device)
        return self._aggregations[index]

    def ready(self, index: int, optimizer: Optimizer) -> tuple[Aggregation, list[Tensor]]:
        """Return the aggregation of an optimizer and what it trains now; where that has changed, room is made for it."""
        aggregation = self.aggregation(index)
        trained = trained_by(optimizer)
        known = self._parameters.get(index, [])
        if len(known) != len(trained) or any(one is not other for one, other in zip(known, trained, strict=True)):
            if trained:
                aggregation.fit(named(self.module, trained))
            self._parameters[index] = trained
        return aggregation, trained

    def aggregate(
        self, index: int, optimizer: Optimizer, scaler: torch.amp.GradScaler | None, *, diagnose: bool
    ) -> Report | None:
        """Replace the local gradients of an optimizer's parameters by the aggregate; no report where it trains nothing.

        What several workers on a rank train was settled before their turns; what one of them has frozen or thawed counts from the next step on.
        An aggregate that the optimizer never stepped on leaves no trace in what is remembered.
        """
        settled = not self.placement.one_per_rank and index in self._parameters
        aggregation, trained = (
            self.aggregation(index),
            self._parameters[index] if settled else self.ready(index, optimizer)[1],
        )
        scale, sent = (
            None if scaler is None else _scale(scaler, self.module.device),
            self.loop.sent(aggregation, trained),
        )
        aggregation.withdraw()
        report = aggregation.step(sent, scale=scale, diagnose=diagnose) if trained else None
        aggregated = {id(parameter) for parameter in trained}
        for parameter in (one for group in optimizer.param_groups for one in group["params"]):
            if id(parameter) not in aggregated:
                parameter.grad = None  # nobody else has seen it
        if report is not None:
            self._count(report)
            adopted = report.adopted * self.placement.batches
            self.buffers.adopt(adopted, waiting=aggregation.round.waiting(aggregation.memory))
        return report

    def refuse_second_evaluation(self, index: int, optimizer: Optimizer) -> None:
        """Refuse an optimizer that evaluates its closure twice in a step, if workers have a memory, which is of one gradient a step."""
        if any(self.aggregation(index).round.remembered(torch.empty(0)).values()):
            raise ValueError(
                f"{type(optimizer).__name__} evaluates the gradient several times a step, feeding the workers' memory each time: use"
                " estimator=Gradient()."
            )

    def stepped(self, index: int) -> None:
        """Keep what is remembered since the last aggregate: an optimizer has stepped on it."""
        if index in self._aggregations:
            self._aggregations[index].stepped()
        self.steps += 1

    def refuse_drifted(self, optimizers: Sequence[Optimizer]) -> None:
        """Stop all ranks where they no longer train the same parameters. Every rank must call it."""
        if self.placement.ranks > 1:
            held = held_by(self.module, optimizers)
            if held:
                refuse_drifted(held, self.exchange, self.placement, steps=self.steps)

    def _count(self, report: Report) -> None:
        """Note a step under arrivals that made no update although something usable had arrived, and why; in lock-step three in a row are faults."""
        refused = report.kept and not report.taken and not report.fault and bool(report.census.workers(Arrival.ARRIVED))
        self._tally[refused] += 1
        self._last = report.reason if refused else self._last

    def end(self) -> None:
        """Leave the module alone; say which workers never came back, once."""
        self.by_hand.remove()
        if self._ended:
            return
        self._ended = True
        taken, untaken = self._tally
        if untaken > taken and self._last is not None:
            rank_zero_warn(
                f"{untaken} of {taken + untaken} steps of this fit made no update; the last of them because: {self._last}. Lower f, change weights,"
                " or choose a rule that tolerates more."
            )
        self._tally, self._last = [0, 0], None
        said = [said_at_the_end(aggregation.memory) for aggregation in self._aggregations.values()]
        for warning in filter(None, said):
            rank_zero_warn(warning)

    def consensus(self) -> dict[str, Tensor]:
        """Return what all workers' buffers have in common. Every rank must call it."""
        first = self._aggregations.get(0)
        weights = None if first is None else first.round.worth(first.memory)
        return self.buffers.consensus(self.exchange, self.placement, weights)

    def memories(self) -> dict[str, Any]:
        """Return what a checkpoint must hold. Every rank must call it; rank 0's is whole."""
        for aggregation in self._aggregations.values():
            aggregation.withdraw()  # gradients are not saved: what they left would meet others
        opened = {index: aggregation for index, aggregation in self._aggregations.items() if aggregation.opened}
        return self._file.collect(opened, self.buffers, seed=self._seed)

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over the memories of a checkpoint, now or as soon as the rounds are known."""
        self._saved = saved if self._rounds is None else None
        if self._rounds is not None:
            self._file.restore(saved, {index: self.aggregation(index) for index in saved["optimizers"]}, self.buffers)


def _scale(scaler: torch.amp.GradScaler, device: torch.device) -> float:
    """Return the present scale; a scaler that has scaled nothing yet, since this rank's workers sent nothing, is started."""
    scaler.scale(torch.zeros(1, device=device))
    return scaler.get_scale()
