"""A step at which some workers' messages arrive, and rules see the last message of each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from time import perf_counter
from typing import ClassVar

import torch
from torch import Tensor

from lightning_byz.arrivals import Arrivals, Schedule, Synchronous
from lightning_byz.arrivals.arrivals import due_at, schedule_of
from lightning_byz.census import Arrival, Census
from lightning_byz.exchange import Placement, Wire
from lightning_byz.memory import NOWHERE, Memory, Sliced, Vectors
from lightning_byz.rounds.attackers import ATTACK_STAGE
from lightning_byz.rounds.checks import share_memory
from lightning_byz.rounds.ends import without_aggregate
from lightning_byz.rounds.ledger import Counts, Ledger, refuse_foreign
from lightning_byz.rounds.overflow import overflowing, telling
from lightning_byz.rounds.pending import PENDING, PROPOSED, adopted, hand_over, points_of
from lightning_byz.rounds.report import Report
from lightning_byz.rounds.robust import Robust
from lightning_byz.rounds.round import Outcome, Sent, Turn
from lightning_byz.rounds.rows import reference_of
from lightning_byz.rounds.table import TABLE, Judge, kept_rows, rows_of, updated
from lightning_byz.rounds.untaken import after_refusal
from lightning_byz.rounds.usage import Usage
from lightning_byz.rounds.weighing import Weighing
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class Arriving(Robust):
    """A step of workers that are stale: those that are due deliver what they computed at parameters that they fetched earlier.

    Whoever delivered at the step before computes first thing, at the module's own parameters, and the message waits, with the memory that it would
    leave, until its worker is due again; at step 0 everyone computes and delivers. The rules see a table of the last usable message of each worker.
    What arrives is kept whether or not an update can be made of the table.

    Args:
        arrivals: Which workers deliver at each step.
        weighing: How much each row of the table counts, and what part of that may be Byzantine.

    """

    adds_up: ClassVar[bool] = False

    arrivals: Arrivals = field(default_factory=Synchronous)
    weighing: Weighing = field(default_factory=Weighing)

    @property
    def judge(self) -> Judge:
        """What says how the rows of the table count."""
        return Judge(self.weighing, self.defence.f, self.attackers.workers)

    def ledger(self, memory: Memory, usage: Usage) -> Ledger:
        """Return what counts at a step."""
        return Ledger(memory.step, self.workers, self.points, usage)

    # ------------------------------------------------------------------ turns

    @cached_property
    def schedule(self) -> Schedule:
        """Who delivers when in this run."""
        return schedule_of(self.arrivals, self.workers, self.attackers.workers, self.defence.seed)

    def computing(self, step: int) -> Sequence[int]:
        """Return who computes at a step: who delivered at the one before, and everyone at the first."""
        return self.due(step - 1) if step else range(self.workers)

    @cached_property
    def due(self) -> Callable[[int], list[int]]:
        """Who delivers at a step; asked several times of each."""
        return lru_cache(maxsize=4)(partial(due_at, self.schedule, workers=self.workers))

    def turns(self, memory: Memory, placement: Placement, position: tuple[int, ...]) -> Sequence[Turn]:
        """Return the turns of the local workers that compute at this step."""
        computing = self.computing(memory.step)
        return self._turns([worker for worker in computing if worker in placement.local], memory, position)

    def taken(self, memory: Memory, worker: int) -> int:
        """Return how many turns a worker has taken."""
        return memory.counts["turns"][worker] if memory.counts else 0

    def worth(self, memory: Memory) -> Sequence[float] | None:
        """Return the deliveries of each worker: who came rarely has old statistics."""
        return memory.counts.get("accepted")

    def waiting(self, memory: Memory) -> Sequence[int]:
        """Return the workers whose message waits."""
        return [worker for worker, step in enumerate(memory.counts.get("fetched", ())) if step != NOWHERE]

    # ------------------------------------------------------------------ what is remembered

    def remembered(self, like: Tensor) -> Mapping[str, Vectors]:
        """Return the estimator's blank memory, the one that a waiting message would leave, that message, and the worker's end of the link."""
        blank = self.estimator.init(like)
        ends = self.channel.ends.remembered(like)
        return {"estimator": blank, PENDING: {"message": like}, PROPOSED: blank, **ends}

    def realigned(
        self, remembered: Mapping[str, Vectors], realign: Callable[[Tensor, float], Tensor]
    ) -> Mapping[str, Vectors]:
        """Return what a worker remembers for other parameters: a waiting message is zero where they are new."""
        waiting = {PENDING: {"message": realign(remembered[PENDING]["message"], 0.0)}} if PENDING in remembered else {}  # type: ignore[arg-type]
        others = {stage: values for stage, values in remembered.items() if stage != PENDING}
        return {**super().realigned(others, realign), **waiting}

    def unstepped(self, before: Memory, after: Memory) -> Memory:
        """Return what is remembered without a step on the aggregate: what has arrived, and of aggregates up to the last one with a step."""
        return without_aggregate(before, after)

    def relaid(self, memory: Memory) -> Memory:
        """Take all parameters as used by the rows that were made for others."""
        return replace(memory, counts=Usage.forgotten(memory.counts))

    def refuse_foreign(self, step: int, counts: Counts) -> None:
        """Refuse the memory of a run in lock-step, or with other arrivals."""
        refuse_foreign(step, counts, self.computing, workers=self.workers)

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
        """Estimate, let messages wait, deliver those that are due, sanitise, attack, sanitise; aggregate the table, assemble.

        The table of the memory is written in place; it is as it was if this raises.
        """
        with kept_rows(memory, self.due(memory.step)) as before:
            return self._taken(memory, sent, wire, parameters, scale, before=before, diagnose=diagnose)

    def _taken(
        self,
        memory: Memory,
        sent: Mapping[int, Sent],
        wire: Wire,
        parameters: int,
        scale: float | None,
        *,
        before: Tensor | None,
        diagnose: bool,
    ) -> Outcome:
        """The step; ``before`` are the rows of those that are due."""
        started, moved, due = perf_counter(), (wire.received, wire.sent), self.due(memory.step)
        ledger = self.ledger(memory, Usage(parameters, self.workers))
        workers = self._waiting(memory, sent, scale)
        over = overflowing({worker: workers[worker][PENDING]["message"] for worker in sent}, scale)  # type: ignore[misc]
        workers |= {worker: memory.workers.get(worker, {}) for worker in over}
        hand_over(workers, due, wire)
        used = ledger.usage.told({worker: own.used for worker, own in sent.items()})
        told_now = torch.cat([telling(sent, over, workers=self.workers), used])
        delivered = self.channel.deliver(memory, due, told_now, wire, apart=self.attackers.acting)
        arrived = perf_counter()
        facts, told = delivered.facts.tolist(), len(due) + self.workers
        computing, heard_of = self.computing(memory.step), facts[len(due) : told]
        fetched = ledger.fetched(memory.counts, computing, heard_of, facts[told:], scaled=scale is not None)
        arrival = ledger.arrival(fetched, dict(zip(due, facts, strict=False)))
        counts = ledger.accepted(fetched, arrival)
        table = updated(rows_of(memory), delivered.vectors, due, arrival)
        stack, census = self._seen(table, ledger, counts, arrival, memory, wire)
        past = self.attackers.remembered(memory, stack, census)
        behind = {"channel": self.channel, "shapes": wire.shapes}
        attacked, broken, played = self.attackers.replaced(stack, census, memory, self.defence, **behind)
        if not share_memory(attacked.vectors, table):  # rules see a copy while somebody has sent nothing usable yet
            table[due] = attacked.vectors[due]
        if broken:
            arrival = [Arrival.BROKEN if worker in broken else word for worker, word in enumerate(arrival)]
            counts = ledger.accepted(fetched, arrival)
            table[broken] = 0.0 if before is None else before[[due.index(worker) for worker in broken]]
        if attacked is not stack:
            stack, census = self._seen(table, ledger, counts, arrival, memory, wire)
        report = Report(memory.step, False, census, kept=True, message_bytes=delivered.message_bytes)
        tried, report, counts = self.judge.tolerated(stack, report, counts)
        vector, report = (None, report) if tried is None else self._aggregated(tried, report, diagnose=diagnose)
        ruled = perf_counter()
        back = None if tried is None else self._returned(vector, tried, memory, wire)
        exchanged = perf_counter() - ruled + arrived - started
        left = {
            TABLE: Sliced({"rows": table}, wire.slice),
            **({ATTACK_STAGE: Sliced(past, wire.slice)} if past else {}),
        }
        left |= self.channel.ends.kept(memory, census, delivered.rules, played, wire.slice)
        points = points_of(memory, sent, counts, wire) if self.points > 1 else {}
        after = adopted(workers, delivered.workers, due, census, wire)
        rules = {**{stage: values for stage, values in memory.rules.items() if stage != ATTACK_STAGE}, **left}
        kept = replace(memory, workers=after, rules=rules, counts=counts, points=points)
        if back is None or back.whole is None:
            report = replace(report, taken=False, reason=report.reason or (back.reason if back else ""))
            left = after_refusal(kept, report, counts=scale is None or scale <= 1.0)
        else:
            report = replace(report, aggregate_bytes=self.channel.aggregate_bytes(back.whole, wire.shapes))
            after, rules = kept.workers_after(back.workers), {**kept.rules, **back.rules}
            left = replace(kept, step=memory.step + 1, faults=0, workers=after, rules=rules)
        report = replace(report, exchange_seconds=exchanged, rule_seconds=ruled - arrived, **wire.moved_since(moved))
        return Outcome(None if back is None else back.whole, left, report)

    def _waiting(
        self, memory: Memory, sent: Mapping[int, Sent], scale: float | None
    ) -> dict[int, Mapping[str, Vectors]]:
        """What each local worker remembers once those that computed have made their message, which waits."""
        workers = dict(memory.workers)
        for worker, own in sent.items():
            row = own.gradients[0]
            message, left = self._estimated(memory, worker, own, scale)
            known = dict(workers.get(worker, {}))
            if self.points > 1:  # one point, one memory: that of the last turn
                known.pop("estimator", None)
            message = row.clone() if share_memory(message, row) else message
            workers[worker] = {**known, PENDING: {"message": message}, PROPOSED: left}
        return workers

    def _seen(
        self, rows: Tensor, ledger: Ledger, counts: Counts, arrival: Sequence[Arrival], memory: Memory, wire: Wire
    ) -> tuple[Stack, Census]:
        """The table as rules see it, and what is known of it."""
        reference = reference_of(memory) if self.defence.uses_reference else None
        judged = self.judge.judged(rows, ledger, counts, reference=reference, slice=wire.slice)
        return judged.stack, Census(arrival, judged.weights, ledger.ages(counts), judged.used)
