"""Nearest-neighbour mixing."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightning_byz.kernels import minority, nearest_shares
from lightning_byz.preaggregators.preaggregator import PreAggregator
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class NNM(PreAggregator):
    r"""Replace each row by the average of its nearest rows, itself included, up to a weight of :math:`W - f`.

    :math:`y_i = \sum_j u_{ij} x_j / (W - f)`; the row that passes the weight is kept in part, lower worker ids first among equals. A row without
    weight becomes zero. Distances between the averages follow from those between the rows and are handed on.

    Cost: a coordinate-wise median (which centres the distances), one Gram matrix and one matrix product, :math:`O(n^2 d)`.

    Raises:
        ToleranceError: If ``f`` is not below half of the total weight.

    References:
        Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan. Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity. AISTATS 2023,
        arXiv 2302.01772.

    Example:
        >>> rows = torch.tensor([[1.0], [2.0], [3.0], [1e9]])
        >>> NNM()(Stack(rows, f=1)).vectors[:3, 0]
        tensor([2., 2., 2.])
    """

    condition = "f < W / 2"
    copies = (7.3, 14.0)
    centred = True

    def tolerates(self, weights: Sequence[float], f: float) -> bool:
        """Whether ``f`` is below half of the total weight."""
        return minority(sum(weights), f)

    def kappa(self, n: float, f: float, following: float | None) -> float | None:
        """``8 f / (n - f) (following + 1)``."""
        return None if following is None else 8 * f / (n - f) * (following + 1)

    def __call__(self, stack: Stack, *, generator: torch.Generator | None = None) -> Stack:
        """The stack of averages."""
        stack = self.admit(stack)
        shares = nearest_shares(stack.squared_distances(), stack.weights, stack.total_weight - stack.f)
        averaging = shares / shares.sum(1, keepdim=True)
        return stack.mix(averaging.masked_fill(stack.weights[:, None] == 0, 0.0))
