"""The difference from a shift that learns the message's mean."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lightning_byz.compressors import Compressor
from lightning_byz.compressors.coordinates import Coordinates
from lightning_byz.links.link import Link, Received, memory_of


@dataclass(frozen=True)
class Diana(Link):
    r"""Compress the difference between a message and a shift that both ends keep and move a part of the way.

    .. math:: c_t = Q(v_t - h_t), \qquad h_{t+1} = h_t + \alpha\,c_t, \qquad h_0 = 0,

    and the rules see :math:`h_t + c_t`, which has the mean :math:`v_t`. With ``Gradient`` this is BR-DIANA.

    Cost and memory: as for ``EF21``.

    Args:
        alpha: How far a shift follows, in (0, 1]; ``None`` for :math:`1 / (1 + \omega)` of the compressor, the authors' value.

    Raises:
        ValueError: If ``alpha`` is out of range; at the start of a run, with a compressor that is biased.

    References:
        Mishchenko, Gorbunov, Takac, Richtarik. Distributed Learning with Compressed Gradient Differences. 2019, arXiv 1901.09269.

    Example:
        >>> link, shift = Diana(alpha=0.5), torch.tensor([1.0, 1.0])
        >>> link.receive(shift, torch.tensor([4.0, 0.0]))
        Received(row=tensor([5., 1.]), state=tensor([3., 1.]))

    """

    alpha: float | None = None

    at_worker: ClassVar[bool] = True
    at_rules: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a part of the way that is none."""
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool) and 0 < self.alpha <= 1
        if self.alpha is not None and not number:
            raise ValueError(
                f"Diana(alpha={self.alpha!r}): alpha is the part of the way that a shift goes and must be in (0, 1], or None for 1 / (1 + omega)."
            )

    def fitted(self, compressor: Compressor, coordinates: Coordinates) -> Link:
        """Return the link with the step that goes with the compressor's variance."""
        omega = compressor.omega(coordinates)
        if omega is None:
            raise ValueError(
                f"link=Diana() with compressor={compressor!r}: shifts learn means only under an unbiased compressor, and this one is biased: use"
                " RandomK or Quantize, or link=EF21()."
            )
        return replace(self, alpha=1.0 / (1.0 + omega)) if self.alpha is None else self

    def outgoing(self, state: Tensor | None, message: Tensor) -> Tensor:
        """Return the difference from the shift."""
        assert state is not None
        return torch.sub(message, state, out=memory_of(message, state.dtype))

    def after(self, state: Tensor | None, outgoing: Tensor, decoded: Tensor) -> Tensor:
        """Return the shift that the rules will have."""
        assert state is not None
        assert self.alpha is not None
        return torch.add(state, decoded, alpha=self.alpha, out=memory_of(decoded, state.dtype))

    def receive(self, state: Tensor | None, decoded: Tensor) -> Received:
        """Return the shifted message, and the next shift."""
        assert state is not None
        assert self.alpha is not None
        shift = torch.add(state, decoded, alpha=self.alpha)
        return Received(torch.add(state, decoded, out=memory_of(decoded, state.dtype)), shift)
