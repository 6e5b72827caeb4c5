"""Static clipping."""

import math
from dataclasses import dataclass

import torch

from lightning_byz.preaggregators.preaggregator import PreAggregator
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class Clipping(PreAggregator):
    r"""Shorten rows that are longer than a given length to it: :math:`y_i = x_i \min(1, c / \|x_i\|)`.

    Cost: one pass for the lengths, one copy, :math:`O(nd)`.

    Args:
        radius: :math:`c`, in the units of the rows. The default of 2 is that of ByzFL, and fits no problem but by luck.

    Raises:
        ValueError: If ``radius`` is not finite and positive.

    References:
        Compared with adaptive clipping in Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan. Adaptive Gradient Clipping for Robust Federated
        Learning. ICLR 2025, arXiv 2405.14432. No ``kappa``: the shortened rows' mean may be anywhere.

    Example:
        >>> rows = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
        >>> Clipping(radius=1.0)(Stack(rows)).vectors
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """

    radius: float = 2.0

    condition = "any f, but it bounds lengths only"
    exceptions = frozenset({"agreement", "scaling", "translation"})

    def __post_init__(self) -> None:
        if not 0 < self.radius < math.inf:
            raise ValueError(f"radius must be finite and positive, not {self.radius}")

    def __call__(self, stack: Stack, *, generator: torch.Generator | None = None) -> Stack:
        """The stack of shortened rows."""
        stack = self.admit(stack)
        return stack.shrink(self.radius / stack.squared_norms().sqrt().clamp(min=self.radius))
