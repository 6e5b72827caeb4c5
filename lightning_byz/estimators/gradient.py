"""The gradient itself."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lightning_byz.estimators.estimator import Estimator
from lightning_byz.memory import Vectors


@dataclass(frozen=True)
class Gradient(Estimator):
    r"""Send the gradient as it is: :math:`d_t = g_t`. No memory, no cost.

    Example:
        >>> import torch
        >>> Gradient().update({}, [torch.tensor([1.0, -2.0])], count=0)
        (tensor([ 1., -2.]), {})

    """

    def init(self, like: Float[Tensor, " d"]) -> Vectors:
        """Return the empty memory."""
        return {}

    def update(
        self, memory: Vectors, gradients: Sequence[Float[Tensor, " d"]], *, count: int
    ) -> tuple[Float[Tensor, " d"], Vectors]:
        """Return the gradient."""
        return gradients[0], memory
