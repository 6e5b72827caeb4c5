"""Mean of the nearest neighbours of one worker."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from lightning_byz.aggregators.aggregator import RowAverage
from lightning_byz.kernels import minority, nearest_shares
from lightning_byz.rule import check_whole
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class MoNNA(RowAverage):
    r"""Average the rows nearest to one trusted worker's.

    Rows are kept in the order of their distance from the row of worker ``pivot``, lower worker ids first among equals, up to a weight of
    :math:`W - f`; the row that passes it is kept in part. In the paper every worker does this around its own row; here one worker is chosen for all,
    and whoever controls it controls the result.

    Cost: one pass for the distances and one for the sum, :math:`O(nd)`.

    Args:
        pivot: The worker that is trusted. In a step in which it has no weight or sent nothing usable, the next worker that did, counted in circles.

    Raises:
        ValueError: If ``pivot`` is no whole number, or no worker.
        ToleranceError: If ``f`` is not below half of the total weight.

    References:
        Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan. Robust Collaborative Learning with Linear Gradient Overhead. ICML 2023, arXiv
        2209.10931. No ``kappa``: it would need a pivot that is honest.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [2.5], [1e9]])
        >>> MoNNA(pivot=1)(Stack(rows, f=1)), MoNNA(pivot=2)(Stack(rows, f=1.5))
        (tensor([1.1667]), tensor([1.4000]))
    """

    pivot: int = 0

    condition = "f < W / 2"
    copies = (2.1, 4.8)
    exceptions = frozenset({"breakdown", "permutation"})

    def __post_init__(self) -> None:
        check_whole("pivot", self.pivot, least=0)

    def tolerates(self, weights: Sequence[float], f: float) -> bool:
        """Whether ``f`` is below half of the total weight."""
        return minority(sum(weights), f)

    def coefficients(self, stack: Stack, *, generator: torch.Generator | None = None) -> Float64[Tensor, " n"]:
        """Each row's part of the weight kept."""
        if self.pivot >= len(stack.weights):
            raise ValueError(
                f"pivot={self.pivot} is no worker: the {len(stack.weights)} workers are 0 to {len(stack.weights) - 1}"
            )
        ids = [worker % len(stack.weights) for worker in range(self.pivot, self.pivot + len(stack.weights))]
        present = (stack.weights[ids] > 0).tolist()
        centre = stack.vectors[ids[present.index(True)]]
        shares = nearest_shares(stack.squared_distances_to(centre)[None], stack.weights, stack.total_weight - stack.f)[
            0
        ]
        return shares / shares.sum()
