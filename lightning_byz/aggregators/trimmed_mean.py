"""The coordinate-wise trimmed mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from torch import Tensor

from lightning_byz.aggregators.aggregator import CoordinateRule
from lightning_byz.kernels import minority, trimmed_mean
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class TrimmedMean(CoordinateRule):
    r"""Average each coordinate after trimming the extreme weight on both sides.

    Sort the workers of a coordinate by value and lay their weights end to end: what lies within :math:`f` of either end of the line is trimmed,
    a worker astride the edge counts for the part inside. With unit weights this drops the :math:`f` smallest and the :math:`f` largest values.

    Cost: a pruned sorting network along the workers, :math:`O(d\, n \log^2 n)` comparisons done on many coordinates at once; a
    sort of each coordinate, :math:`O(d\, n \log n)`, of more than 256 rows.

    Raises:
        ToleranceError: If ``f`` is not below half of the total weight.

    References:
        Yin, Chen, Kannan, Bartlett. Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates. ICML 2018, arXiv 1803.01498.
        ``kappa``, the smallest that any rule can have, is derived in docs/bounds.md.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[1.0, 8.0], [2.0, 7.0], [3.0, 6.5], [7.0, 6.0], [1e9, -1e9]])
        >>> TrimmedMean()(Stack(rows, f=1))
        tensor([4.0000, 6.5000])
    """

    condition = "f < W / 2"
    copies = (1.2, 5.4)

    def tolerates(self, weights: Sequence[float], f: float) -> bool:
        """Whether ``f`` is below half of the total weight."""
        return minority(sum(weights), f)

    def kappa(self, n: float, f: float) -> float:
        """``f / (n - 2 f)``."""
        return f / (n - 2 * f)

    def statistic(self, stack: Stack) -> Callable[..., Float[Tensor, " d"]]:
        """The trimmed mean of each coordinate."""
        return partial(trimmed_mean, f=stack.f)
