"""An exponential average of a worker's own gradients."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.estimators.estimator import Estimator, Memory


@dataclass(frozen=True)
class WorkerMomentum(Estimator):
    r"""Send an exponential average of the worker's gradients, started from zero.

    .. math:: m_t = \beta\, m_{t-1} + (1 - \beta)\, g_t, \qquad m_0 = 0

    Averaging over time narrows the spread of honest rows, and with it the room an attacker has. The first steps are short, since the average starts
    from zero; on top of momentum in the user's own optimizer the two multiply, so lower one of them.

    Cost: one pass over d; one vector of memory per worker, at least float32.

    Args:
        beta: Weight of the past, in [0, 1). The default 0.9 is the value of the reference below.

    Raises:
        ValueError: If ``beta`` is outside [0, 1).

    References:
        Karimireddy, He, Jaggi. Learning from History for Byzantine Robust Optimization. ICML 2021, arXiv 2012.10333.

    Example:
        >>> rule = WorkerMomentum(beta=0.5)
        >>> memory = rule.init(2, dtype=torch.float32)
        >>> for gradient in (torch.tensor([4.0, 0.0]), torch.tensor([4.0, 8.0])):
        ...     estimate, memory = rule.update(memory, gradient)
        >>> estimate
        tensor([3., 4.])

    """

    beta: float = 0.9

    def __post_init__(self) -> None:
        """Refuse a weight outside [0, 1)."""
        if not 0.0 <= self.beta < 1.0:
            raise ValueError(
                f"WorkerMomentum(beta={self.beta}): beta must be in [0, 1); 0.9 averages over about ten steps."
            )

    def init(self, total: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Memory:
        """Return a zero average, in float32 or wider."""
        return {"momentum": torch.zeros(total, dtype=torch.promote_types(dtype, torch.float32), device=device)}

    def update(self, memory: Memory, gradient: Float[Tensor, " d"]) -> tuple[Float[Tensor, " d"], Memory]:
        """Return the new average, as the message and as the memory."""
        momentum = memory["momentum"].mul(self.beta).add_(gradient, alpha=1.0 - self.beta)
        return momentum.to(gradient.dtype), {"momentum": momentum}
