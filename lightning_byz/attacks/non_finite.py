"""Messages that are not numbers."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lightning_byz.attacks.attack import Attack
from lightning_byz.attacks.sight import Sight


@dataclass(frozen=True)
class NonFinite(Attack):
    """Send a row of NaN or of infinities, as a diverged or broken worker does.

    Args:
        value: What fills the row: ``nan``, ``inf`` or ``-inf``.

    Raises:
        ValueError: If ``value`` is finite.

    Example:
        >>> import torch
        >>> from lightning_byz.stack import Stack
        >>> NonFinite(float("-inf")).replace(Sight(Stack(torch.ones(3, 2)), [2], torch.Generator()))
        tensor([[-inf, -inf]])
    """

    value: float = math.nan

    def __post_init__(self) -> None:
        if math.isfinite(self.value):
            raise ValueError(f"value must be nan, inf or -inf, not {self.value}")

    def replace(self, sight: Sight) -> Float[Tensor, "m d"]:
        """The same row for every attacker."""
        return sight.own.fill_(self.value)
