"""A momentum that is corrected with the gradient of the same batch at the earlier point."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.estimators.clipping import CLIPPING, check_clip, clipped, shown
from lightning_byz.estimators.estimator import Estimator
from lightning_byz.memory import Vectors


@dataclass(frozen=True)
class Storm(Estimator):
    r"""Send a momentum that follows the parameters: each past gradient is corrected for the way they have gone since.

    .. math:: d_t = g_t + (1 - \beta_t)\,(d_{t-1} - \tilde g_t), \qquad d_1 = g_1,

    where :math:`g_t` is the gradient of the worker's batch at the present parameters and :math:`\tilde g_t` that of the *same* batch, with the same
    random draws, at the parameters where :math:`d_{t-1}` was made. Plain momentum averages gradients of points long left; here the correction keeps
    the average at the present point, and on a smooth problem its error shrinks like :math:`1/t`. With ``Anytime``, which slows the point down, this
    is the double momentum :math:`\mu^2`.

    Two gradients per batch. The second pass is not seen: logs, metrics, buffers, loggers, hooks of Lightning and progress are as after one.
    A worker whose message was refused, or that was absent, is corrected from the point where its own last estimate was made.

    Cost: a second gradient, and five passes over d; memory: one vector of d numbers per worker, at least float32, a second one during the step, and
    the parameters of the last step once per rank (and once more for each step at which some worker was left behind).

    Args:
        beta: Weight of the present gradient, in (0, 1], or its schedule by the number :math:`k` of the worker's estimates: ``None`` (or
            ``"theory"``) for :math:`1/k`; ``"released"`` for :math:`\max(\mathrm{round}(1/k, 3), 0.01)`, which the authors' code runs.
            0.25 is the constant of the asynchronous paper below. With 1 the estimate is the gradient, to the bit.
        clip: Largest length of a gradient; longer ones are shortened to it, both of a batch, before they enter. The authors' value is 2.

    Raises:
        ValueError: If ``beta`` or ``clip`` is out of range.

    References:
        Cutkosky, Orabona. Momentum-Based Variance Reduction in Non-Convex SGD. NeurIPS 2019, arXiv 1905.10018.
        Dahan, Levy. Fault Tolerant ML: Efficient Meta-Aggregation and Synchronous Training. ICML 2024, arXiv 2405.14759.
        Dahan, Levy. Weight for Robustness: A Comprehensive Approach towards Optimal Fault-Tolerant Asynchronous ML. NeurIPS 2024, arXiv 2501.09621.

    Example:
        >>> rule = Storm(beta=0.5)
        >>> memory = rule.init(torch.empty(2))
        >>> for count, pair in enumerate([([4.0, 0.0], [4.0, 0.0]), ([6.0, 1.0], [5.0, 1.0])]):
        ...     estimate, memory = rule.update(memory, [torch.tensor(one) for one in pair], count=count)
        >>> estimate  # [6, 1] + 0.5 ([4, 0] - [5, 1])
        tensor([5.5000, 0.5000])

    """

    beta: float | Literal["theory", "released"] | None = None
    clip: float | None = None

    points: ClassVar[int] = 2

    def __post_init__(self) -> None:
        """Refuse a weight outside (0, 1], and lengths that are none."""
        if self.beta == "theory":
            object.__setattr__(self, "beta", None)
        number = isinstance(self.beta, int | float) and not isinstance(self.beta, bool) and 0 < self.beta <= 1
        if self.beta is not None and self.beta != "released" and not number:
            raise ValueError(
                f"Storm(beta={self.beta!r}): beta weighs the present gradient and must be in (0, 1], None for 1 / step, or 'released'."
            )
        check_clip(self, self.clip)

    @property
    def exceptions(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Laws of the contract suite that clipping does not keep."""
        return frozenset() if self.clip is None else CLIPPING

    def __repr__(self) -> str:
        """Show what is given."""
        return shown(self)

    def weight(self, count: int) -> float:
        """Return the weight of the present gradient after ``count`` adopted estimates.

        Example:
            >>> [Storm().weight(2), Storm("released").weight(2), Storm("released").weight(500), Storm(0.25).weight(500)]
            [0.3333333333333333, 0.333, 0.01, 0.25]

        """
        if self.beta == "released":
            return max(round(1 / (count + 1), 3), 0.01)
        return 1 / (count + 1) if self.beta is None else float(self.beta)

    def init(self, like: Float[Tensor, " d"]) -> Vectors:
        """Return no estimate yet, in float32 or wider, and that no coordinate has joined since."""
        return {
            "estimate": torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32)),
            "joined": False,
        }

    def update(
        self, memory: Vectors, gradients: Sequence[Float[Tensor, " d"]], *, count: int
    ) -> tuple[Float[Tensor, " d"], Vectors]:
        """Return the corrected average, as the message and as the memory; the gradient where there is none yet."""
        past, dtype, past_weight = memory["estimate"], gradients[0].dtype, 1.0 - self.weight(count)
        assert isinstance(past, Tensor)
        present = clipped(gradients[0], self.clip)
        if count == 0 or past_weight == 0:
            return present.to(dtype), {"estimate": present.to(past.dtype, copy=True), "joined": False}
        earlier = clipped(gradients[1], self.clip, out=gradients[1])
        correction = torch.sub(past, earlier, out=earlier if earlier.dtype == past.dtype else None)
        if memory["joined"]:
            correction[past.isnan()] = 0.0
        estimate = torch.add(present, correction, alpha=past_weight, out=correction)
        return estimate.to(dtype), {"estimate": estimate, "joined": False}

    def realigned(self, memory: Vectors, realign: Callable[[Tensor, float], Tensor]) -> Vectors:
        """Return the memory for other coordinates: those that are new have no estimate yet."""
        past = memory["estimate"]
        assert isinstance(past, Tensor)
        return {"estimate": realign(past, nan), "joined": True}
