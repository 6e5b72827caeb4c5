"""What was dropped is sent later."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_byz.compressors import Compressor
from lightning_byz.compressors.coordinates import Coordinates
from lightning_byz.links.link import Link, Received, memory_of


@dataclass(frozen=True)
class ErrorFeedback(Link):
    r"""Add what earlier messages have dropped before compressing: nothing is lost, it comes late.

    .. math:: c_t = C(e_t + v_t), \qquad e_{t+1} = e_t + v_t - c_t, \qquad e_0 = 0,

    and the rules see :math:`c_t`. The sum of all that was sent and of what waits is the sum of all messages. With ``ScaledSign`` this is EF-signSGD.
    Robust rules compare rows that are sparse in different places; ``EF21`` was made to avoid that.

    Cost: two passes over d at the worker; memory: one vector of d numbers per worker.

    Raises:
        ValueError: At the start of a run, with a compressor that is not contractive: what waits would grow without bound.

    References:
        Seide, Fu, Droppo, Li, Yu. 1-Bit Stochastic Gradient Descent. Interspeech 2014.
        Karimireddy, Rebjock, Stich, Jaggi. Error Feedback Fixes SignSGD and Other Gradient Compression Schemes. ICML 2019, arXiv 1901.09847.

    Example:
        >>> link, waits = ErrorFeedback(), torch.tensor([0.0, 2.0])
        >>> outgoing = link.outgoing(waits, torch.tensor([5.0, 1.0]))
        >>> outgoing, link.after(waits, outgoing, torch.tensor([5.0, 0.0]))
        (tensor([5., 3.]), tensor([0., 3.]))

    """

    at_worker: ClassVar[bool] = True

    def fitted(self, compressor: Compressor, coordinates: Coordinates) -> Link:
        """Refuse what leaves more waiting than was to be sent."""
        if compressor.alpha(coordinates) is None:
            raise ValueError(
                f"link=ErrorFeedback() with compressor={compressor!r}: what waits grows without bound under a compressor that is not contractive: use"
                " TopK, RandomK(..., scaled=False) or ScaledSign, or link=Diana()."
            )
        return self

    def outgoing(self, state: Tensor | None, message: Tensor) -> Tensor:
        """Add what waits."""
        assert state is not None
        return torch.add(message, state, out=memory_of(message, state.dtype))

    def after(self, state: Tensor | None, outgoing: Tensor, decoded: Tensor) -> Tensor:
        """Return what has not been sent."""
        return torch.sub(outgoing, decoded, out=memory_of(decoded, outgoing.dtype))

    def receive(self, state: Tensor | None, decoded: Tensor) -> Received:
        """Return what was read."""
        return Received(decoded, None)
