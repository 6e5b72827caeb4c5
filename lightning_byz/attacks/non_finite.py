"""Messages that are not numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.attacks.attack import Attack, Defence
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class NonFinite(Attack):
    """Send a row of NaN or of infinities, as a diverged or broken worker does.

    Args:
        value: What fills the row: ``nan``, ``inf`` or ``-inf``.

    Raises:
        ValueError: If ``value`` is finite.

    Example:
        >>> NonFinite(float("-inf")).replace(Stack(torch.ones(3, 2)), [2], generator=torch.Generator())
        tensor([[-inf, -inf]])
    """

    value: float = math.nan

    def __post_init__(self) -> None:
        if math.isfinite(self.value):
            raise ValueError(f"value must be nan, inf or -inf, not {self.value}")

    def replace(
        self, stack: Stack, attackers: Sequence[int], *, generator: torch.Generator, defence: Defence | None = None
    ) -> Float[Tensor, "m d"]:
        """The same row for every attacker."""
        return stack.vectors.new_full((len(attackers), stack.vectors.shape[1]), self.value)
