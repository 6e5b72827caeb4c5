"""A little is enough."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.attacks.attack import Attack, Defence, honest_weights
from lightning_byz.kernels import saturate
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class ALIE(Attack):
    r"""Hide within the spread of the honest rows, all attackers at the same place: :math:`\mu - z \sigma` at each coordinate.

    :math:`\mu` and :math:`\sigma` are the weighted mean and sample standard deviation of the honest rows. The default :math:`z` is the largest where
    enough honest workers are expected further out than the attackers to make a majority with them: with :math:`m` attackers and
    :math:`s = \lfloor n / 2 + 1 \rfloor - m` such supporters, :math:`z = \Phi^{-1}((n - m - s) / (n - m))`.

    Args:
        z: Standard deviations from the mean. With few attackers the default is zero, which is sending the mean; fix z at 1 to 1.5 there.

    Raises:
        ValueError: If ``z`` is negative or not finite.

    References:
        Baruch, Baruch, Goldberg. A Little Is Enough: Circumventing Defenses For Distributed Learning. NeurIPS 2019, arXiv 1902.06156.

    Example:
        >>> rows = torch.tensor([[1.0], [4.0], [7.0], [100.0]])
        >>> ALIE(z=1.5).replace(Stack(rows), [3], generator=torch.Generator())
        tensor([[-0.5000]])
    """

    z: float | None = None

    def __post_init__(self) -> None:
        if self.z is not None and not 0 <= self.z < math.inf:
            raise ValueError(f"z must be None or a finite number >= 0, not {self.z}")

    def replace(self, stack: Stack, attackers: Sequence[int], *, generator: torch.Generator, defence: Defence | None = None) -> Float[Tensor, "m d"]:
        """The same row for every attacker; their own rows where no honest row has weight."""
        honest = honest_weights(stack, attackers)
        if not bool(honest.any()):
            return stack.vectors[list(attackers)]
        mean, variance = stack.moments(honest)
        # the divisor that makes the variance unbiased: (h - 1) / h for h equal weights
        freedom = 1 - float(honest.square().sum())
        deviation = (variance / freedom).sqrt_() if freedom > 1e-9 else torch.zeros_like(variance)
        z = _largest_z(int((honest > 0).sum()), len(attackers)) if self.z is None else self.z
        return saturate(mean - z * deviation, stack.vectors.dtype).repeat(len(attackers), 1)


def _largest_z(honest: int, attackers: int) -> float:
    """The default ``z``; zero when it would be negative, and finite when the attackers need no supporters."""
    workers = honest + attackers
    supporters = max(workers // 2 + 1 - attackers, 1)
    return NormalDist().inv_cdf(max((honest - supporters) / honest, 0.5))
