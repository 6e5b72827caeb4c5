"""A step of the server: one worker's message arrives, and every so many arrivals the rules see the last message of each."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from lightning_byz.arrivals import Arrivals, Schedule
from lightning_byz.memory import NOWHERE, Memory, Vectors
from lightning_byz.rounds.arriving import Arriving
from lightning_byz.rounds.defence import Defence
from lightning_byz.rounds.ledger import Counts, Ledger
from lightning_byz.rounds.pending import PENDING, PROPOSED
from lightning_byz.rounds.plan import Plan
from lightning_byz.rounds.report import Report
from lightning_byz.rounds.round import Outcome, Sent
from lightning_byz.rounds.table import Judge
from lightning_byz.rounds.usage import Usage
from lightning_byz.serving.messages import POINT, Remembered
from lightning_byz.stack import Stack

UPDATES = "updates"
"""Among a memory's counts: the updates so far, which tell a run of this kind from others."""


class AsTheyCome(Arrivals):
    """Who delivers when is seen when it happens: workers go at their own pace, and nothing about it is repeatable.

    Args:
        byzantine_share: The part of the weight that may be Byzantine, where that is stated; ``None`` where ``f`` says it in heads.

    """

    def __init__(self, byzantine_share: float | None = None) -> None:
        self.byzantine_share = byzantine_share

    def __repr__(self) -> str:
        """Say it as start-up lines do."""
        return "arrivals as they come"

    def schedule(self, workers: int, attackers: Sequence[int], seed: int) -> Schedule:
        """Refuse to know it beforehand."""
        raise ValueError("Who delivers when is not known before a run of workers that go at their own pace.")


@dataclass
class Desk:
    """The message that the server has before it.

    Args:
        worker: Whose it is.
        turn: Its number among the worker's turns.
        version: The number of updates at the point where it was computed.
        updates: The number of updates now.
        ruled: Whether the rules see the table now, or more arrivals are waited for.

    """

    worker: int = 0
    turn: int = 0
    version: int = 0
    updates: int = 0
    ruled: bool = True


@dataclass(frozen=True)
class _FetchedLedger(Ledger):
    """Counts messages from the point where they were computed; ages are in updates."""

    desk: Desk = field(default_factory=Desk)

    def fetched(
        self,
        known: Counts,
        computing: Container[int],
        told: Sequence[int],
        used: Sequence[int],
        *,
        scaled: bool = False,
    ) -> dict[str, Sequence[int]]:
        """Return the counts with the message that is there."""
        counts = super().fetched(known, computing, told, used, scaled=scaled)
        versions, turns = list(counts["fetched"]), list(counts["turns"])
        versions[self.desk.worker], turns[self.desk.worker] = self.desk.version, self.desk.turn + 1
        return {**counts, "fetched": versions, "turns": turns, UPDATES: [self.desk.updates] * self.workers}

    def ages(self, counts: Counts) -> list[int]:
        """Return the updates since each row in use was computed."""
        return [0 if version == NOWHERE else self.desk.updates - version for version in counts["row"]]


@dataclass(frozen=True)
class _Waiting(Judge):
    """Lets the rules wait for more arrivals."""

    def tolerated(self, stack: Stack, report: Report, counts: Counts) -> tuple[Stack | None, Report, Counts]:
        """Return no stack."""
        return None, replace(report, reason="more arrivals are waited for (every=)"), counts


@dataclass(frozen=True)
class Serving(Arriving):
    """A step at which one worker's message arrives, as its worker has estimated it. What workers remember is at the workers.

    Args:
        desk: The message that is there.

    """

    desk: Desk = field(default_factory=Desk)

    @property
    def points(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How many gradients arrive of a worker: its message is the only one."""
        return 1

    @property
    def due(self) -> Callable[[int], list[int]]:  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
        """Return who delivers."""
        return lambda _: [self.desk.worker]

    def computing(self, step: int) -> Sequence[int]:
        """Return who delivers."""
        return [self.desk.worker]

    @property
    def judge(self) -> Judge:
        """What says how the rows of the table count."""
        kind = Judge if self.desk.ruled else _Waiting
        return kind(self.weighing, self.defence.f, self.attackers.workers)

    def ledger(self, memory: Memory, usage: Usage) -> Ledger:
        """Return what counts at a step."""
        return _FetchedLedger(memory.step, self.workers, 1, usage, self.desk)

    def remembered(self, like: Tensor) -> Mapping[str, Vectors]:
        """Return what a worker has handed over of its memory, blank: the estimator's, how many were adopted, and where the last was made."""
        point = {POINT: {"point": like}} if self.estimator.points > 1 else {}
        return {"estimator": self.estimator.init(like), "adopted": {"count": 0}, **point}

    def refuse_foreign(self, step: int, counts: Counts) -> None:
        """Refuse the memory of a run in lock-step, or with arrivals by a schedule."""
        if step and UPDATES not in counts:
            raise ValueError(
                "The checkpoint is of a run of RobustStrategy, whose workers do not go at their own pace: resume with that, or start a new run from"
                " the weights alone."
            )

    def take(self, memory: Memory, sent: Mapping[int, Sent], wire: Any, **rest: Any) -> Outcome:
        """Take the message that is there; of workers nothing is remembered."""
        outcome = super().take(memory, sent, wire, **rest)
        return Outcome(outcome.vector, replace(outcome.memory, workers={}), outcome.report)

    def _waiting(
        self, memory: Memory, sent: Mapping[int, Sent], scale: float | None
    ) -> dict[int, Mapping[str, Vectors]]:
        """Return the messages, which have been estimated already."""
        return {worker: {PENDING: {"message": own.gradients[0]}, PROPOSED: {}} for worker, own in sent.items()}


def handed_over(memory: Memory, remembered: Mapping[int, Remembered]) -> Memory:
    """Return a memory as a file is to have it: with what workers have told of theirs."""
    workers = {
        worker: {
            "estimator": own.memory,
            "adopted": {"count": own.adopted},
            **({} if own.point is None else {POINT: {"point": own.point}}),
        }
        for worker, own in remembered.items()
    }
    return replace(memory, workers=workers)


def remembered_by(memory: Memory) -> dict[int, Remembered]:
    """Return what workers have told of their memories, from a file's."""
    found: dict[int, Any] = {}
    for worker, stages in memory.workers.items():
        if "adopted" in stages:
            point = stages[POINT]["point"] if POINT in stages else None
            found[worker] = Remembered(stages["estimator"], int(stages["adopted"]["count"]), point)  # type: ignore[arg-type]
    return found


@dataclass(frozen=True)
class ServingPlan(Plan):
    """What the steps of a server are made of besides its rules.

    Args:
        desk: The message that is there.

    """

    desk: Desk = field(default_factory=Desk)

    def round(self, defence: Defence) -> Serving:
        """Return what a step is, behind these rules."""
        rest = (self.channel(defence.seed, defence.optimizer), self.arrivals, self.weighing(defence), self.desk)
        return Serving(defence, self.estimator, self.attackers, *rest)

    def check(self, defence: Defence, steps: int | None) -> None:
        """Refuse rules that weights by counts do not suit."""
        several = [2.0, *[1.0] * (defence.workers - 1)]
        replace(defence, weights=several, f=0.0, share=None).check()
