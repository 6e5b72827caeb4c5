"""The covariance-bound agnostic filter."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from lightning_byz.aggregators.aggregator import RowAverage
from lightning_byz.kernels import SLIVER, minority, principal_spread
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class CAF(RowAverage):
    r"""Take weight off rows that stick out along the principal direction, and average at the best moment.

    From the weights :math:`c = w`, while more than :math:`W - 2 f` of them is left: with :math:`\mu` the weighted mean and :math:`v` the direction
    of the largest variance, :math:`c_i \leftarrow c_i (1 - \tau_i / \max_j \tau_j)`, where :math:`\tau_i = \langle x_i - \mu, v \rangle^2`. The
    result is the :math:`\mu` whose largest variance was the smallest. With ``f = 0`` it is the mean.

    Cost: a coordinate-wise median (which centres the rows), one Gram matrix and one weighted sum, :math:`O(n^2 d)`, and an eigendecomposition of
    :math:`O(n^3)` per iteration, of which there are at most :math:`n`.

    Raises:
        ToleranceError: If ``f`` is not below half of the total weight.

    References:
        Allouah, Guerraoui, Stephan. Towards Trustworthy Federated Learning with Untrusted Participants. ICML 2025, arXiv 2505.01874. ``kappa`` is
        derived in docs/bounds.md, for less than a third.

    Example:
        >>> rows = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [1.0, 2.0], [1e9, 1.0]])
        >>> CAF()(Stack(rows, f=1))
        tensor([1., 1.])
    """

    condition = "f < W / 2"
    centred = True

    def tolerates(self, weights: Sequence[float], f: float) -> bool:
        """Whether ``f`` is below half of the total weight."""
        return minority(sum(weights), f)

    def kappa(self, n: float, f: float) -> float | None:
        """``2 f / (n - 3 f) (1 + sqrt((n - f) / (n - 2 f)))^2`` where ``f < n / 3``, else unknown."""
        return 2 * f / (n - 3 * f) * (1 + ((n - f) / (n - 2 * f)) ** 0.5) ** 2 if 3 * f < n else None

    def coefficients(self, stack: Stack, *, generator: torch.Generator | None = None) -> Float64[Tensor, " n"]:
        """The weights at the best moment, as parts of their sum."""
        gram, weights = stack.gram().cpu(), stack.weights.cpu()
        least = float(weights.sum()) - 2 * stack.f
        left, best = weights, weights
        spread, distances = principal_spread(gram, left)
        smallest = spread
        while spread > 0:
            left = left * (1 - distances / distances[left > 0].max()).clamp(min=0.0)
            left = torch.where(left > SLIVER * weights, left, 0.0)
            if float(left.sum()) <= least * (1 + SLIVER):
                break
            spread, distances = principal_spread(gram, left)
            if spread < smallest:
                smallest, best = spread, left
        return (best / best.sum()).to(stack.weights.device)
