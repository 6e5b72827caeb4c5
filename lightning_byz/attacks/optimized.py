"""A search for the strength at which an attack hurts most."""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, is_dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.attacks.attack import Attack, check_signature
from lightning_byz.attacks.sight import Defence, Sight
from lightning_byz.errors import ToleranceError, TooManyFaults
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class Optimized(Attack):
    r"""Another attack at the strength that hurts the actual defence most at each step.

    The strength :math:`s` maximises :math:`\|F(x(s)) - \mu\|` with :math:`F` the defence, :math:`x(s)` the rows under an attack of that strength, and
    :math:`\mu` the weighted mean of the honest rows. The attack as it is given comes first; then half of the evaluations go to a geometric grid
    between the bounds, the rest to the geometric middles between the best strength so far and its neighbours. What is sent is the best that was
    tried, whatever the shape of the damage. Draws are the same for every strength. Where the attack's own strength is negative, so are those tried.
    A defence that refuses the rows, with ``ToleranceError`` or ``TooManyFaults``, is not hurt; one that returns NaN is hurt without bound.

    Cost: ``evaluations`` times the attack and the defence, and one pass over a row for each.

    Args:
        attack: The attack; its class names the field to search in ``strength``.
        low: Smallest strength tried, in the units of that field. The default is that of :class:`IPM`.
        high: Largest strength tried. At 10 the paper below starts its search downwards; raise it for attacks that shout.
        evaluations: How many strengths are tried at most, the given one included; 20 as in ByzFL.

    Raises:
        TypeError: If ``attack`` is not an attack with a strength, or its ``replace`` does not take a :class:`Sight`.
        ValueError: If the bounds are not ``0 < low < high``, or ``evaluations`` is below 3, or the defence is not known.

    References:
        Shejwalkar, Houmansadr. Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated Learning. NDSS 2021.
        Gonzalez, Guerraoui, Pinot, Rizk, Stephan, Taiani. ByzFL: Research Framework for Robust Federated Learning. 2025, arXiv 2505.24802.

    Example:
        >>> from lightning_byz.aggregators import CTMA, CoordinateMedian
        >>> from lightning_byz.attacks import ALIE
        >>> rows, rule = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [0.0], [0.0]]), CTMA(CoordinateMedian())
        >>> for attack in (ALIE(), ALIE(z=5.0), Optimized(ALIE())):
        ...     sent = attack.replace(Sight(Stack(rows, f=2), [5, 6], torch.Generator(), defence=rule))
        ...     print(rule(Stack(torch.cat([rows[:5], sent]), f=2)))
        tensor([2.8398])
        tensor([3.])
        tensor([1.2010])
    """

    attack: Attack
    _: KW_ONLY
    low: float = 0.1
    high: float = 10.0
    evaluations: int = 20

    def __post_init__(self) -> None:
        if not isinstance(self.attack, Attack) or not is_dataclass(self.attack) or self.attack.strength is None:
            raise TypeError(
                f"attack must be one whose class names a field as its strength, such as ALIE() or IPM(), not {self.attack!r}"
            )
        check_signature(self.attack)
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"low and high must be finite with 0 < low < high, not {self.low} and {self.high}")
        if not isinstance(self.evaluations, int) or self.evaluations < 3:
            raise ValueError(f"evaluations must be a whole number >= 3, not {self.evaluations}")

    @property
    def remembers(self) -> int:
        """As many steps as the attack."""
        return self.attack.remembers

    def poison(self, batch: Any, *, generator: torch.Generator) -> Any:
        """The batch as the attack poisons it."""
        return self.attack.poison(batch, generator=generator)

    def replace(self, sight: Sight) -> Float[Tensor, "m d"]:
        """What the attack sends at its best strength; the attackers' own rows where no honest row has weight."""
        defence = sight.defence
        if defence is None:
            raise ValueError(
                "Optimized tries attacks out on the defence and needs to know it: Sight(..., defence=rule)"
            )
        honest = sight.honest_weights
        if not bool(honest.any()):
            return sight.own
        mean, _ = sight.stack.moments(honest)

        def sent(strength: float | None) -> Tensor:
            return self._with(strength).replace(replace(sight, generator=sight.generator.clone_state()))

        def damage(strength: float | None) -> float:
            return _damage(sight, sent(strength), mean, defence)

        return sent(self._best(damage))

    def _with(self, strength: float | None) -> Attack:
        """The attack at a strength; as it is given for None."""
        if strength is None:
            return self.attack
        field = str(self.attack.strength)
        return replace(self.attack, **{field: math.copysign(strength, getattr(self.attack, field) or 1.0)})  # pyright: ignore[reportArgumentType]

    def _best(self, damage: Callable[[float | None], float]) -> float | None:
        """The strength of most damage; None, which is the attack as given, where no other does more."""
        given, count = damage(None), max(self.evaluations // 2, 2)
        step = (self.high / self.low) ** (1 / (count - 1))
        tried = {
            strength: damage(strength)
            for strength in [*(self.low * step**power for power in range(count - 1)), self.high]
        }
        for _ in range((self.evaluations - 1 - count) // 2):
            points = sorted(tried)
            best = points.index(max(points, key=lambda point: tried[point]))
            for neighbour in points[max(best - 1, 0) : best] + points[best + 1 : best + 2]:
                middle = math.sqrt(points[best] * neighbour)
                if middle not in tried:
                    tried[middle] = damage(middle)
        strongest = max(sorted(tried), key=lambda point: tried[point])
        return strongest if tried[strongest] > given else None


def _damage(sight: Sight, rows: Tensor, mean: Tensor, defence: Defence) -> float:
    """How far the defence's result is from ``mean``; the same on every slice."""
    stack, vectors = sight.stack, sight.stack.vectors.clone()
    vectors[list(sight.attackers)] = rows
    try:
        result = defence(replace(stack, vectors=vectors))
    except (ToleranceError, TooManyFaults):
        return 0.0
    squared = float(Stack(result[None], slice=stack.slice).squared_distances_to(mean)[0])
    return math.inf if math.isnan(squared) else squared
