"""Divide and conquer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from lightning_byz.aggregators.aggregator import RowAverage
from lightning_byz.kernels import minority, nearest_shares, principal_spread
from lightning_byz.random import distinct
from lightning_byz.rule import check_whole
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class DnC(RowAverage):
    r"""Drop the rows that stick out along the principal direction of some coordinates, and average the others.

    Per iteration, ``coordinates`` of them are drawn; on these, with :math:`v` the direction of the largest variance about the mean :math:`\mu`, the
    rows with the smallest :math:`\langle x_i - \mu, v \rangle^2` are kept, up to a weight of :math:`W - c f`. Rows kept in all iterations are
    averaged. Shown to detect some attacks, not bounded against all: what does not lie along the principal direction passes.

    Cost: a Gram matrix of the drawn coordinates per iteration, :math:`O(n^2 \cdot` ``coordinates`` :math:`)`, and one weighted sum, :math:`O(nd)`.

    Args:
        iterations: How often.
        coordinates: How many are drawn each time; all, where there are not more.
        factor: :math:`c`, how many times ``f`` is dropped each time.

    Raises:
        ValueError: If a parameter is not positive; without a generator.
        ToleranceError: If ``f`` is not below half of the total weight, or nothing could be left after all iterations.

    References:
        Shejwalkar, Houmansadr. Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated Learning. NDSS 2021.
        Implementations in use drop ``f`` on 10,000 coordinates in one iteration, or in five. No ``kappa`` is known.

    Example:
        >>> rows = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [1.0, 2.0], [1e9, 1.0]])
        >>> DnC()(Stack(rows, f=1), generator=torch.Generator().manual_seed(0))
        tensor([1., 1.])
    """

    iterations: int = 1
    coordinates: int = 10_000
    factor: float = 1.0

    condition = "f < W / 2 and iterations * factor * f < W"
    exceptions = frozenset({"breakdown"})
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_whole("iterations", self.iterations, least=1)
        check_whole("coordinates", self.coordinates, least=1)
        if not 0 < self.factor < float("inf"):
            raise ValueError(f"factor must be finite and positive, not {self.factor}")

    def tolerates(self, weights: Sequence[float], f: float) -> bool:
        """Whether ``f`` is below half of the total weight and something is sure to be left."""
        total = sum(weights)
        return minority(total, f) and minority(total, self.iterations * self.factor * f / 2)

    def coefficients(self, stack: Stack, *, generator: torch.Generator | None = None) -> Float64[Tensor, " n"]:
        """The part kept of each row's weight."""
        draws, kept = self.drawing(generator), stack.weights
        for _ in range(self.iterations):
            columns = distinct(min(self.coordinates, stack.total), stack.total, draws).sort().values
            gram = stack.sampled_gram(columns.to(stack.vectors.device))
            _, distances = principal_spread(gram.cpu(), stack.weights.cpu())
            shares = nearest_shares(
                distances[None].to(kept.device), stack.weights, stack.total_weight - self.factor * stack.f
            )[0]
            kept = torch.minimum(kept, shares)
        return kept / kept.sum()
