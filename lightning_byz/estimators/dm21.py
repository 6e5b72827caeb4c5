"""A momentum of a momentum."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.estimators.clipping import CLIPPING, check_clip, clipped, shown
from lightning_byz.estimators.estimator import Estimator
from lightning_byz.estimators.storm import Storm
from lightning_byz.memory import Vectors


@dataclass(frozen=True)
class DM21(Estimator):
    r"""Average the worker's gradients over time twice: send an exponential average of an exponential average of them.

    .. math:: v_t = (1 - \eta)\,v_{t-1} + \eta\,g_t, \qquad u_t = (1 - \eta)\,u_{t-1} + \eta\,v_t, \qquad v_1 = u_1 = g_1,

    and the message is :math:`u_t`. Over ``EF21`` with a contractive compressor this is Byz-DM21: what travels is the difference of two messages, and
    the second average makes it smaller and smoother. With ``variance_reduced`` the first is the momentum of :class:`Storm` instead,

    .. math:: v_t = g_t + (1 - \eta)\,(v_{t-1} - \tilde g_t),

    where :math:`\tilde g_t` is the gradient of the *same* batch at the parameters where :math:`u_{t-1}` was made: Byz-VR-DM21, two gradients per
    batch. Both averages start at the first gradient, so that the first steps are not short.

    Cost: two passes over d, and variance-reduced those of ``Storm``; memory: two vectors of d numbers per worker, at least float32.

    Args:
        eta: Weight of the present in both averages, in (0, 1]. The default 0.1 averages over about ten steps, twice. With 1 the
            estimate is the gradient, to the bit.
        variance_reduced: Whether the first average is corrected at the point where the last message was made.
        clip: Largest length of a gradient; longer ones are shortened to it before they enter.

    Raises:
        ValueError: If ``eta`` is outside (0, 1], or ``clip`` no length.

    References:
        Li, Liu, Yi. Accelerating Byzantine-Robust Distributed Learning with Compressed Communication via Double Momentum and Variance Reduction.
        AISTATS 2026, arXiv 2603.15144.

    Example:
        >>> rule = DM21(eta=0.5)
        >>> memory = rule.init(torch.empty(2))
        >>> for count, gradient in enumerate([torch.tensor([4.0, 0.0]), torch.tensor([4.0, 8.0])]):
        ...     estimate, memory = rule.update(memory, [gradient], count=count)
        >>> estimate, memory["momentum"]
        (tensor([4., 2.]), tensor([4., 4.]))

    """

    eta: float = 0.1
    variance_reduced: bool = False
    clip: float | None = None

    def __post_init__(self) -> None:
        """Refuse a weight outside (0, 1], and lengths that are none."""
        if not isinstance(self.eta, int | float) or isinstance(self.eta, bool) or not 0 < self.eta <= 1:
            raise ValueError(
                f"DM21(eta={self.eta!r}): eta weighs the present and must be in (0, 1]; 0.1 averages over about ten steps, twice."
            )
        check_clip(self, self.clip)

    @property
    def points(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Two where the first average is corrected."""
        return 2 if self.variance_reduced else 1

    @property
    def exceptions(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Laws of the contract suite that clipping does not keep."""
        return frozenset() if self.clip is None else CLIPPING

    def __repr__(self) -> str:
        """Show what is given."""
        return shown(self)

    @property
    def _first(self) -> str:
        """What the first average is called in memory: as in that of ``Storm``, or of ``WorkerMomentum``."""
        return "estimate" if self.variance_reduced else "momentum"

    def init(self, like: Float[Tensor, " d"]) -> Vectors:
        """Return no averages yet, in float32 or wider, and that no coordinate has joined since."""
        zeros = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
        return {self._first: zeros, "twice": zeros.clone(), "joined": False}

    def update(
        self, memory: Vectors, gradients: Sequence[Float[Tensor, " d"]], *, count: int
    ) -> tuple[Float[Tensor, " d"], Vectors]:
        """Return the second average, as the message and in the memory; the gradient where there is none yet."""
        begins = count == 0 or self.eta == 1
        if self.variance_reduced:
            once = Storm(self.eta, self.clip).update(memory, gradients, count=count)[1]["estimate"]
        else:
            once = self._averaged(memory, "momentum", clipped(gradients[0], self.clip), begins=begins)
        assert isinstance(once, Tensor)
        twice = self._averaged(memory, "twice", once, begins=begins)
        return twice.to(gradients[0].dtype), {self._first: once, "twice": twice, "joined": False}

    def _averaged(self, memory: Vectors, name: str, present: Tensor, *, begins: bool) -> Tensor:
        """Return an average with what has come in, in memory of its own; where there is none yet, that."""
        past = memory[name]
        assert isinstance(past, Tensor)
        if begins:
            return present.to(past.dtype, copy=True)
        average = past.mul(1.0 - self.eta).add_(present, alpha=self.eta)
        return torch.where(past.isnan(), present, average) if memory["joined"] else average

    def realigned(self, memory: Vectors, realign: Callable[[Tensor, float], Tensor]) -> Vectors:
        """Return the memory for other coordinates: those that are new have no averages yet."""
        first, twice = memory[self._first], memory["twice"]
        assert isinstance(first, Tensor)
        assert isinstance(twice, Tensor)
        return {self._first: realign(first, nan), "twice": realign(twice, nan), "joined": True}
