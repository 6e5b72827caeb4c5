"""Gaussian noise."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.attacks.attack import Attack
from lightning_byz.attacks.sight import Sight
from lightning_byz.kernels import saturate
from lightning_byz.random import by_block


@dataclass(frozen=True)
class Gaussian(Attack):
    r"""Send noise, :math:`\mathcal{N}(0, s^2)` at each coordinate, drawn anew for every attacker and step.

    Cost: one draw per coordinate and attacker, a block of coordinates at a time.

    Args:
        deviation: The standard deviation :math:`s`, in the units of the rows. The default is that of the paper below; others take 0.5, which is
            also far from honest once there are many coordinates, as the length of the row is :math:`s \sqrt{d}`.

    Raises:
        ValueError: If ``deviation`` is not finite and positive.

    References:
        Blanchard, El Mhamdi, Guerraoui, Stainer. Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent. NeurIPS 2017,
        arXiv 1703.02757.

    Example:
        >>> from lightning_byz.stack import Stack
        >>> rows = Gaussian(deviation=3.0).replace(Sight(Stack(torch.ones(9, 10000)), [7, 8], torch.Generator().manual_seed(0)))
        >>> rows.std(dim=1).round(), bool((rows[0] == rows[1]).any())
        (tensor([3., 3.]), False)
    """

    deviation: float = 200.0

    strength = "deviation"

    def __post_init__(self) -> None:
        if not 0 < self.deviation < math.inf:
            raise ValueError(f"deviation must be finite and positive, not {self.deviation}")

    def replace(self, sight: Sight) -> Float[Tensor, "m d"]:
        """Noise; the same numbers wherever the coordinates are cut."""
        stack, attackers = sight.stack, sight.attackers
        rows = stack.vectors.new_empty(len(attackers), stack.vectors.shape[1])
        for low, high, source in by_block(sight.generator, stack.blocks()):
            noise = torch.randn(len(attackers), high - low, generator=source, dtype=torch.float64, device=source.device)
            rows[:, low:high] = saturate(noise.mul_(self.deviation), rows.dtype)
        return rows
