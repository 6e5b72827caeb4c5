"""Minimum diameter averaging."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from lightning_byz.aggregators.aggregator import RowAverage
from lightning_byz.kernels import minority, smallest_diameter
from lightning_byz.rule import whole
from lightning_byz.stack import Stack

_MOST = 24


@dataclass(frozen=True)
class MDA(RowAverage):
    r"""Average the ``n - f`` rows whose largest distance from each other is the smallest possible.

    Among several such sets, one of rows near all others is taken.

    Cost: a coordinate-wise median (which centres the distances), one Gram matrix and one weighted sum, :math:`O(n^2 d)`, and a branching search that
    takes at most :math:`1.47^f \log n` steps of :math:`O(n)`; therefore ``f`` is limited to 24.

    Raises:
        ToleranceError: If ``f`` is not below half of the workers or exceeds 24, or their weights differ: a part of a row has no diameter. A
            fractional ``f`` counts as the next whole number.

    References:
        El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault. Genuinely Distributed Byzantine Machine Learning. PODC 2020, arXiv 1905.03853; after
        Rousseeuw. Multivariate estimation with high breakdown point. 1985. ``kappa`` is derived in docs/bounds.md.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [3.0], [4.5], [1e9]])
        >>> MDA()(Stack(rows, f=2))
        tensor([1.3333])
    """

    condition = "f < n / 2 and f <= 24"
    centred = True
    unequal_weights = False

    def tolerates(self, weights: Sequence[float], f: float) -> bool:
        """Whether ``f`` is below half of the workers and within the limit of the search."""
        return minority(len(weights), whole(f)) and whole(f) <= _MOST

    def kappa(self, n: float, f: float) -> float | None:
        """``8 f^2 / (n - f)`` for a whole number ``f``."""
        return 8 * f**2 / (n - f) if f == round(f) else None

    def coefficients(self, stack: Stack, *, generator: torch.Generator | None = None) -> Float64[Tensor, " n"]:
        """The same for each row of the set."""
        rows = (stack.weights > 0).nonzero()[:, 0]
        kept = len(rows) - whole(stack.f / float(stack.weights.max()))
        chosen = smallest_diameter(stack.squared_distances()[rows][:, rows].cpu(), kept)
        return torch.zeros_like(stack.weights).index_fill_(0, rows[chosen], 1.0 / kept)
