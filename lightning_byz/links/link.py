"""What a worker compresses of its messages, and how the rules rebuild them."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.compressors import Compressor
from lightning_byz.compressors.coordinates import Coordinates


def memory_of(given: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return a tensor that was given away as the memory of a result of this dtype; ``None`` if it is of another."""
    return given if given.dtype == dtype else None


class Received(NamedTuple):
    """What the rules' end of a link makes of a message.

    Args:
        row: What the rules see.
        state: What this end remembers if the row is accepted; ``None`` for nothing. It may be the row itself.

    """

    row: Float[Tensor, "*k s"]
    state: Float[Tensor, "*k s"] | None


class Link(ABC):
    """The two ends between which a worker's compressed messages travel, each with at most one vector of memory per worker.

    Every method is elementwise, so that it gives the same bits at a slice of the coordinates as at all of them, and of several rows at once. A state
    starts at zero, and the next one is adopted only if the row was accepted.
    """

    at_worker: ClassVar[bool] = False
    """Whether the worker's end remembers a vector."""

    at_rules: ClassVar[bool] = False
    """Whether the rules' end does; where both do, they remember the same, and one is kept in a file."""

    exceptions: ClassVar[frozenset[str]] = frozenset()
    """Laws of the contract suite that the definition of this link does not keep, by name: ``message``, where rules see something else than messages
    even behind ``Identity``."""

    @property
    def mirrored(self) -> bool:
        """Whether both ends remember a vector, the same one."""
        return self.at_worker and self.at_rules

    def fitted(self, compressor: Compressor, coordinates: Coordinates) -> "Link":
        """Return the link with what it takes from its compressor.

        Raises:
            ValueError: If the compressor has not what the link needs.

        """
        return self

    def outgoing(self, state: Float[Tensor, "*k s"] | None, message: Float[Tensor, "*k s"]) -> Float[Tensor, "*k s"]:
        """Return what is compressed of a message, which is given away: its memory may be the result's."""
        return message

    def after(
        self,
        state: Float[Tensor, "*k s"] | None,
        outgoing: Float[Tensor, "*k s"],
        decoded: Float[Tensor, "*k s"],
    ) -> Float[Tensor, "*k s"] | None:
        """Return what the worker's end remembers next.

        Args:
            state: What it remembers now; not to be written to.
            outgoing: What was compressed; not to be written to, as it may still be on its way.
            decoded: What the rules' end reads of that; given away.

        """
        return None

    @abstractmethod
    def receive(self, state: Float[Tensor, "*k s"] | None, decoded: Float[Tensor, "*k s"]) -> Received:
        """Return what the rules see, and what their end remembers next.

        Args:
            state: What it remembers now; not to be written to.
            decoded: What was read of the message; given away.

        """
