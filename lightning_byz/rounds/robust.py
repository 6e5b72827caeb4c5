"""The chain of one step: estimates, their way to the rules, attack, rules, and the way back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.census import Arrival, Census
from lightning_byz.errors import ToleranceError, TooManyFaults
from lightning_byz.estimators import Estimator, Gradient
from lightning_byz.exchange import Placement, Wire
from lightning_byz.memory import Memory, Sliced, Vectors, map_vectors
from lightning_byz.random import generator
from lightning_byz.rounds.attackers import ATTACK_STAGE, Attackers
from lightning_byz.rounds.channel import Channel, Shapes
from lightning_byz.rounds.checks import estimated, plain
from lightning_byz.rounds.coded_memory import NAMED
from lightning_byz.rounds.counted import census_of, facts_of, with_broken
from lightning_byz.rounds.defence import Defence
from lightning_byz.rounds.ends import DOWN_STAGE, LINK_STAGE
from lightning_byz.rounds.report import Report, diagnosed
from lightning_byz.rounds.returning import Returned, returned
from lightning_byz.rounds.round import Outcome, Round, Sent, Turn
from lightning_byz.rounds.rows import REFERENCE, present, reference_of
from lightning_byz.rounds.untaken import after_untaken
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class Robust(Round):
    """A step in which every worker sends its estimate of the gradient, and robust rules make one vector of them.

    Args:
        defence: The rules.
        estimator: What a worker sends instead of its raw gradient.
        attackers: The workers that attack in this experiment.
        channel: The way of messages to the rules.

    """

    wide: ClassVar[frozenset[str]] = frozenset({LINK_STAGE, DOWN_STAGE})

    defence: Defence
    estimator: Estimator = field(default_factory=Gradient)
    attackers: Attackers = field(default_factory=Attackers)
    channel: Channel = field(default_factory=Channel)

    @property
    def workers(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of logical workers, n."""
        return self.defence.workers

    @property
    def points(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How many gradients the estimator asks for."""
        return self.estimator.points

    def check(self, shapes: Shapes, *, sliced: bool) -> None:
        """Refuse what the channel cannot compress."""
        self.channel.check(shapes, sliced=sliced)

    def remembered(self, like: Float[Tensor, " d"]) -> Mapping[str, Vectors]:
        """Return the estimator's blank memory, and that of the worker's end of the link."""
        return {"estimator": self.estimator.init(like), **self.channel.ends.remembered(like)}

    def realigned(
        self, remembered: Mapping[str, Vectors], realign: Callable[[Tensor, float], Tensor]
    ) -> Mapping[str, Vectors]:
        """Return what a worker remembers for other parameters."""
        return {
            stage: map_vectors(values, lambda vector: realign(vector, 0.0))
            if stage in self.wide
            else self.estimator.realigned(values, realign)
            for stage, values in remembered.items()
        }

    def turns(self, memory: Memory, placement: Placement, position: tuple[int, ...]) -> Sequence[Turn]:
        """Return each local worker's turn, after the one at its own earlier point if the estimator asks for that."""
        return self._turns(placement.local, memory, position)

    def _turns(self, workers: Sequence[int], memory: Memory, position: tuple[int, ...]) -> Sequence[Turn]:
        turns, acting = [], self.attackers.acting
        for worker in workers:
            visible = Turn(worker, ("step", *position, worker), attacks=worker in acting)
            if self.points > 1:
                turns.append(replace(visible, point=memory.point(worker), visible=False))
            turns.append(visible)
        return turns

    def refuse_foreign(self, step: int, counts: Mapping[str, Sequence[int]]) -> None:
        """Refuse the memory of a run in which messages waited."""
        if NAMED in counts:
            raise ValueError(
                "The checkpoint is of a run with code=, whose estimate is of the decoded mean: resume with the same code, or start a new run from"
                " the weights alone."
            )
        if "turns" in counts:
            raise ValueError(
                "The checkpoint is of a run with arrivals=, in which messages wait: resume with the same arrivals, or start a new run from the"
                " weights alone."
            )

    def saved(self, memory: Memory) -> Memory:
        """Return the memory without what follows from the rest of it."""
        return self.channel.ends.saved(memory)

    def loaded(self, memory: Memory, local: Sequence[int], device: torch.device) -> Memory:
        """Return the memory with what follows from it; refuse that of another link."""
        return self.channel.ends.loaded(memory, local, device)

    def poisoned(self, turn: Turn, batch: Any) -> Any:
        """Return what an attacker makes of its batch."""
        if self.attackers.attack is None:
            return batch
        return self.attackers.attack.poison(batch, generator=generator(self.defence.seed, "poison", *turn.key))

    def take(
        self,
        memory: Memory,
        sent: Mapping[int, Sent],
        wire: Wire,
        *,
        parameters: int,
        scale: float | None = None,
        diagnose: bool = False,
    ) -> Outcome:
        """Estimate, deliver, sanitise, attack, sanitise, aggregate, assemble; commit what was accepted if the step is taken."""
        started, moved = perf_counter(), (wire.received, wire.sent)
        proposed = self._estimate(memory, sent, wire, scale)
        told, about = facts_of(sent, workers=self.workers, parameters=parameters), {"apart": self.attackers.acting}
        vectors, facts, ends, known, length = self.channel.deliver(memory, range(self.workers), told, wire, **about)
        proposed = {worker: {"estimator": left, **ends.get(worker, {})} for worker, left in proposed.items()}
        arrived = perf_counter()
        census = census_of(facts.tolist(), self.defence.weights, workers=self.workers)
        away = census.workers(Arrival.ABSENT)
        stack = self.defence.stack(vectors, slice=wire.slice, reference=reference_of(memory), absent=away)
        tried, reason, left = None, "", {}
        try:
            honest = present(stack.inspected(facts[: self.workers]), census).sanitised()
            past = self.attackers.remembered(memory, honest, census)
            behind = {"channel": self.channel, "shapes": wire.shapes}
            stack, broken, played = self.attackers.replaced(honest, census, memory, self.defence, **behind)
            census = with_broken(census, broken, self.defence.weights)
            stack = stack.sanitised()
            left = {ATTACK_STAGE: Sliced(past, wire.slice)} if past else {}
            left |= self.channel.ends.kept(memory, census, known, played, wire.slice)
            tried = stack if self.defence.weight(census.workers(Arrival.ARRIVED)) > 0 else None
        except TooManyFaults as error:
            reason = str(error)
        report = Report(memory.step, False, census, reason=reason, message_bytes=length)
        vector, report = (None, report) if tried is None else self._aggregated(tried, report, diagnose=diagnose)
        ruled = perf_counter()
        back = None if tried is None else self._returned(vector, tried, memory, wire)
        seconds = {"exchange_seconds": perf_counter() - ruled + arrived - started, "rule_seconds": ruled - arrived}
        if back is None or back.whole is None:
            report = replace(report, taken=False, reason=report.reason or (back.reason if back else ""))
            after = after_untaken(memory, report, self.defence, counts=scale is None or scale <= 1.0)
        else:
            adopted = {worker: own for worker, own in proposed.items() if census.arrival[worker] is Arrival.ARRIVED}
            report = replace(report, aggregate_bytes=self.channel.aggregate_bytes(back.whole, wire.shapes))
            workers = memory.workers_after(adopted, back.workers)
            after = self._committed(memory, workers, {**left, **back.rules}, sent, census, wire)
        return Outcome(back and back.whole, after, replace(report, **seconds, **wire.moved_since(moved)))

    def _returned(self, vector: Tensor | None, stack: Stack, memory: Memory, wire: Wire) -> Returned:
        """What all ranks step on, and what is remembered of it where rules read it."""
        name = type(self.defence.aggregator).__name__
        back = returned(vector, stack, wire, name=name, channel=self.channel, memory=memory)
        if back.part is None or not self.defence.uses_reference:
            return back
        reference = {REFERENCE: Sliced({"aggregate": back.part.clone()}, wire.slice)}
        return Returned(back.whole, back.part, {**back.rules, **reference}, back.workers)

    def _aggregated(self, stack: Stack, report: Report, *, diagnose: bool) -> tuple[Tensor | None, Report]:
        """This rank's part of the aggregate, and the report of it; none where a rule does not tolerate who is left."""
        report = replace(report, f=stack.f)
        try:
            vector, coefficients = self.defence.aggregate(stack, step=report.step)
        except ToleranceError as error:
            return None, replace(report, reason=str(error))
        report = replace(report, taken=True, coefficients=None if coefficients is None else coefficients.cpu())
        if diagnose:
            kappa = self.defence.kappa(stack)
            report = diagnosed(report, stack, vector, attackers=self.attackers.acting, kappa=kappa)
        return vector, report

    def _estimate(
        self, memory: Memory, sent: Mapping[int, Sent], wire: Wire, scale: float | None
    ) -> dict[int, Vectors]:
        """Write the message of each local worker that computed to its row, and return what each would remember."""
        proposed = {}
        for worker in wire.local:
            row = wire.row(worker)
            if (own := sent.get(worker)) is None:
                row.zero_()
                continue
            estimate, proposed[worker] = self._estimated(memory, worker, own, scale)
            if estimate is not row:
                row.copy_(estimate)
        return proposed

    def _estimated(self, memory: Memory, worker: int, own: Sent, scale: float | None) -> tuple[Tensor, Vectors]:
        """What a local worker makes of its gradients, and what it would remember of that."""
        if scale is not None:
            for gradient in own.gradients:
                gradient.mul_(1.0 / scale)
        stages = memory.workers.get(worker, {})
        known = stages["estimator"] if "estimator" in stages else plain(self.estimator.init(own.gradients[0]))
        adopted = memory.counts.get("adopted", [0] * self.workers)
        return estimated(self.estimator, known, own.gradients, count=adopted[worker])

    def _committed(
        self,
        memory: Memory,
        workers: Mapping[int, Mapping[str, Vectors]],
        rules: Mapping[str, Sliced],
        sent: Mapping[int, Sent],
        census: Census,
        wire: Wire,
    ) -> Memory:
        """What is remembered after a step that was taken."""
        accepted = [word is Arrival.ARRIVED for word in census.arrival]
        before = memory.counts.get("adopted", [0] * self.workers)
        counted = {"adopted": [count + here for count, here in zip(before, accepted, strict=True)]}
        points: Mapping[int, Tensor] = {}
        if self.points > 1:
            counted["point"], points = memory.points_after(
                accepted, {worker: own.point for worker, own in sent.items()}, wire.local
            )
        return Memory(memory.step + 1, 0, workers, rules, counted, points)
