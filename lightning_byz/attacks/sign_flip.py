"""Sign flipping."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.attacks.attack import Attack, Defence
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class SignFlip(Attack):
    r"""Send the negative of one's own honest message, :math:`-x_i`.

    References:
        Allen-Zhu, Ebrahimianghazani, Li, Alistarh. Byzantine-Resilient Non-Convex Stochastic Gradient Descent. ICLR 2021, arXiv 2012.14368.

    Example:
        >>> rows = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
        >>> SignFlip().replace(Stack(rows), [1], generator=torch.Generator())
        tensor([[-3.,  4.]])
    """

    def replace(
        self, stack: Stack, attackers: Sequence[int], *, generator: torch.Generator, defence: Defence | None = None
    ) -> Float[Tensor, "m d"]:
        """The attackers' rows with their signs changed."""
        return -stack.vectors[list(attackers)]
