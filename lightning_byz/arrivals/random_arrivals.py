"""One worker at a time, drawn by a law."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import floor
from typing import ClassVar, Literal

from lightning_byz.arrivals.arrivals import Arrivals, Schedule, check_share
from lightning_byz.random import derive

POWERS = {"uniform": 0, "proportional": 1, "squared": 2}
DRAWS = 2.0**63


@dataclass(frozen=True)
class RandomArrivals(Arrivals):
    r"""One worker delivers at each step.

    Drawn by a law of its id: the arrivals of the asynchronous experiments. Ids are counted 1, 2, ... within the attackers and within the honest
    workers.

    With a ``byzantine_share`` :math:`\lambda` a step is an attacker's exactly where
    :math:`\min(\max(b, \lfloor \lambda (n + t) \rfloor), b + t)` grows from step :math:`t - 1` to :math:`t`, with n workers of which b attack. Of
    all deliveries until then, the n of step 0 among them, at most :math:`\lambda` are theirs from step :math:`\lceil b / \lambda \rceil - n` on, and
    never one delivery less, once the share is reached. (The authors' released code takes every :math:`\lceil 1 / \lambda \rceil`-th step: 1/3 where
    0.4 is printed.)

    Args:
        law: ``"uniform"``, or probabilities ``"proportional"`` to the id or to the id ``"squared"``, as in the paper's experiments.
        byzantine_share: Part of the deliveries that attackers make, and of the weight that rules take for Byzantine, below one half; ``None`` to draw
            from all workers at once, and to let ``f`` speak for the rules.

    Raises:
        ValueError: If the law is none, or the share not from 0 to below 0.5.

    References:
        Dahan, Levy. Weight for Robustness: A Comprehensive Approach towards Optimal Fault-Tolerant Asynchronous ML. NeurIPS 2024, arXiv 2501.09621.

    Example:
        >>> schedule = RandomArrivals("squared", byzantine_share=0.4).schedule(5, attackers=[3, 4], seed=0)
        >>> schedule.due(0), [schedule.due(step) for step in range(1, 9)]
        ([0, 1, 2, 3, 4], [[1], [2], [4], [2], [3], [1], [0], [4]])

    """

    law: Literal["uniform", "proportional", "squared"] = "uniform"
    byzantine_share: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no law and what is no share."""
        if self.law not in POWERS:
            raise ValueError(f"RandomArrivals(law={self.law!r}): give 'uniform', 'proportional' or 'squared'.")
        check_share("RandomArrivals", self.byzantine_share)

    def schedule(self, workers: int, attackers: Sequence[int], seed: int) -> Schedule:
        """Return the draws of a run."""
        return _Drawn(workers, tuple(sorted(attackers)), seed, POWERS[self.law], self.byzantine_share)


@dataclass(frozen=True)
class _Drawn(Schedule):
    workers: int
    attackers: tuple[int, ...]
    seed: int
    power: int
    share: float | None

    random: ClassVar[bool] = True

    def due(self, step: int) -> Sequence[int]:
        if step == 0:
            return list(range(self.workers))
        ids, bounds = self._groups["byzantine" if self._is_byzantine(step) else "honest"]
        return [ids[bisect_right(bounds, derive(self.seed, "arrivals", step) / DRAWS * bounds[-1])]]

    def per_step(self, workers: int) -> float:
        return 1.0

    def byzantine_share(self, attackers: Sequence[int], steps: int) -> float:
        if "byzantine" not in self._groups:
            return super().byzantine_share(attackers, steps)
        return self._byzantine(steps) / (self.workers + steps)

    @cached_property
    def _groups(self) -> dict[str, tuple[list[int], list[float]]]:
        """Who is drawn from together, with the sums of their masses."""
        honest = [worker for worker in range(self.workers) if worker not in self.attackers]
        masses = {
            worker: (place + 1) ** self.power for one in (honest, self.attackers) for place, worker in enumerate(one)
        }
        apart = self.share is not None and honest and self.attackers
        groups = {"honest": honest, "byzantine": self.attackers} if apart else {"honest": sorted(masses)}
        return {name: (list(ids), list(accumulate(float(masses[one]) for one in ids))) for name, ids in groups.items()}

    def _is_byzantine(self, step: int) -> bool:
        return "byzantine" in self._groups and self._byzantine(step) > self._byzantine(step - 1)

    def _byzantine(self, step: int) -> int:
        """How many deliveries of attackers there are until a step; a sliver makes up for rounding in the product."""
        assert self.share is not None
        attackers = len(self.attackers)
        return min(max(attackers, floor(self.share * (self.workers + step) + 1e-9)), attackers + step)
