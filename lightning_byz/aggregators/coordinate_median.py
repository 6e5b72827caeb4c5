"""The coordinate-wise median."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

import lightning_byz.kernels as kernels
from lightning_byz.aggregators.aggregator import CoordinateRule
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class CoordinateMedian(CoordinateRule):
    r"""Take the weighted median of each coordinate.

    The value at which the cumulative weight passes half of the total; where it is exactly half, the mean of the values on both sides.
    With unit weights, the middle value, or the mean of the two middle ones.

    Cost: a pruned sorting network along the workers, :math:`O(d\, n \log^2 n)` comparisons done on many coordinates at once; a
    sort of each coordinate, :math:`O(d\, n \log n)`, of more than 256 rows.

    Raises:
        ToleranceError: If ``f`` is not below half of the total weight.

    References:
        Yin, Chen, Kannan, Bartlett. Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates. ICML 2018, arXiv 1803.01498.
        ``kappa`` is derived in docs/bounds.md.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[1.0, 8.0], [2.0, 7.0], [4.0, 6.0], [1e9, -1e9]])
        >>> CoordinateMedian()(Stack(rows, f=1))
        tensor([3.0000, 6.5000])
    """

    condition = "f < W / 2"
    copies = (1.2, 4.3)

    def tolerates(self, weights: Sequence[float], f: float) -> bool:
        """Whether ``f`` is below half of the total weight."""
        return kernels.minority(sum(weights), f)

    def kappa(self, n: float, f: float) -> float:
        """``n / (n - 2 f)``."""
        return n / (n - 2 * f)

    def statistic(self, stack: Stack) -> Callable[..., Float[Tensor, " d"]]:
        """The median of each coordinate."""
        return kernels.coordinate_median

    def _survey(self, stack: Stack, *, distances: bool = False) -> tuple[Any, Any] | None:
        found = super()._survey(stack, distances=distances)
        if found and distances:  # or else it is the caller's, who may write to it
            stack.found["centre"] = found[0]
        return found
