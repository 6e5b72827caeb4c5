"""An exponential average of a worker's own gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.estimators.clipping import CLIPPING, check_clip, clipped, shown
from lightning_byz.estimators.estimator import Estimator
from lightning_byz.memory import Vectors


@dataclass(frozen=True)
class WorkerMomentum(Estimator):
    r"""Send an exponential average of the worker's gradients, started from zero.

    .. math:: m_t = \beta\, m_{t-1} + (1 - \beta)\, g_t, \qquad m_0 = 0

    Averaging over time narrows the spread of honest rows, and with it the room an attacker has. The first steps are short, since the average starts
    from zero; on top of momentum in the user's own optimizer the two multiply, so lower one of them.

    Cost: one pass over d; one vector of memory per worker, at least float32.

    Args:
        beta: Weight of the past, in [0, 1). The default 0.9 is the value of the reference below.
        clip: Largest length of a gradient; longer ones are shortened to it before they enter. Dahan & Levy (arXiv 2405.14759) run 2.

    Raises:
        ValueError: If ``beta`` is outside [0, 1), or ``clip`` no length.

    References:
        Karimireddy, He, Jaggi. Learning from History for Byzantine Robust Optimization. ICML 2021, arXiv 2012.10333.

    Example:
        >>> rule = WorkerMomentum(beta=0.5)
        >>> memory = rule.init(torch.empty(2))
        >>> for count, gradient in enumerate([torch.tensor([4.0, 0.0]), torch.tensor([4.0, 8.0])]):
        ...     estimate, memory = rule.update(memory, [gradient], count=count)
        >>> estimate
        tensor([3., 4.])

    """

    beta: float = 0.9
    clip: float | None = None

    def __post_init__(self) -> None:
        """Refuse a weight outside [0, 1)."""
        if not 0.0 <= self.beta < 1.0:
            raise ValueError(
                f"WorkerMomentum(beta={self.beta}): beta must be in [0, 1); 0.9 averages over about ten steps."
            )
        check_clip(self, self.clip)

    @property
    def exceptions(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Laws of the contract suite that clipping does not keep."""
        return frozenset() if self.clip is None else CLIPPING

    def __repr__(self) -> str:
        """Show what is given."""
        return shown(self)

    def init(self, like: Float[Tensor, " d"]) -> Vectors:
        """Return a zero average, in float32 or wider."""
        return {"momentum": torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))}

    def update(
        self, memory: Vectors, gradients: Sequence[Float[Tensor, " d"]], *, count: int
    ) -> tuple[Float[Tensor, " d"], Vectors]:
        """Return the new average, as the message and as the memory."""
        (gradient,), past = gradients, memory["momentum"]
        momentum = past.mul(self.beta).add_(clipped(gradient, self.clip), alpha=1.0 - self.beta)  # type: ignore[union-attr]
        return momentum.to(gradient.dtype), {"momentum": momentum}
