"""The difference from a mirror that both ends keep."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_byz.compressors import Compressor
from lightning_byz.compressors.coordinates import Coordinates
from lightning_byz.links.link import Link, Received, memory_of


@dataclass(frozen=True)
class EF21(Link):
    r"""Compress the difference between a message and a mirror of it that both ends keep; the rules see the mirror.

    .. math:: c_t = C(v_t - g_{t-1}), \qquad g_t = g_{t-1} + c_t, \qquad g_0 = 0

    As messages settle, mirrors become what was to be sent, however little travels, and rows stay dense. With ``WorkerMomentum`` and ``TopK`` this is
    Byz-EF21-SGDM; with the gradient of the whole shard, Byz-EF21. The first message is compressed too, from a mirror of zero, as in the authors' code
    for logistic regression (for images it starts with a whole gradient instead).

    Cost: two passes over d at the worker and one per row at the rules; memory: d numbers per worker at its own end and, over all ranks, n d at the
    rules' end.

    Raises:
        ValueError: At the start of a run, with a compressor that is not contractive.

    References:
        Richtarik, Sokolov, Fatkhullin. EF21: A New, Simpler, Theoretically Better, and Practically Faster Error Feedback. NeurIPS 2021,
            arXiv 2106.05203.
        Liu, Li, Yi, Johansson. Byzantine-Robust and Communication-Efficient Distributed Learning via Compressed Momentum Filtering. TNNLS 2026,
            arXiv 2409.08640.

    Example:
        >>> link, mirror = EF21(), torch.tensor([1.0, 1.0])
        >>> link.outgoing(mirror, torch.tensor([5.0, 2.0])), link.receive(mirror, torch.tensor([4.0, 0.0])).row
        (tensor([4., 1.]), tensor([5., 1.]))

    """

    at_worker: ClassVar[bool] = True
    at_rules: ClassVar[bool] = True

    def fitted(self, compressor: Compressor, coordinates: Coordinates) -> Link:
        """Refuse what does not bring a mirror closer."""
        if compressor.alpha(coordinates) is None:
            raise ValueError(
                f"link=EF21() with compressor={compressor!r}: mirrors come closer only under a contractive compressor: use TopK,"
                " RandomK(..., scaled=False) or ScaledSign, or link=Diana()."
            )
        return self

    def outgoing(self, state: Tensor | None, message: Tensor) -> Tensor:
        """Return the difference from the mirror."""
        assert state is not None
        return torch.sub(message, state, out=memory_of(message, state.dtype))

    def after(self, state: Tensor | None, outgoing: Tensor, decoded: Tensor) -> Tensor:
        """Return the mirror that the rules will have."""
        assert state is not None
        return torch.add(state, decoded, out=memory_of(decoded, state.dtype))

    def receive(self, state: Tensor | None, decoded: Tensor) -> Received:
        """Return the new mirror."""
        assert state is not None
        mirror = torch.add(state, decoded, out=memory_of(decoded, state.dtype))
        return Received(mirror, mirror)
