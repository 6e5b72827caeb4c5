"""The geometric median."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from lightning_byz.aggregators.aggregator import RowAverage
from lightning_byz.kernels import coordinate_median, minority
from lightning_byz.rule import check_whole
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class GeometricMedian(RowAverage):
    r"""Find the point with the least weighted distance to all rows.

    :math:`\arg\min_z \sum_i w_i \|x_i - z\|`, by Weiszfeld's iteration :math:`z \leftarrow \sum_i b_i x_i / \sum_i b_i` with
    :math:`b_i = w_i / \max(\|x_i - z\|, \nu)`, from the coordinate-wise median, where :math:`\nu` is ``smoothing`` times the median distance from it.
    Also known as RFA. The iteration runs on coefficients: with :math:`z = \sum_i c_i x_i` all distances follow from the Gram matrix about the start.

    Cost: a coordinate-wise median, one Gram matrix and one weighted sum, :math:`O(n^2 d)`, however many iterations.

    Args:
        iterations: Weiszfeld steps; a fixed number, so that every machine takes the same.
        smoothing: Distances below this part of the median distance count as that part. The default keeps the error of the objective below it.

    Raises:
        ToleranceError: If ``f`` is not below half of the total weight.

    References:
        Pillutla, Kakade, Harchaoui. Robust Aggregation for Federated Learning. IEEE TSP 2022, arXiv 1912.13445.
        ``kappa`` is that of the exact minimum, derived in docs/bounds.md.

    Example:
        >>> rows = torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0], [1e9, 0.0]])
        >>> bool(GeometricMedian()(Stack(rows, f=1)).norm() < 1)
        True
    """

    iterations: int = 8
    smoothing: float = 1e-6

    condition = "f < W / 2"
    copies = (3.6, 9.9)
    centred = True

    def __post_init__(self) -> None:
        check_whole("iterations", self.iterations, least=1)
        if not 0 < self.smoothing < 1:
            raise ValueError(f"smoothing must lie strictly between 0 and 1, not {self.smoothing}")

    def tolerates(self, weights: Sequence[float], f: float) -> bool:
        """Whether ``f`` is below half of the total weight."""
        return minority(sum(weights), f)

    def kappa(self, n: float, f: float) -> float:
        """``4 (1 + f / (n - 2 f))^2``."""
        return 4 * (1 + f / (n - 2 * f)) ** 2

    def coefficients(self, stack: Stack, *, generator: torch.Generator | None = None) -> Float64[Tensor, " n"]:
        """The coefficients of the last iterate."""
        gram, weights = stack.gram(), stack.weights
        squares = gram.diagonal()
        distances = squares.clamp(min=0.0).sqrt()
        scale = coordinate_median(distances[:, None], stack.masses)
        if not bool(scale > 0):  # half of the weight or more sits on the start, which is then a minimum
            return _normalised(torch.where(distances > 0, 0.0, weights))
        result = _normalised(weights / torch.maximum(distances, self.smoothing * scale))
        for _ in range(self.iterations - 1):
            image = gram @ result
            distances = (squares - 2 * image + result @ image).clamp_(min=0.0).sqrt()
            result = _normalised(weights / torch.maximum(distances, self.smoothing * scale))
        return result


def _normalised(values: Tensor) -> Tensor:
    values = values / values.max()
    return values / values.sum()
