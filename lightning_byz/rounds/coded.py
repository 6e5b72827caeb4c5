"""The chain of one step under a code: coded rows, attack, location, decoding, and the mean of all parts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from secrets import randbits
from time import perf_counter
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.census import Arrival, Census
from lightning_byz.codes import Code
from lightning_byz.compressors.wire import finite
from lightning_byz.errors import TooManyLiars
from lightning_byz.estimators import Estimator, Gradient
from lightning_byz.exchange import Exchange, Placement, Wire
from lightning_byz.kernels import saturate
from lightning_byz.memory import Memory, Sliced, Vectors
from lightning_byz.random import generator
from lightning_byz.rounds.attackers import ATTACK_STAGE, Attackers
from lightning_byz.rounds.channel import Channel
from lightning_byz.rounds.checks import estimated
from lightning_byz.rounds.coded_wire import CodedWire
from lightning_byz.rounds.coding import DEALT, dealt, refuse_other_code, refuse_other_estimator
from lightning_byz.rounds.counted import census_of, facts_of, with_broken
from lightning_byz.rounds.defence import Defence
from lightning_byz.rounds.report import Report
from lightning_byz.rounds.round import Outcome, Round, Sent, Turn
from lightning_byz.rounds.trying import Trying
from lightning_byz.rounds.untaken import PATIENCE, after_fault
from lightning_byz.stack import Stack

MEAN_STAGE = "mean"
NAMED = "named"
"""Per worker, at how many steps its row did not fit."""


class _Decoded(NamedTuple):
    """What became of a step's rows: the whole that the optimizer steps on, who did not fit, and what is remembered of the mean."""

    whole: Tensor | None
    liars: Sequence[int]
    left: Vectors = MappingProxyType({})
    reason: str = ""
    fault: bool = True


def secret() -> int:
    """Return a number that nobody can know beforehand, below 2 ** 63."""
    return randbits(63)


@dataclass(frozen=True)
class Coded(Round):
    """A step in which the workers of a group compute the same parts, so that liars are named and the mean of all parts is exact.

    Turns are keyed by part, so that a group draws alike. Attackers replace coded rows. What rows are projected on to find liars is drawn on rank 0
    after all rows are there, and told to all ranks. Estimators see the decoded mean, where the rules are.

    Args:
        defence: How many liars there may be, and what keys draws.
        code: Who computes which parts, and what is sent of them.
        estimator: What is made of the decoded mean, coordinate by coordinate.
        attackers: The workers that attack in this experiment.
        draw: Returns the seed of a step's projection.

    """

    defence: Defence
    code: Code
    estimator: Estimator = field(default_factory=Gradient)
    attackers: Attackers = field(default_factory=Attackers)
    draw: Callable[[], int] = secret

    points = 1  # pyright: ignore[reportIncompatibleVariableOverride]
    silence_is_zero: ClassVar[bool] = True

    @property
    def workers(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of logical workers, n."""
        return self.defence.workers

    # ------------------------------------------------------------------ what is remembered

    def remembered(self, like: Float[Tensor, " d"]) -> Mapping[str, Vectors]:
        """Return nothing: what is remembered is of the mean."""
        return {}

    def realigned(
        self, remembered: Mapping[str, Vectors], realign: Callable[[Tensor, float], Tensor]
    ) -> Mapping[str, Vectors]:
        """Return what a worker remembers, which is nothing."""
        return remembered

    def refuse_foreign(self, step: int, counts: Mapping[str, Sequence[int]]) -> None:
        """Refuse the memory of a run without a code, or under another one."""
        refuse_other_code(self.code, counts, workers=self.workers)

    def loaded(self, memory: Memory, local: Sequence[int], device: torch.device) -> Memory:
        """Return the memory; refuse that of another estimator."""
        known = memory.rules[MEAN_STAGE].values if MEAN_STAGE in memory.rules else {}
        refuse_other_estimator(sorted(known), self.estimator, taken=NAMED in memory.counts)
        return memory

    def wire_of(self, stage: str, wire: Wire) -> Wire:
        """Return the wire of coded rows for what attacks remember of them."""
        assert isinstance(wire, CodedWire)
        return wire.coded if stage == ATTACK_STAGE else wire

    # ------------------------------------------------------------------ turns and rows

    def turns(self, memory: Memory, placement: Placement, position: tuple[int, ...]) -> Sequence[Turn]:
        """Return each local worker's turns, one per part, keyed by part."""
        parts, acting, turns = self.code.parts(self.workers), self.attackers.acting, []
        for worker in placement.local:
            for k, part in enumerate(parts[worker]):
                seat = worker + k * self.workers
                turns.append(Turn(worker, ("step", *position, part), attacks=worker in acting, seat=seat))
        return turns

    def poisoned(self, turn: Turn, batch: Any) -> Any:
        """Return what an attacker makes of a batch of its."""
        if self.attackers.attack is None:
            return batch
        draws = generator(self.defence.seed, "poison", *turn.key, turn.worker)
        return self.attackers.attack.poison(batch, generator=draws)

    def slack(self, dtype: torch.dtype) -> float:
        """Return how far apart honest gradients of a part may be."""
        return self.code.tolerance(dtype)

    def opened(
        self, exchange: Exchange, total: int, *, dtype: torch.dtype, device: torch.device, placement: Placement
    ) -> Wire:
        """Return a wire of coded rows."""
        return CodedWire(self.code, exchange, total, dtype=dtype, device=device, placement=placement)

    def rooms(self, wire: Wire) -> Mapping[int, Sequence[Tensor]]:
        """Return vectors that all local workers share: a row is made of them as soon as they are full."""
        assert isinstance(wire, CodedWire)
        return dict.fromkeys(wire.local, wire.gradients)

    def told(self, worker: int, gradients: Sequence[Tensor], wire: Wire) -> Sequence[Tensor]:
        """Encode a worker's gradients to its row."""
        assert isinstance(wire, CodedWire)
        return [self.code.encode(worker, gradients, wire.where, workers=self.workers, out=wire.row(worker))]

    # ------------------------------------------------------------------ the step

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
        """Deliver coded rows, attack, find liars, decode, estimate, assemble; a step in which rows do not fit is not taken."""
        assert isinstance(wire, CodedWire)
        started, moved, n = perf_counter(), (wire.received, wire.sent), self.workers
        for worker in wire.local:
            if worker not in sent:
                wire.row(worker).fill_(torch.nan)
        rows, facts = wire.deliver(range(n), facts_of(sent, workers=n, parameters=parameters))
        arrived = perf_counter()
        census = census_of(facts.tolist(), None, workers=n)
        stack, census, past = self._attacked(memory, rows, census, wire)
        length = wire.row(wire.local[0]).nbytes
        report = Report(memory.step, False, census, f=self.defence.f, message_bytes=length)
        if diagnose:
            report = replace(report, norms=stack.squared_norms().sqrt().cpu())
        found = self._decoded(memory, stack, wire, scale)
        ruled = perf_counter()
        report = replace(report, taken=found.whole is not None, named=found.liars, reason=found.reason)
        if found.whole is None:
            told = f"{PATIENCE} steps in a row could not be taken; the last because of this. {found.reason}"
            after = after_fault(memory, told, fault=found.fault)
        else:
            report = replace(report, coefficients=self._shares(found.liars), aggregate_bytes=found.whole.nbytes)
            after = self._committed(memory, found, past, wire)
        seconds = {"exchange_seconds": arrived - started, "rule_seconds": ruled - arrived}
        return Outcome(found.whole, after, replace(report, **seconds, **wire.moved_since(moved)))

    def _attacked(
        self, memory: Memory, rows: Tensor, census: Census, wire: CodedWire
    ) -> tuple[Stack, Census, dict[str, Tensor]]:
        """The rows as the rules get them, NaN in those that are broken or absent, and what the attack remembers of this step."""
        out = torch.tensor([word is not Arrival.ARRIVED for word in census.arrival])
        sent = Stack(rows, f=self.defence.f, slice=wire.coded.slice)
        honest = sent.excluding(out, faulty=False).inspected(torch.zeros(self.workers, dtype=torch.int64))
        past = self.attackers.remembered(memory, honest, census)
        tried = Trying(**vars(self.defence), code=self.code, where=wire.where)
        replaced = self.attackers.replaced(honest, census, memory, tried, channel=Channel())
        census = with_broken(census, replaced.broken, None)
        rows = replaced.stack.vectors
        rows[[worker for worker, word in enumerate(census.arrival) if word is not Arrival.ARRIVED]] = torch.nan
        return Stack(rows, f=sent.f, slice=sent.slice), census, past

    def _decoded(self, memory: Memory, stack: Stack, wire: CodedWire, scale: float | None) -> _Decoded:
        """Find who does not fit, on a projection that is drawn after all rows are there, and what the others say; every rank finds the same."""
        draws = torch.Generator().manual_seed(wire.drawn(self.draw))
        try:
            projections = self.code.project(stack.vectors, wire.where, stack.slice, generator=draws)
            liars = self.code.locate(projections, dtype=stack.vectors.dtype)
        except TooManyLiars as error:
            overflown = scale is not None and scale > 1.0 and self._beyond_liars(error)
            return _Decoded(None, error.liars, reason=str(error), fault=not overflown)
        mean = self.code.decode(stack.vectors, liars, wire.where, stack.slice)
        mean = mean if scale is None else mean.mul_(1.0 / scale)
        mean = mean if mean.dtype == wire.dtype else saturate(mean.double(), wire.dtype)
        vector, left = self._estimated(memory, mean)
        if finite(whole := wire.assemble(vector)):
            return _Decoded(whole, liars, left)
        reason = f"{type(self.estimator).__name__} made of a finite mean what is not finite."
        return _Decoded(None, liars, reason=reason)

    def _beyond_liars(self, error: TooManyLiars) -> bool:
        """Whether more rows are not finite than liars can send, in each group whose rows fit nothing: gradients overflowed."""
        groups = [set(group) for group in self.code.groups(self.workers) if set(group) & set(error.workers)]
        return all(len(group & set(error.broken)) > self.code.s for group in groups)

    def _shares(self, liars: Sequence[int]) -> Tensor:
        """Each row's part of the mean, alike among the rows of a group that fit: any of them could be left out."""
        shares, groups = torch.zeros(self.workers, dtype=torch.float64), self.code.groups(self.workers)
        for group in groups:
            honest = [worker for worker in group if worker not in liars]
            shares[honest] = 1.0 / (len(groups) * len(honest))
        return shares

    def _estimated(self, memory: Memory, mean: Tensor) -> tuple[Tensor, Vectors]:
        """What is made of this rank's part of the mean, and what is remembered of that."""
        known = memory.rules[MEAN_STAGE].values if MEAN_STAGE in memory.rules else self.estimator.init(mean)
        return estimated(self.estimator, known, [mean], count=max(memory.counts.get("adopted", [0])))

    def _committed(self, memory: Memory, found: _Decoded, past: dict[str, Tensor], wire: CodedWire) -> Memory:
        """What is remembered after a step that was taken."""
        vectors = {name: value for name, value in found.left.items() if isinstance(value, Tensor)}
        rules = {MEAN_STAGE: Sliced(vectors, wire.slice)} if vectors else {}
        rules |= {ATTACK_STAGE: Sliced(past, wire.coded.slice)} if past else {}
        before = memory.counts.get(NAMED, [0] * self.workers)
        named = [count + (worker in found.liars) for worker, count in enumerate(before)]
        adopted = [1 + max(memory.counts.get("adopted", [0]))] * self.workers
        counts = {"adopted": adopted, NAMED: named, DEALT: dealt(self.code, self.workers)}
        return Memory(memory.step + 1, 0, {}, rules, counts, {})
