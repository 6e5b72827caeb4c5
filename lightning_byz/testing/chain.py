"""A pre-aggregator and the rule after it, as one rule."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_byz.aggregators import Aggregator
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class Chain(Aggregator):
    """An aggregator behind a pre-aggregator: what the two promise together follows from what each says of itself.

    Args:
        first: The pre-aggregator.
        then: The aggregator that gets its stack.

    Example:
        >>> from lightning_byz.aggregators import CoordinateMedian
        >>> from lightning_byz.preaggregators import NNM
        >>> Chain(NNM(), CoordinateMedian())(Stack(torch.tensor([[1.0], [2.0], [3.0], [1e9]]), f=1))
        tensor([2.])
    """

    first: PreAggregator
    then: Aggregator

    @property
    def condition(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Both conditions."""
        return f"{self.first.condition}, then {self.then.condition}"

    @property
    def exceptions(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of either."""
        return self.first.exceptions | self.then.exceptions

    @property
    def unequal_weights(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether both honour them."""
        return self.first.unequal_weights and self.then.unequal_weights

    @property
    def random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether either draws."""
        return self.first.random or self.then.random

    @property
    def uses_reference(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether either reads the reference."""
        return self.first.uses_reference or self.then.uses_reference

    def tolerates(self, weights: Sequence[float], f: float) -> bool:
        """Whether the first tolerates ``f``, and the second what the first hands on."""
        return self.first.tolerates(weights, f) and self.then.tolerates(weights, self.first.hands_on(f))

    def kappa(self, n: float, f: float) -> float | None:
        """What the first makes of the second's."""
        return self.first.kappa(n, f, self.then.kappa(n, self.first.hands_on(f)))

    def __call__(self, stack: Stack, *, generator: torch.Generator | None = None) -> Tensor:
        """The second's aggregate of the first's stack."""
        return self.then(self.first(stack, generator=generator), generator=generator)

    def explain(self, stack: Stack, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """The same, and the coefficients where there are any."""
        return self.then.explain(self.first(stack, generator=generator), generator=generator)
