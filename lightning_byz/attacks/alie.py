"""A little is enough."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lightning_byz.attacks.attack import Attack
from lightning_byz.attacks.sight import Sight
from lightning_byz.kernels import SLIVER, saturate


@dataclass(frozen=True)
class ALIE(Attack):
    r"""Hide within the spread of the honest rows, all attackers at the same place: :math:`\mu - z \sigma` at each coordinate.

    :math:`\mu` and :math:`\sigma` are the weighted mean and sample standard deviation of the honest rows. The default :math:`z` is the largest where
    enough honest workers are expected further out than the attackers to make a majority with them: with :math:`m` attackers among :math:`n` workers
    that are present and :math:`s = \lfloor n / 2 + 1 \rfloor - m` such supporters, :math:`z = \Phi^{-1}((n - m - s) / (n - m))`. Where weights differ
    the majority is one of weight: with :math:`b` of a total :math:`W` attacking, :math:`z = \Phi^{-1}(W / 2 / (W - b))`, which is the limit of the
    same formula for many workers and, like all of this, depends on proportions alone.

    Libraries differ in the sign: :math:`\mu - z \sigma` is the paper's; for :math:`\mu + z \sigma` give a negative ``z``.

    Args:
        z: Standard deviations below the mean. With few attackers the default is zero, which is sending the mean; fix z at 1 to 1.5 there.

    Raises:
        ValueError: If ``z`` is not finite.

    References:
        Baruch, Baruch, Goldberg. A Little Is Enough: Circumventing Defenses For Distributed Learning. NeurIPS 2019, arXiv 1902.06156.

    Example:
        >>> from lightning_byz.stack import Stack
        >>> rows = torch.tensor([[1.0], [4.0], [7.0], [100.0]])
        >>> ALIE(z=1.5).replace(Sight(Stack(rows), [3], torch.Generator()))
        tensor([[-0.5000]])
    """

    z: float | None = None

    strength = "z"

    def __post_init__(self) -> None:
        if self.z is not None and not math.isfinite(self.z):
            raise ValueError(f"z must be None or a finite number, not {self.z}")

    def replace(self, sight: Sight) -> Float[Tensor, "m d"]:
        """The same row for every attacker; their own rows where no honest row has weight."""
        honest = sight.honest_weights
        if not bool(honest.any()):
            return sight.own
        mean, variance = sight.stack.moments(honest)
        # the divisor that makes the variance unbiased: (h - 1) / h for h equal weights
        freedom = 1 - float(honest.square().sum())
        deviation = (variance / freedom).sqrt_() if freedom > 1e-9 else torch.zeros_like(variance)
        z = _largest_z(sight.stack.weights, honest, sight.attackers) if self.z is None else self.z
        return saturate(mean - z * deviation, sight.stack.vectors.dtype).repeat(len(sight.attackers), 1)


def _largest_z(weights: Float64[Tensor, " n"], honest: Float64[Tensor, " n"], attackers: Sequence[int]) -> float:
    """The default ``z``; zero when it would be negative, and finite when the attackers need no supporters."""
    present = weights[weights > 0]
    if bool(present.max() - present.min() <= SLIVER * present.max()):
        count = int((honest > 0).sum())
        supporters = max(len(present) // 2 + 1 - (len(present) - count), 1)
        inside = (count - supporters) / count
    else:
        attacking = float(weights[list(attackers)].sum() / weights.sum())
        # one supporter at least, of the mean weight of an honest row
        inside = min(0.5 / max(1 - attacking, 0.5), 1 - float(honest.square().sum()))
    return NormalDist().inv_cdf(max(inside, 0.5))
