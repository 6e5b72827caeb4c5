"""Messages as they are compressed."""

from dataclasses import dataclass

from torch import Tensor

from lightning_byz.links.link import Link, Received


@dataclass(frozen=True)
class Direct(Link):
    r"""Compress the message itself, and remember nothing: the rules see :math:`C(v_t)`.

    With ``Gradient`` and an unbiased compressor this is compressed SGD (BR-CSGD); with ``WorkerMomentum`` and ``TopK``, compressed momentum without
    feedback. What a biased compressor drops is lost.

    Example:
        >>> import torch
        >>> Direct().receive(None, torch.tensor([0.0, 3.0])).row
        tensor([0., 3.])

    """

    def receive(self, state: Tensor | None, decoded: Tensor) -> Received:
        """Return what was read."""
        return Received(decoded, None)
