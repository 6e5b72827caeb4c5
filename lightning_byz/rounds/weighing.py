"""How much each worker's last message counts under arrivals, and what part of that may be Byzantine."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lightning_byz.rounds.weights import capped, heaviest

COUNTED = ("counts", "samples*counts")
"""Weights that follow what workers deliver."""


@dataclass(frozen=True)
class Weighing:
    """Weights of a table of last messages.

    Args:
        constant: What each worker counts whatever it delivers, or per delivery; ``None`` for 1 each.
        counted: Whether this is per delivery.
        decay: Times which a weight goes with each step of its message's age; 1 for none.
        max_share: The largest part of the total weight that one worker may have; ``None`` for any.
        share: The part of the weight that may be Byzantine, where it is stated; ``None`` where f says it in heads.

    """

    constant: Sequence[float] | None = None
    counted: bool = False
    decay: float = 1.0
    max_share: float | None = None
    share: float | None = None

    def weights(self, deliveries: Sequence[int], ages: Sequence[int]) -> list[float]:
        """Return each worker's weight; 0 where it has delivered nothing.

        Example:
            >>> Weighing(counted=True, decay=0.5).weights([4, 1, 0], ages=[1, 0, 0])
            [2.0, 1.0, 0.0]

        """
        own = [1.0] * len(deliveries) if self.constant is None else self.constant
        times = [count if self.counted else count > 0 for count in deliveries]
        weights = [float(one * count * self.decay**age) for one, count, age in zip(own, times, ages, strict=True)]
        if self.max_share is None or sum(weight > 0 for weight in weights) * self.max_share < 1:
            return weights
        return list(capped(weights, self.max_share))

    def f(self, weights: Sequence[float], f: float, attackers: Collection[int]) -> float:
        """Return the weight that may be Byzantine: the larger of the stated share and the realised one, else what any ``f`` workers weigh at most.

        Example:
            >>> Weighing(share=0.4).f([3.0, 3.0, 3.0, 1.0], 1, attackers=[3]), Weighing().f([3.0, 3.0, 3.0, 1.0], 1, attackers=[3])
            (4.0, 3.0)

        """
        if self.share is None:
            return heaviest(weights, f)
        return max(self.share * sum(weights), sum(weights[worker] for worker in attackers))

    def described(self, f: float) -> str:
        """Return what weights and f mean, for the start-up line."""
        kinds = {
            (False, True): "one each",
            (False, False): "constant",
            (True, True): "deliveries",
            (True, False): "samples times deliveries",
        }
        words = f"weights: {kinds[self.counted, self.constant is None]}"
        words += f", times {self.decay:g} per step of age" if self.decay != 1 else ""
        if self.share is None:
            return f"{words}; f = {f:g} are the heaviest workers, whoever they are; no update while a rule does not tolerate them"
        return f"{words}; f = {self.share:g} of the weight, or what attackers have of it if that is more; no update while a rule does not tolerate it"
