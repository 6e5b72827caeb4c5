"""The same number everywhere."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.attacks.attack import Attack
from lightning_byz.attacks.sight import Sight
from lightning_byz.kernels import saturate


@dataclass(frozen=True)
class Constant(Attack):
    """Send a row that holds the same number at every coordinate.

    Args:
        value: The number, in the units of the rows; -100 in the paper. What would overflow is sent as the largest finite number.

    Raises:
        ValueError: If ``value`` is not finite; :class:`NonFinite` sends what is not.

    References:
        Chen, Wang, Charles, Papailiopoulos. DRACO: Byzantine-resilient Distributed Training via Redundant Gradients. ICML 2018, arXiv 1803.09877.

    Example:
        >>> from lightning_byz.stack import Stack
        >>> Constant(value=-5.0).replace(Sight(Stack(torch.ones(3, 2)), [2], torch.Generator()))
        tensor([[-5., -5.]])
    """

    value: float = -100.0

    strength = "value"

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"value must be finite, not {self.value}")

    def replace(self, sight: Sight) -> Float[Tensor, "m d"]:
        """The same row for every attacker."""
        vectors = sight.stack.vectors
        number = saturate(torch.tensor(self.value, dtype=torch.float64, device=vectors.device), vectors.dtype)
        return number.repeat(len(sight.attackers), vectors.shape[1])
