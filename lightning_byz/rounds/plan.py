"""What the steps of a run are made of besides its rules, and what of that cannot be right."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lightning_byz.arrivals import Arrivals, Schedule, Synchronous
from lightning_byz.arrivals.arrivals import due_at, schedule_of
from lightning_byz.codes import Code
from lightning_byz.compressors import Compressor, Identity
from lightning_byz.estimators import Estimator, Gradient
from lightning_byz.exchange import Placement
from lightning_byz.links import Direct, Downlink, Link
from lightning_byz.memory import Memory
from lightning_byz.rounds.arriving import Arriving
from lightning_byz.rounds.attackers import Attackers
from lightning_byz.rounds.channel import Channel
from lightning_byz.rounds.coded import Coded
from lightning_byz.rounds.coding import check_spread, described
from lightning_byz.rounds.defence import Defence
from lightning_byz.rounds.robust import Robust
from lightning_byz.rounds.round import Round
from lightning_byz.rounds.weighing import COUNTED, Weighing
from lightning_byz.rounds.weights import capped

NEAR, FAR = 100, 10_000
"""Steps up to which a schedule is looked at: at least, and where shares are counted of a run without an end."""


@dataclass(frozen=True)
class Plan:
    """What the steps of a run are made of besides its rules.

    Args:
        estimator: What a worker sends instead of its raw gradient.
        attackers: The workers that attack in this experiment.
        arrivals: Which workers deliver at each step.
        weights: How much each worker counts, as users say it.
        max_share: The largest part of the total weight that one worker may have.
        age_decay: Times which a weight goes with each step of its message's age; ``None`` for none.
        link: What is compressed of a message, and how rules rebuild it.
        compressor: What makes bytes of it.
        downlink: How the aggregate comes back; ``None`` for as it is.
        code: Who computes which parts, where several workers compute the same; ``None`` for each its own.

    """

    estimator: Estimator = field(default_factory=Gradient)
    attackers: Attackers = field(default_factory=Attackers)
    arrivals: Arrivals = field(default_factory=Synchronous)
    weights: Sequence[float | int] | str | None = None
    max_share: float | None = None
    age_decay: float | None = None
    link: Link = field(default_factory=Direct)
    compressor: Compressor = field(default_factory=Identity)
    downlink: Downlink | None = None
    code: Code | None = None

    @property
    def in_lock_step(self) -> bool:
        """Whether everyone delivers at each step what it has computed there."""
        return isinstance(self.arrivals, Synchronous)

    @property
    def share(self) -> float | None:
        """The stated part of the weight that may be Byzantine."""
        return None if self.in_lock_step else self.arrivals.byzantine_share

    @property
    def by_size(self) -> bool:
        """Whether weights follow from the sizes of the workers' shards."""
        return isinstance(self.weights, str) and self.weights.startswith("samples")

    @property
    def constant(self) -> Sequence[float | int] | None:
        """The weights that are known from the start; ``None`` for all alike, or where they follow from sizes or deliveries."""
        return None if isinstance(self.weights, str) else self.weights

    @property
    def capped_at_once(self) -> float | None:
        """The cap of weights that do not change."""
        return self.max_share if self.in_lock_step else None

    def weighing(self, defence: Defence) -> Weighing:
        """Return how the rows of a table count."""
        decay = 1.0 if self.age_decay is None else float(self.age_decay)
        return Weighing(defence.weights, self.weights in COUNTED, decay, self.max_share, self.share)

    def parts(self, workers: int) -> Sequence[Sequence[int]] | None:
        """The parts of which each worker computes the gradients; ``None`` where each has its own."""
        return None if self.code is None else self.code.parts(workers)

    def placed(self, placement: Placement) -> Placement:
        """Return the placement with what this plan makes workers do.

        Raises:
            ValueError: If a code cannot be spread over them.

        """
        if self.code is None:
            return replace(placement, in_turn=not self.in_lock_step)
        check_spread(self.code, placement.workers)
        return replace(placement, in_turn=True, batches=len(self.code.parts(placement.workers)[0]))

    def round(self, defence: Defence) -> Round:
        """Return what a step of one optimizer is, behind these rules."""
        if self.code is not None:
            return Coded(defence, self.code, self.estimator, self.attackers)
        return self.robust(defence)

    def robust(self, defence: Defence) -> Robust:
        """Return what a step without a code is."""
        channel = self.channel(defence.seed, defence.optimizer)
        if self.in_lock_step:
            return Robust(defence, self.estimator, self.attackers, channel)
        return Arriving(defence, self.estimator, self.attackers, channel, self.arrivals, self.weighing(defence))

    @property
    def ways(self) -> tuple[Link | Compressor, ...]:
        """The link and the compressor, where messages do not travel as they are."""
        return () if self.channel().plain else (self.link, self.compressor)

    def channel(self, seed: int = 0, optimizer: int = 0) -> Channel:
        """Return the ways of messages to the rules and of the aggregate back."""
        return Channel(self.link, self.compressor, self.downlink, seed, optimizer)

    def schedule(self, defence: Defence) -> Schedule:
        """Return who delivers when."""
        return schedule_of(self.arrivals, defence.workers, self.attackers.workers, defence.seed)

    def described(self, defence: Defence) -> str:
        """Return who delivers when, and what weights and f mean then, for the start-up line; nothing in lock-step."""
        if self.code is not None:
            return described(self.code, defence.workers)
        if self.in_lock_step:
            return ""
        return f"; {self.arrivals!r}; {self.weighing(defence).described(defence.f)}"

    def check(self, defence: Defence, steps: int | None) -> None:
        """Refuse a schedule that cannot be, and rules that its weights do not suit; warn of workers that chance leaves out.

        Args:
            defence: The rules.
            steps: How many steps the run has; ``None`` where nothing tells.

        Raises:
            ToleranceError: If a rule takes equal weights only.
            ValueError: If the schedule leaves workers out, or is no function of the step; if attackers have more than the stated share; or if there
                are too few workers for ``max_share``.

        """
        if self.in_lock_step:
            return
        if self.weights in COUNTED or self.age_decay is not None:
            several = [2.0, *[1.0] * (defence.workers - 1)]
            replace(defence, weights=several, f=0.0, share=None).check()
        if self.max_share is not None:
            capped(defence.weights or [1.0] * defence.workers, self.max_share)
        schedule = self.schedule(defence)
        _check_function(schedule, self.schedule(defence), defence.workers, NEAR if steps is None else min(steps, NEAR))
        self._check_share(schedule, steps)
        _check_schedule(schedule, defence.workers, steps)

    def _check_share(self, schedule: Schedule, steps: int | None) -> None:
        """Refuse a stated share that the attackers exceed to the end."""
        if self.share is None or not self.attackers.workers:
            return
        last = FAR if steps is None else max(steps - 1, 0)
        realised = schedule.byzantine_share(self.attackers.workers, last)
        if realised > self.share + 1e-9:
            raise ValueError(
                f"byzantine_share={self.share:g}: of the deliveries until step {last}, attackers {list(self.attackers.workers)} make {realised:.3g},"
                f" as each delivers at step 0 already: give a share of at least {realised:.3g} and below 0.5, fewer attackers, or more steps."
            )


def _check_function(schedule: Schedule, again: Schedule, workers: int, steps: int) -> None:
    """Refuse a schedule that says another thing when it is made and asked again, as other ranks and resumed runs do."""
    for step in range(steps):
        first, second = (due_at(one, step, workers=workers) for one in (schedule, again))
        if first != second:
            raise ValueError(
                f"{type(schedule).__name__}.due({step}) returned {first}, and {second} when it was made and asked again: let it follow from the step"
                " and the seed alone, e.g. by drawing from a generator that is seeded with both in each call."
            )


def _check_schedule(schedule: Schedule, workers: int, steps: int | None) -> None:
    """Refuse a schedule that does not start with everyone, or under which a worker does not come again; warn where that is chance."""
    name, never = type(schedule).__name__, set(range(workers))
    for step in range(NEAR if steps is None else steps):
        due = due_at(schedule, step, workers=workers)
        never -= set(due) if step else set()
        if not never and step >= NEAR:
            break
    if steps is None or steps < 2:
        return
    if never and schedule.random:
        warnings.warn(
            f"By chance workers {sorted(never)} deliver at step 0 only of the {steps} steps of this run: their first message counts to the end. Give"
            " more steps, or another law or seed.",
            stacklevel=2,
        )
    elif never:
        raise ValueError(
            f"{name}: workers {sorted(never)} never deliver after step 0 in the {steps} steps of this run: give them shorter delays, give more steps"
            " (max_steps), or leave them out."
        )


def said_at_the_end(memory: Memory) -> str | None:
    """Return a warning that names the workers which have delivered at the first step only."""
    turns = memory.counts.get("turns", ())
    never = [worker for worker, count in enumerate(turns) if count <= 2 and memory.counts["fetched"][worker] >= 0]
    if not never or memory.step < 2:
        return None
    return (
        f"workers {never} have delivered at the first step only of {memory.step}: their first message counted to the end. Give more steps, or another"
        " schedule."
    )
