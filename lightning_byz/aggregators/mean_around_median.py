"""The mean around the median."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from torch import Tensor

from lightning_byz.aggregators.aggregator import CoordinateRule
from lightning_byz.kernels import mean_around_median, minority
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class MeanAroundMedian(CoordinateRule):
    r"""Average each coordinate over the values nearest to its median.

    At each coordinate the values nearest to the weighted median are kept, up to a weight of :math:`W - f`; the value that passes it is kept in part,
    and of two values equally far the lower one is nearer. Also known as MeaMed.

    Cost: a pruned sorting network along the workers, :math:`O(d\, n \log^2 n)` comparisons done on many coordinates at once; with unequal weights
    :math:`O(d\, n^2)`. Of more than 256 rows, sorts of each coordinate, :math:`O(d\, n \log n)`.

    Raises:
        ToleranceError: If ``f`` is not below half of the total weight.

    References:
        Xie, Koyejo, Gupta. Generalized Byzantine-tolerant SGD. 2018, arXiv 1802.10116. ``kappa`` is derived in docs/bounds.md.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[1.0, 8.0], [2.0, 7.0], [3.0, 6.5], [7.0, 6.0], [1e9, -1e9]])
        >>> MeanAroundMedian()(Stack(rows, f=1))
        tensor([3.2500, 6.8750])
    """

    condition = "f < W / 2"
    copies = (1.5, 7.4)

    def tolerates(self, weights: Sequence[float], f: float) -> bool:
        """Whether ``f`` is below half of the total weight."""
        return minority(sum(weights), f)

    def kappa(self, n: float, f: float) -> float:
        """``8 f / (n - 2 f)``."""
        return 8 * f / (n - 2 * f)

    def statistic(self, stack: Stack) -> Callable[..., Float[Tensor, " d"]]:
        """The mean of what is nearest to the median of each coordinate."""
        return partial(mean_around_median, f=stack.f)
