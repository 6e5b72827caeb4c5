"""Inner product manipulation."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lightning_byz.attacks.attack import Attack
from lightning_byz.attacks.sight import Sight


@dataclass(frozen=True)
class IPM(Attack):
    r"""Send a multiple of the honest mean in the opposite direction, :math:`-\epsilon \mu`. Also known as fall of empires.

    Args:
        epsilon: The multiple. A small one, as the default, hides well; a large one turns the mean around.

    Raises:
        ValueError: If ``epsilon`` is not finite and positive.

    References:
        Xie, Koyejo, Gupta. Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation. UAI 2019, arXiv 1903.03936.

    Example:
        >>> import torch
        >>> from lightning_byz.stack import Stack
        >>> rows = torch.tensor([[1.0], [3.0], [100.0]])
        >>> IPM(epsilon=0.5).replace(Sight(Stack(rows), [2], torch.Generator()))
        tensor([[-1.]])
    """

    epsilon: float = 0.1

    strength = "epsilon"

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon must be finite and positive, not {self.epsilon}")

    def replace(self, sight: Sight) -> Float[Tensor, "m d"]:
        """The same row for every attacker; their own rows where no honest row has weight."""
        honest = sight.honest_weights
        if not bool(honest.any()):
            return sight.own
        return sight.stack.combination(honest * -self.epsilon).repeat(len(sight.attackers), 1)
