"""Adaptive robust clipping."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightning_byz.kernels import minority
from lightning_byz.preaggregators.preaggregator import PreAggregator
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class ARC(PreAggregator):
    r"""Shorten the longest rows to the length of the longest one among the others.

    Rows of a weight of :math:`k = 2 (f / W) (W - f)`, or less where rows would have to be split, are shortened: the length is the smallest one of a
    row such that rows longer than it weigh at most :math:`k`.

    Cost: one pass for the lengths, one copy, :math:`O(nd)`.

    Raises:
        ToleranceError: If ``f`` is not below half of the total weight.

    References:
        Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan. Adaptive Gradient Clipping for Robust Federated Learning. ICLR 2025, arXiv 2405.14432.
        ``kappa`` is derived in docs/bounds.md.

    Example:
        >>> rows = torch.tensor([[1.0], [2.0], [-3.0], [1e9]])
        >>> ARC()(Stack(rows, f=1)).vectors[:, 0]
        tensor([ 1.,  2., -3.,  3.])
    """

    condition = "f < W / 2"
    exceptions = frozenset({"translation"})

    def tolerates(self, weights: Sequence[float], f: float) -> bool:
        """Whether ``f`` is below half of the total weight."""
        return minority(sum(weights), f)

    def kappa(self, n: float, f: float, following: float | None) -> float | None:
        """``(sqrt(following) + sqrt(2 f / (n - 2 f)))^2``."""
        return None if following is None else (following**0.5 + (2 * f / (n - 2 * f)) ** 0.5) ** 2

    def __call__(self, stack: Stack, *, generator: torch.Generator | None = None) -> Stack:
        """The stack of shortened rows."""
        stack = self.admit(stack)
        total, lengths = stack.total_weight, stack.squared_norms().sqrt()
        longer = (lengths[None, :] > lengths[:, None]).to(torch.float64) @ stack.weights
        shortened = 2 * stack.f / total * (total - stack.f)
        bound = lengths[(longer <= shortened + 1e-9 * total) & (stack.weights > 0)].min()
        return stack.shrink(torch.where(lengths > bound, bound / lengths, 1.0))
