"""Sign flipping."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lightning_byz.attacks.attack import Attack
from lightning_byz.attacks.sight import Sight


@dataclass(frozen=True)
class SignFlip(Attack):
    r"""Send the negative of one's own honest message, :math:`-x_i`.

    References:
        Allen-Zhu, Ebrahimianghazani, Li, Alistarh. Byzantine-Resilient Non-Convex Stochastic Gradient Descent. ICLR 2021, arXiv 2012.14368.

    Example:
        >>> import torch
        >>> from lightning_byz.stack import Stack
        >>> rows = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
        >>> SignFlip().replace(Sight(Stack(rows), [1], torch.Generator()))
        tensor([[-3.,  4.]])
    """

    def replace(self, sight: Sight) -> Float[Tensor, "m d"]:
        """The attackers' rows with their signs changed."""
        return -sight.own
