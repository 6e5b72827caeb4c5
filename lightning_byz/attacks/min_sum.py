"""Min-Sum."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Float64
from torch import Tensor

from lightning_byz.attacks.attack import Attack
from lightning_byz.attacks.away import Deviation, as_far_as, check
from lightning_byz.attacks.sight import Sight
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
        >>> import torch
        >>> rows = torch.tensor([[0.0], [1.0], [5.0], [100.0]])
        >>> MinSum().replace(Sight(Stack(rows), [3], torch.Generator()))
        tensor([[-1.]])
    """

    deviation: Deviation = "std"

    def __post_init__(self) -> None:
        check(self.deviation)

    def replace(self, sight: Sight) -> Float[Tensor, "m d"]:
        """The same row for every attacker; their own rows where no honest row has weight."""
        return as_far_as(_as_the_furthest, sight, self.deviation)


def _as_the_furthest(
    stack: Stack, present: Bool[Tensor, " n"], mean: Float64[Tensor, " d"], direction: Float64[Tensor, " d"]
) -> float:
    """How far the furthest row is from ``mean``, whatever the ``direction``."""
    return float(stack.squared_distances_to(mean)[present].max()) ** 0.5
