"""Which workers deliver at each step."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from operator import index
from typing import Any, ClassVar

TRIED = 1000
"""Steps over which a schedule that does not know its own mean is averaged."""


class Schedule(ABC):
    """Who delivers when, in one run: a function of the step alone, so that there is nothing to save.

    At step 0 everyone delivers a message made there. Whoever delivers at a step starts on the parameters that the next one finds, and its message
    waits until the worker is due again.
    """

    random: ClassVar[bool] = False
    """Whether it is drawn, so that a worker that is not due in a short run is chance and no mistake."""

    @abstractmethod
    def due(self, step: int) -> Sequence[int]:
        """Return the ids of the workers that deliver at a step, counted from 0: at least one, and everyone at step 0."""

    def per_step(self, workers: int) -> float:
        """Return how many workers deliver at a step after the first, on average; an epoch is as long as that makes it."""
        return sum(len(due_at(self, step, workers=workers)) for step in range(1, TRIED + 1)) / TRIED

    def byzantine_share(self, attackers: Sequence[int], steps: int) -> float:
        """Return which part of the deliveries of steps 0 to ``steps`` are those of ``attackers``."""
        deliveries = theirs = 0
        for due in map(self.due, range(steps + 1)):
            deliveries += len(due)
            theirs += sum(worker in attackers for worker in due)
        return theirs / deliveries


class Arrivals(ABC):
    """Which workers deliver at each step. One of your own, in a file of yours, makes a :class:`Schedule`, and that is enough."""

    byzantine_share: float | None = None
    """The part of the weight that may be Byzantine, where that is stated; ``None`` where ``f`` says it in heads."""

    @abstractmethod
    def schedule(self, workers: int, attackers: Sequence[int], seed: int) -> Schedule:
        """Return who delivers when.

        Args:
            workers: Number of logical workers, n.
            attackers: Ids of those that attack in this run.
            seed: The run's seed, the only source of randomness.

        """


def schedule_of(arrivals: Arrivals, workers: int, attackers: Sequence[int], seed: int) -> Schedule:
    """Return the schedule of a run; any object that says who is due is one.

    Raises:
        TypeError: If there is none.

    """
    schedule: Any = arrivals.schedule(workers, attackers, seed)
    if isinstance(schedule, Schedule):
        return schedule
    if not callable(getattr(schedule, "due", None)):
        raise TypeError(f"{type(arrivals).__name__}.schedule(...) returned {schedule!r}: return a Schedule.")
    return type(type(schedule).__name__, (_Own,), {})(schedule)


class _Own(Schedule):
    """What says who is due without being a :class:`Schedule`, under its own name."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def due(self, step: int) -> Sequence[int]:
        return self._own.due(step)


def due_at(schedule: Schedule, step: int, *, workers: int) -> list[int]:
    """Return who delivers at a step, in order.

    Raises:
        TypeError: If the schedule does not return whole numbers.
        ValueError: If the schedule names nobody, or what is no worker, or not everyone at the start.

    """
    told = schedule.due(step)
    try:
        due = sorted({index(worker) for worker in told})
    except TypeError:
        raise TypeError(
            f"{type(schedule).__name__}.due({step}) returned {told!r}: return the ids of the workers that deliver, such as [0, 3]."
        ) from None
    if not due or due[0] < 0 or due[-1] >= workers:
        raise ValueError(
            f"{type(schedule).__name__}.due({step}) returned {due}: at each step one or more of the workers 0 to {workers - 1} deliver."
        )
    if step == 0 and len(due) < workers:
        raise ValueError(
            f"{type(schedule).__name__}.due(0) returned {due}: at step 0 all workers deliver, 0 to {workers - 1}, so that each has a row."
        )
    return due


def check_share(name: str, share: object) -> None:
    """Refuse a Byzantine share that no rule survives."""
    number = isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share < 0.5
    if share is not None and not number:
        raise ValueError(
            f"{name}(byzantine_share={share!r}): the part of the weight that may be Byzantine must be below one half, as no rule survives more:"
            " give a number from 0 to below 0.5, or None where f says it in heads."
        )
