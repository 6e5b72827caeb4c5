"""The gradient itself."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.estimators.estimator import Estimator, Memory


@dataclass(frozen=True)
class Gradient(Estimator):
    r"""Send the gradient as it is: :math:`d_t = g_t`. No memory, no cost.

    Example:
        >>> estimate, memory = Gradient().update({}, torch.tensor([1.0, -2.0]))
        >>> estimate, memory
        (tensor([ 1., -2.]), {})

    """

    def init(self, total: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Memory:
        """Return the empty memory."""
        return {}

    def update(self, memory: Memory, gradient: Float[Tensor, " d"]) -> tuple[Float[Tensor, " d"], Memory]:
        """Return the gradient."""
        return gradient, memory
