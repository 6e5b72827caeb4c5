"""Every worker at its own pace."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lightning_byz.arrivals.arrivals import Arrivals, Schedule, check_share


@dataclass(frozen=True)
class FixedDelays(Arrivals):
    """Each worker takes a fixed time for a message, and delivers periodically.

    Time goes in ticks: a worker with delay k delivers at every (k + 1)-th tick, so with delay 0 at each. A step is a tick at which somebody
    delivers. Everyone starts at tick 0, which is step 0.

    Args:
        delays: Ticks between fetching and delivering that each worker lets pass, 0 or more; one whole number per worker.
        byzantine_share: Part of the weight that rules take for Byzantine, below one half; ``None`` to let ``f`` speak.

    Raises:
        ValueError: If the delays are none; when the run starts, if there is not one per worker.

    Example:
        >>> schedule = FixedDelays([1, 2]).schedule(2, attackers=[], seed=0)
        >>> [schedule.due(step) for step in range(6)]  # at ticks 0, 2, 3, 4, 6, 8
        [[0, 1], [0], [1], [0], [0, 1], [0]]

    """

    delays: Sequence[int]
    byzantine_share: float | None = None

    def __post_init__(self) -> None:
        """Refuse what are no delays."""
        if not isinstance(self.delays, Sequence) or not self.delays or not all(map(_is_delay, self.delays)):
            raise ValueError(
                f"FixedDelays(delays={self.delays!r}): give one whole number of 0 or more per worker, such as [0, 0, 3]."
            )
        check_share("FixedDelays", self.byzantine_share)

    def schedule(self, workers: int, attackers: Sequence[int], seed: int) -> Schedule:
        """Return the ticks at which somebody delivers."""
        if len(self.delays) != workers:
            raise ValueError(
                f"FixedDelays(delays={list(self.delays)}) are {len(self.delays)} delays for {workers} workers: give one per worker."
            )
        return _Periodic(tuple(delay + 1 for delay in self.delays))


@dataclass(frozen=True)
class _Periodic(Schedule):
    periods: tuple[int, ...]
    _ticks: list[int] = field(default_factory=lambda: [0], compare=False, repr=False)
    """The tick of each step known so far."""

    def due(self, step: int) -> Sequence[int]:
        while len(self._ticks) <= step:
            last = self._ticks[-1]
            self._ticks.append(min((last // period + 1) * period for period in set(self.periods)))
        tick = self._ticks[step]
        return [worker for worker, period in enumerate(self.periods) if tick % period == 0]


def _is_delay(value: object) -> bool:
    return type(value) is int and value >= 0
