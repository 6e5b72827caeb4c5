"""Smallest maximum eigenvalue averaging."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import torch
from jaxtyping import Float64
from torch import Tensor

from lightning_byz.aggregators.aggregator import RowAverage
from lightning_byz.kernels import minority, smallest_spread
from lightning_byz.rule import whole
from lightning_byz.stack import Stack

_MOST = 2**25


@dataclass(frozen=True)
class SMEA(RowAverage):
    r"""Average the ``n - f`` rows whose variance along their principal direction is the smallest possible.

    The principal direction is the eigenvector of the rows' covariance with the largest eigenvalue. Among several such sets, the first is taken.

    Cost: a coordinate-wise median (which centres the rows), one Gram matrix and one weighted sum, :math:`O(n^2 d)`, and a bound of :math:`O(n^2)` for
    each of the :math:`\binom{n}{f}` sets, of which few need their eigenvalues: some seconds at the limit, :math:`\binom{n}{f} (n - f)^2 \le 2^{25}`.

    Raises:
        ToleranceError: If ``f`` is not below half of the workers, or there are too many sets, or the weights differ: a part of a row has no
            covariance. A fractional ``f`` counts as the next whole number.

    References:
        Allouah, Guerraoui, Gupta, Pinot, Stephan. On the Privacy-Robustness-Utility Trilemma in Distributed Learning. ICML 2023, arXiv 2302.04787.
        ``kappa`` is derived in docs/bounds.md.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [3.0], [4.5], [1e9]])
        >>> SMEA()(Stack(rows, f=2))
        tensor([1.3333])
    """

    condition = "f < n / 2 and C(n, f) (n - f)^2 <= 2^25"
    centred = True
    unequal_weights = False

    def tolerates(self, weights: Sequence[float], f: float) -> bool:
        """Whether ``f`` is below half of the workers and there are few enough sets."""
        kept = len(weights) - whole(f)
        return minority(len(weights), whole(f)) and comb(len(weights), kept) * kept**2 <= _MOST

    def kappa(self, n: float, f: float) -> float | None:
        """``4 f / (n - 2 f)`` for a whole number ``f``."""
        return 4 * f / (n - 2 * f) if f == round(f) else None

    def coefficients(self, stack: Stack, *, generator: torch.Generator | None = None) -> Float64[Tensor, " n"]:
        """The same for each row of the set."""
        rows = (stack.weights > 0).nonzero()[:, 0]
        kept = len(rows) - whole(stack.f / float(stack.weights.max()))
        chosen = smallest_spread(stack.gram()[rows][:, rows].cpu(), kept)
        return torch.zeros_like(stack.weights).index_fill_(0, rows[chosen], 1.0 / kept)
