"""Reversed and scaled gradients."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.attacks.attack import Attack
from lightning_byz.attacks.sight import Sight
from lightning_byz.kernels import saturate


@dataclass(frozen=True)
class ReverseGradient(Attack):
    r"""Send a large multiple of one's own message in the opposite direction, :math:`-c\, x_i`.

    Args:
        factor: The multiple :math:`c`; 100 in the paper. What would overflow is sent as the largest finite number.

    Raises:
        ValueError: If ``factor`` is not finite and positive.

    References:
        Chen, Wang, Charles, Papailiopoulos. DRACO: Byzantine-resilient Distributed Training via Redundant Gradients. ICML 2018, arXiv 1803.09877.

    Example:
        >>> from lightning_byz.stack import Stack
        >>> rows = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
        >>> ReverseGradient(factor=10.0).replace(Sight(Stack(rows), [1], torch.Generator()))
        tensor([[-30.,  40.]])
    """

    factor: float = 100.0

    strength = "factor"

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf:
            raise ValueError(f"factor must be finite and positive, not {self.factor}")

    def replace(self, sight: Sight) -> Float[Tensor, "m d"]:
        """The attackers' rows times ``-factor``."""
        rows = sight.own
        return saturate(rows.to(torch.float64) * -self.factor, rows.dtype)
