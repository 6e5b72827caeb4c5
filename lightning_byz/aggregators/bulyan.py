"""Bulyan."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.aggregators.aggregator import Aggregator
from lightning_byz.aggregators.krum import check_neighbors
from lightning_byz.kernels import mean_around_median, neighbour_scores
from lightning_byz.rule import whole
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class Bulyan(Aggregator):
    r"""Select rows by Krum, one after another, then average each coordinate around the median of the selected.

    :math:`\theta = n - 2 f` times, Krum's choice among the rows that are left is moved to the selected ones. At each coordinate the
    :math:`\theta - 2 f` selected values nearest to their median are averaged.

    Cost: a coordinate-wise median (which centres the distances), one Gram matrix, :math:`O(n^2 d)`, selection on the distances alone,
    :math:`O(n^3 \log n)`, and a sorting network over the selected rows.

    Args:
        neighbors: Among :math:`n'` rows that are left, ``"paper"`` scores over the :math:`n' - f - 2` nearest others, but at least one;
            ``"weight"`` over the :math:`n' - f - 1` nearest others.

    Raises:
        ToleranceError: If there are fewer than ``4 f + 3`` workers, or their weights differ: a part of a row cannot be selected. A fractional ``f``
            counts as the next whole number.

    References:
        El Mhamdi, Guerraoui, Rouault. The Hidden Vulnerability of Distributed Learning in Byzantium. ICML 2018, arXiv 1802.07927. ``kappa`` is
        derived in docs/bounds.md.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [1.5], [2.0], [2.2], [3.0], [1e9]])
        >>> Bulyan()(Stack(rows, f=1))
        tensor([1.5000])
    """

    neighbors: Literal["weight", "paper"] = "paper"

    condition = "n >= 4 f + 3"
    centred = True
    unequal_weights = False
    exceptions = frozenset(
        {"permutation"}
    )  # towards the end few neighbours count, and rows that are each other's nearest tie

    def __post_init__(self) -> None:
        check_neighbors(self.neighbors)

    def tolerates(self, weights: Sequence[float], f: float) -> bool:
        """Whether there are ``4 f + 3`` workers or more."""
        return len(weights) >= 4 * whole(f) + 3

    def kappa(self, n: float, f: float) -> float | None:
        """``(sqrt(2) (n - f) / sqrt(n - 3 f) + sqrt(n + 2 f))^2 / (n - 4 f)`` for a whole number ``f``."""
        return (
            (2**0.5 * (n - f) / (n - 3 * f) ** 0.5 + (n + 2 * f) ** 0.5) ** 2 / (n - 4 * f) if f == round(f) else None
        )

    def __call__(self, stack: Stack, *, generator: torch.Generator | None = None) -> Float[Tensor, " d"]:
        """The mean around the median of the selected rows."""
        stack = self.admit(stack)
        left = (stack.weights > 0).to(torch.float64)
        bad = whole(stack.f / float(stack.weights.max()))
        distances, selected = stack.squared_distances(), torch.zeros_like(left)
        for _ in range(int(left.sum()) - 2 * bad):
            chosen = (
                neighbour_scores(distances, left, bad, published=self.neighbors == "paper")
                .sort(stable=True)
                .indices[:1]
            )
            selected.index_fill_(0, chosen, 1.0)
            left.index_fill_(0, chosen, 0.0)
        return mean_around_median(stack.vectors, selected.tolist(), 2.0 * bad)
