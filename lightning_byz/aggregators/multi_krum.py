"""Multi-Krum."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from lightning_byz.aggregators.aggregator import RowAverage
from lightning_byz.aggregators.krum import check_neighbors, scores, tolerated
from lightning_byz.kernels import nearest_shares
from lightning_byz.rule import check_whole
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class MultiKrum(RowAverage):
    r"""Average the rows that are nearest to their neighbours.

    Rows are taken in the order of Krum's score, lower worker ids first among equals, up to a weight of :math:`W - f`; the row that passes it is kept
    in part. :math:`F(x) = \sum_i u_i x_i / \sum_i u_i`.

    Cost: a coordinate-wise median (which centres the distances), one Gram matrix and one weighted sum, :math:`O(n^2 d)`.

    Args:
        selected: How many rows to average, at most ``n - f``; 1 is Krum, others use ``n - f - 2``. The default is a weight of ``W - f``. A number of
            rows takes equal weights only.
        neighbors: As for :class:`Krum`.

    Raises:
        ValueError: If ``selected`` is below 1.
        ToleranceError: If ``f`` is not below half of the total weight, or ``selected`` exceeds ``n - f``; as for :class:`Krum`.

    References:
        Blanchard, El Mhamdi, Guerraoui, Stainer. Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent. NeurIPS 2017,
        arXiv 1703.02757. ``kappa`` is derived in docs/bounds.md.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [2.5], [1e9]])
        >>> MultiKrum()(Stack(rows, f=1)), MultiKrum(selected=2)(Stack(rows, f=1))
        (tensor([1.1667]), tensor([0.5000]))
    """

    selected: int | None = None
    neighbors: Literal["weight", "paper"] = "weight"

    condition = 'f < W / 2, or 2 f + 2 < n with neighbors="paper"; selected <= n - f'
    copies = (3.8, 10.1)
    centred = True

    def __post_init__(self) -> None:
        check_neighbors(self.neighbors)
        if self.selected is not None:
            check_whole("selected", self.selected, least=1)

    @property
    def unequal_weights(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - data of the class, but for the paper's neighbours
        """Whether a part of a row can count."""
        return self.neighbors == "weight" and self.selected is None

    def tolerates(self, weights: Sequence[float], f: float) -> bool:
        """Whether ``f`` meets the condition of the chosen neighbours, and leaves enough rows to select."""
        return tolerated(weights, f, self.neighbors) and (self.selected or 0) <= (sum(weights) - f) * (1 + 1e-9)

    def kappa(self, n: float, f: float) -> float:
        """``6 (n - f) / h``, or for the default ``selected`` ``2 f / (n - f) (1 + 2 (n + f) / h)`` if smaller.

        ``h`` is ``n - 2 f``, less 1 for the paper's neighbours.
        """
        honest = n - 2 * f - (self.neighbors == "paper")
        any_number = 6 * (n - f) / honest
        return (
            any_number if self.selected is not None else min(any_number, 2 * f / (n - f) * (1 + 2 * (n + f) / honest))
        )

    def coefficients(self, stack: Stack, *, generator: torch.Generator | None = None) -> Float64[Tensor, " n"]:
        """Each row's part of the weight kept."""
        budget = stack.total_weight - stack.f if self.selected is None else self.selected * float(stack.weights.max())
        shares = nearest_shares(scores(stack, self.neighbors)[None], stack.weights, budget)[0]
        return shares / shares.sum()
