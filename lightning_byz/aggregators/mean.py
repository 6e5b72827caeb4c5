"""The weighted mean."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from lightning_byz.aggregators.aggregator import RowAverage
from lightning_byz.errors import warn_once
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class Mean(RowAverage):
    r"""Average the rows: what ordinary distributed training does, and what one bad row can move anywhere.

    :math:`F(x) = \sum_i w_i x_i / \sum_i w_i`. Rows that are not finite are left out, up to ``f``; nothing else is promised; ``f > 0`` warns once.

    Cost: one pass, :math:`O(nd)`.

    Example:
        >>> rows = torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 1e6]])
        >>> Mean()(Stack(rows, weights=[1, 2, 1]))
        tensor([2.0000e+00, 2.5000e+05])
    """

    condition = "no guarantee"
    copies = (1.4, 2.8)

    def coefficients(self, stack: Stack, *, generator: torch.Generator | None = None) -> Float64[Tensor, " n"]:
        """Each row's part of the weight."""
        if stack.f > 0:
            warn_once(
                "Mean tolerates no Byzantine worker, and f > 0 does not change that; it leaves out only rows that are not finite"
            )
        return stack.weights / stack.total_weight
