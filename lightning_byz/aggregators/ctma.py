"""The centred trimmed meta-aggregator."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from lightning_byz.aggregators.aggregator import Aggregator, RowAverage
from lightning_byz.kernels import minority, nearest_shares
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class CTMA(RowAverage):
    r"""Average the rows nearest to what another rule found.

    With :math:`x_0` the result of ``base``: keep rows in the order of their distance from :math:`x_0`, lower worker ids first among equals, up to a
    weight of :math:`W - f`; the row that passes it is kept in part. :math:`F(x) = \sum_i u_i x_i / (W - f)`. Where ``f`` is small this improves the
    error of ``base`` to one of order :math:`f / W`; near half of the weight it can be worse than ``base`` alone.

    Cost: ``base``, one pass for the distances and one for the sum, :math:`O(nd)`.

    Args:
        base: The rule to start from. There is no default: the guarantee is inherited from it.

    Raises:
        ToleranceError: If ``f`` is not below half of the total weight, or is too large for ``base``.

    References:
        Dahan, Levy. Fault Tolerant ML: Efficient Meta-Aggregation and Synchronous Training. ICML 2024, arXiv 2405.14759.
        Dahan, Levy. Weight for Robustness: A Comprehensive Approach towards Optimal Fault-Tolerant Asynchronous ML. NeurIPS 2024, arXiv 2501.09621.

    Example:
        >>> from lightning_byz.aggregators import CoordinateMedian
        >>> rows = torch.tensor([[1.0], [2.0], [4.0], [5.0], [1e9]])
        >>> CTMA(CoordinateMedian())(Stack(rows, f=1)), CTMA(CoordinateMedian())(Stack(rows, f=1.5))
        (tensor([3.]), tensor([3.2857]))
    """

    base: Aggregator

    condition = "f < W / 2, and what its base needs"

    @property
    def random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - data of the class, of which only the base's is known here
        """Whether ``base`` draws."""
        return self.base.random

    @property
    def uses_reference(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether ``base`` reads the last aggregate."""
        return self.base.uses_reference

    @property
    def unequal_weights(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether ``base`` honours unequal weights."""
        return self.base.unequal_weights

    @property
    def copies(self) -> tuple[float, float] | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of ``base``, one for the distances and one for the sum; with compiled kernels the distances come with the base's pass."""
        own = self.base.copies
        return None if own is None else (own[0] + 1.2, own[1] + 4.6)

    @property
    def exceptions(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The laws that ``base`` does not keep."""
        return self.base.exceptions

    def __post_init__(self) -> None:
        if not isinstance(self.base, Aggregator):
            raise TypeError(f"base must be an Aggregator, such as CoordinateMedian(), not {self.base!r}")

    def tolerates(self, weights: Sequence[float], f: float) -> bool:
        """Whether ``f`` is below half of the total weight, and ``base`` tolerates it."""
        return minority(sum(weights), f) and self.base.tolerates(weights, f)

    def kappa(self, n: float, f: float) -> float | None:
        """``4 f / (n - f) (1 + kappa of base)``: faulty weight that is kept displaces as much honest weight, no nearer to the base's result."""
        base = self.base.kappa(n, f)
        return None if base is None else 4 * f / (n - f) * (1 + base)

    def survey(self, stack: Stack) -> None:
        """Have ``stack`` find out the distances from the result of ``base`` while it looks for unusable rows."""
        self.base.survey_distances(stack)

    def coefficients(self, stack: Stack, *, generator: torch.Generator | None = None) -> Float64[Tensor, " n"]:
        """Each row's part of the weight kept."""
        distances = self.base.distances(stack, generator=generator)
        shares = nearest_shares(distances[None], stack.weights, stack.total_weight - stack.f)[0]
        return shares / shares.sum()
