"""Min-Max."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Float64
from torch import Tensor

from lightning_byz.attacks.attack import Attack
from lightning_byz.attacks.away import Deviation, as_far_as, check
from lightning_byz.attacks.sight import Sight
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class MinMax(Attack):
    r"""As far from the honest mean as can be while no honest row is further away than the honest rows are from each other.

    :math:`\mu + \gamma p` with the largest :math:`\gamma` for which
    :math:`\max_i \|\mu + \gamma p - x_i\| \le \max_{i, j} \|x_i - x_j\|` over the honest rows. Each distance is a quadratic in :math:`\gamma`, so the
    largest :math:`\gamma` is the smallest of their roots; the paper searches it to a tolerance.

    Cost: the distances between the rows, :math:`O(n^2 d)`, and two passes over them.

    Args:
        deviation: The direction :math:`p`. ``"std"``, as in the authors' code: against the standard deviation at each coordinate. ``"unit"``: against
            the mean. ``"sign"``: against the sign of the mean.

    Raises:
        ValueError: If ``deviation`` is none of these.

    References:
        Shejwalkar, Houmansadr. Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated Learning. NDSS 2021.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[2.0], [3.0], [7.0], [100.0]])
        >>> MinMax().replace(Sight(Stack(rows), [3], torch.Generator()))
        tensor([[2.]])
        >>> rows = torch.tensor([[3.0, 0.0], [3.0, 4.0], [100.0, 0.0]])
        >>> MinMax(deviation="unit").replace(Sight(Stack(rows), [2], torch.Generator()))
        tensor([[0.8966, 0.5977]])
    """

    deviation: Deviation = "std"

    def __post_init__(self) -> None:
        check(self.deviation)

    def replace(self, sight: Sight) -> Float[Tensor, "m d"]:
        """The same row for every attacker; their own rows where no honest row has weight."""
        return as_far_as(_within_the_widest, sight, self.deviation)


def _within_the_widest(
    stack: Stack, present: Bool[Tensor, " n"], mean: Float64[Tensor, " d"], direction: Float64[Tensor, " d"]
) -> float:
    """How far to go from ``mean`` along ``direction``, which has length 1."""
    squared_widest = float(stack.squared_distances()[present][:, present].max())
    if squared_widest == 0:
        return 0.0
    widest = squared_widest**0.5
    # in units of the widest distance: near and far are the squared distances of each row from the mean and from one unit further along
    near = stack.squared_distances_to(mean)[present] / squared_widest
    far = stack.squared_distances_to(mean + widest * direction)[present] / squared_widest
    along, room = (near + 1 - far) / 2, (1 - near).clamp(min=0.0)
    # of g**2 - 2 * along * g = room, the positive root
    return widest * float((along + (along.square() + room).sqrt()).min())
