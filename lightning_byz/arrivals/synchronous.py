"""Everyone delivers at every step."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_byz.arrivals.arrivals import Arrivals, Schedule


@dataclass(frozen=True)
class Synchronous(Arrivals):
    """Everyone delivers at every step what it computed there: nothing is stale, and no table is kept.

    Example:
        >>> Synchronous().schedule(3, attackers=[], seed=0).due(7)
        [0, 1, 2]

    """

    def schedule(self, workers: int, attackers: Sequence[int], seed: int) -> Schedule:
        """Return the schedule of all workers."""
        return _Everyone(workers)


@dataclass(frozen=True)
class _Everyone(Schedule):
    workers: int

    def due(self, step: int) -> Sequence[int]:
        return list(range(self.workers))

    def per_step(self, workers: int) -> float:
        return float(workers)
