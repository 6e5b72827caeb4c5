"""Krum."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from lightning_byz.aggregators.aggregator import RowAverage
from lightning_byz.kernels import minority, neighbour_scores
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class Krum(RowAverage):
    r"""Choose the row that is nearest to its neighbours.

    The score of a row is :math:`\sum_j u_j \|x_i - x_j\|^2` over its nearest rows, itself included, up to a weight :math:`\sum_j u_j = W - f`.
    The row with the smallest score is the result, the lowest worker id among equals. In this form integer weights equal repeated rows.

    Cost: a coordinate-wise median (which centres the distances) and one Gram matrix, :math:`O(n^2 d)`.

    Args:
        neighbors: ``"weight"`` as above. ``"paper"`` scores over the ``n - f - 2`` nearest other rows, as first published: equal weights and
            ``2 f + 2 < n`` only.

    Raises:
        ToleranceError: If ``f`` is not below half of the total weight (``"paper"``: ``2 f + 2 < n`` fails, or the weights differ).

    References:
        Blanchard, El Mhamdi, Guerraoui, Stainer. Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent. NeurIPS 2017,
        arXiv 1703.02757.
        ``kappa`` is derived in docs/bounds.md.

    Example:
        >>> rows = torch.tensor([[0.0, 1.0], [0.0, 1.5], [0.5, 1.0], [1e9, 0.0]])
        >>> Krum()(Stack(rows, f=1))
        tensor([0., 1.])
    """

    neighbors: Literal["weight", "paper"] = "weight"

    condition = 'f < W / 2, or 2 f + 2 < n with neighbors="paper"'
    copies = (3.0, 8.5)
    centred = True

    def __post_init__(self) -> None:
        check_neighbors(self.neighbors)

    @property
    def unequal_weights(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - data of the class, but for the paper's neighbours
        """Whether a part of a neighbour can count."""
        return self.neighbors == "weight"

    def tolerates(self, weights: Sequence[float], f: float) -> bool:
        """Whether ``f`` meets the condition of the chosen neighbours."""
        return tolerated(weights, f, self.neighbors)

    def kappa(self, n: float, f: float) -> float:
        """``6 (n - f) / (n - 2 f)``, which is ``6 (1 + f / (n - 2 f))``; ``6 (n - f) / (n - 2 f - 1)`` for the paper's neighbours."""
        return 6 * (n - f) / (n - 2 * f - (self.neighbors == "paper"))

    def coefficients(self, stack: Stack, *, generator: torch.Generator | None = None) -> Float64[Tensor, " n"]:
        """One for the chosen row."""
        chosen = scores(stack, self.neighbors).sort(stable=True).indices[0]
        return torch.zeros_like(stack.weights).index_fill_(0, chosen, 1.0)


def check_neighbors(neighbors: str) -> None:
    """Refuse an unknown way to choose neighbours."""
    if neighbors not in ("weight", "paper"):
        raise ValueError(f'neighbors must be "weight" or "paper", not {neighbors!r}')


def tolerated(weights: Sequence[float], f: float, neighbors: str) -> bool:
    """Whether ``f`` of the total weight meets the condition of the chosen neighbours."""
    return minority(sum(weights), f) if neighbors == "weight" else 2 * f + 2 < len(weights)


def scores(stack: Stack, neighbors: str) -> Float64[Tensor, " n"]:
    """How far each row is from its neighbours; infinite for rows without weight."""
    if neighbors == "weight":
        return neighbour_scores(stack.squared_distances(), stack.weights, stack.f, published=False)
    unit = float(stack.weights.max())
    return neighbour_scores(
        stack.squared_distances(), (stack.weights > 0).to(torch.float64), stack.f / unit, published=True
    )
