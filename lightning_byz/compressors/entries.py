"""What is made of a vector on its way: bytes, cut where the slices of the coordinates are."""

from abc import ABC, abstractmethod

from jaxtyping import UInt8
from torch import Tensor


class Entries(ABC):
    """A compressed vector, before it is cut into the parts that travel."""

    @abstractmethod
    def part(self, start: int, stop: int) -> UInt8[Tensor, " b"]:
        """Return the bytes for the rules of the coordinates from ``start`` to ``stop``, ends of blocks, among all coordinates."""
