"""Min-Sum."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.attacks.attack import Attack, Defence, honest_weights
from lightning_byz.attacks.away import Deviation, away, check
from lightning_byz.kernels import saturate
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class MinSum(Attack):
    r"""As far from the honest mean as can be while the squared distances to all honest rows sum to no more than those of some honest row.

    :math:`\mu + \gamma p` with the largest :math:`\gamma` for which
    :math:`\sum_j w_j \|\mu + \gamma p - x_j\|^2 \le \max_i \sum_j w_j \|x_i - x_j\|^2` over the honest rows. About the mean both sides split into the
    same spread and a squared distance from :math:`\mu`, so what is sent is as far from the mean as the furthest honest row, in any direction
    :math:`p`; the paper searches :math:`\gamma` to a tolerance.

    Cost: two passes over the rows, :math:`O(nd)`.

    Args:
        deviation: The direction :math:`p`. ``"std"``: against the standard deviation at each coordinate. ``"unit"``: against the mean. ``"sign"``:
            against the sign of the mean.

    Raises:
        ValueError: If ``deviation`` is none of these.

    References:
        Shejwalkar, Houmansadr. Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated Learning. NDSS 2021.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [5.0], [100.0]])
        >>> MinSum().replace(Stack(rows), [3], generator=torch.Generator())
        tensor([[-1.]])
    """

    deviation: Deviation = "std"

    def __post_init__(self) -> None:
        check(self.deviation)

    def replace(
        self, stack: Stack, attackers: Sequence[int], *, generator: torch.Generator, defence: Defence | None = None
    ) -> Float[Tensor, "m d"]:
        """The same row for every attacker; their own rows where no honest row has weight."""
        honest = honest_weights(stack, attackers)
        if not bool(honest.any()):
            return stack.vectors[list(attackers)]
        mean, direction = away(stack, honest, self.deviation)
        distance = float(stack.squared_distances_to(mean)[honest > 0].max()) ** 0.5
        return saturate(mean + distance * direction, stack.vectors.dtype).repeat(len(attackers), 1)
