"""How the messages of workers reach the rules, and the aggregate the ranks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lightning_byz.exchange.placement import Placement
from lightning_byz.slice import Slice

Part = Callable[[int, int, int], UInt8[Tensor, " b"]]
"""Returns the bytes of a local worker's message for the coordinates from one to another."""


class Delivered(NamedTuple):
    """What the rules of one rank get of one step.

    Args:
        vectors: The due workers' messages in the order asked for, at this rank's coordinates. Valid until the next delivery.
        facts: How many numbers of each due worker's whole message no rule can use, and after these the ranks' facts, added up.

    """

    vectors: Float[Tensor, "k s"]
    facts: Int64[Tensor, " j"]


class Wire(ABC):
    """An exchange opened for vectors of one length: its buffers, and which coordinates this rank's rules see.

    All ranks call the same methods in the same order; nothing but tensors of shapes known beforehand travels.
    """

    slice: Slice | None = None
    """The coordinates of this rank's rules among all; ``None`` where they are all."""

    starts: Sequence[int] = (0,)
    """The first coordinate of each rank's slice that is not empty."""

    shapes: Sequence[tuple[int, ...]] | None = None
    """Those of the parameters that the vectors are made of, where whoever has opened it says; ``None`` for one tensor."""

    local: range
    """The workers of this rank."""

    received: int = 0
    """Bytes that came from other ranks so far, of messages and aggregates."""

    sent: int = 0
    """Bytes that went to other ranks so far, likewise."""

    def moved_since(self, before: tuple[int, int]) -> dict[str, int]:
        """Return the bytes received and sent since they were ``before``."""
        return {"bytes_received": self.received - before[0], "bytes_sent": self.sent - before[1]}

    @abstractmethod
    def row(self, worker: int) -> Float[Tensor, " d"]:
        """Return where a local worker's message is to be written; always the same memory."""

    @abstractmethod
    def deliver(self, due: Sequence[int], facts: Int64[Tensor, " k"]) -> Delivered:
        """Bring the messages of the ``due`` workers to the rules, and add up the ranks' facts. Rows may be written again afterwards."""

    def deliver_parts(
        self, due: Sequence[int], part: Part, size: int, *, varies: bool
    ) -> Mapping[int, UInt8[Tensor, " b"]]:
        """Bring the parts of the ``due`` workers' compressed messages that this rank's rules need to them.

        Args:
            due: Whose message was expected.
            part: Returns what a local worker sends to the rules of some coordinates.
            size: How many bytes such a part has for this rank's coordinates; where that ``varies``, at most.
            varies: Whether lengths travel first. A longer part is cut to ``size``.

        """
        raise NotImplementedError(
            f"{type(self).__name__} carries whole messages only: define deliver_parts and tell in it, or leave link and compressor out."
        )

    def tell(self, seen: Int64[Tensor, " k"], facts: Int64[Tensor, " j"]) -> Int64[Tensor, " i"]:
        """Return what the rules of all ranks have seen at their coordinates, and after it the ranks' facts, each added up."""
        raise NotImplementedError(
            f"{type(self).__name__} carries whole messages only: define deliver_parts and tell in it, or leave link and compressor out."
        )

    def spread(
        self, part: UInt8[Tensor, " b"], size: Callable[[int, int], int], *, varies: bool
    ) -> Sequence[tuple[int, int, UInt8[Tensor, " c"]]]:
        """Return the bytes of every slice of the aggregate, with its first coordinate and one past the last.

        Args:
            part: Those of this rank's slice.
            size: Returns how many bytes the part of a slice has; where that ``varies``, at most.
            varies: Whether lengths travel first.

        """
        raise NotImplementedError(
            f"{type(self).__name__} carries whole aggregates only: define spread in it, or leave downlink out."
        )

    @abstractmethod
    def assemble(self, vector: Float[Tensor, " s"], *, out: Float[Tensor, " d"] | None = None) -> Float[Tensor, " d"]:
        """Return the whole vector from every rank's part: in ``out``, else in the memory of this rank's first row, which has been delivered."""


class Exchange(ABC):
    """Brings messages from wherever workers live to wherever rules run, and the result back."""

    trusts: ClassVar[str] = "whom it does not say"
    """Whom a run through this exchange trusts, for the start-up line."""

    slices: ClassVar[bool] = True
    """Whether a rank's rules see a slice of the coordinates, when there are several ranks."""

    exceptions: ClassVar[frozenset[str]] = frozenset()
    """Laws of the contract suite that the definition of this exchange does not keep, by name: ``traffic``, where a rank receives more than its rules
    and its result need."""

    @abstractmethod
    def place(self, workers: int) -> Placement:
        """Return which rank hosts which of ``workers`` logical workers."""

    @abstractmethod
    def open(
        self, total: int, *, dtype: torch.dtype, device: torch.device, placement: Placement, width: int | None = None
    ) -> Wire:
        """Return a wire for vectors of ``total`` coordinates, in blocks of ``width``; ``None`` for ``block_size(total)``."""

    @abstractmethod
    def all_reduce(self, counts: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
        """Return the elementwise sum over ranks."""

    @abstractmethod
    def broadcast(self, tensor: Tensor) -> Tensor:
        """Return rank 0's values of ``tensor`` on every rank."""

    @abstractmethod
    def gather_to_first(self, tensor: Tensor | None, *, host: int, like: Tensor) -> Tensor | None:
        """Bring a tensor from the rank ``host`` to rank 0: on the CPU there, ``None`` elsewhere. ``like`` has its shape and dtype."""
