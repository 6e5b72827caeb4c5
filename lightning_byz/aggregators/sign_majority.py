"""Majority vote on signs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.aggregators.aggregator import Aggregator
from lightning_byz.kernels import majority_signs, minority
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class SignMajority(Aggregator):
    r"""Let the workers vote on the sign of each coordinate, by weight.

    :math:`F(x)_k = \operatorname{sign} \sum_i w_i \operatorname{sign} x_{ik}`, zero where the votes balance: signSGD with majority vote, and Signum
    after ``WorkerMomentum``. Lengths are lost: every coordinate of the result is -1, 0 or 1, so that the learning rate alone says how far a step
    goes.

    Cost: one pass, :math:`O(nd)`.

    Raises:
        ToleranceError: If ``f`` is not below half of the total weight.

    References:
        Bernstein, Zhao, Azizzadenesheli, Anandkumar. signSGD with Majority Vote is Communication Efficient and Fault Tolerant. ICLR 2019,
        arXiv 1810.05291. No ``kappa``: signs are not an estimate of the mean.

    Example:
        >>> rows = torch.tensor([[1.0, 8.0], [2.0, -7.0], [-1e9, -1e9]])
        >>> SignMajority()(Stack(rows, f=1))
        tensor([ 1., -1.])
    """

    condition = "f < W / 2"
    copies = (1.3, 3.3)
    exceptions = frozenset({"agreement", "scaling", "translation"})

    def tolerates(self, weights: Sequence[float], f: float) -> bool:
        """Whether ``f`` is below half of the total weight."""
        return minority(sum(weights), f)

    def __call__(self, stack: Stack, *, generator: torch.Generator | None = None) -> Float[Tensor, " d"]:
        """The sign of each coordinate."""
        stack = self.admit(stack)
        return majority_signs(stack.vectors, stack.weights, stack.blocks())
