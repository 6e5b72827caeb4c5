"""Blocks of coordinates: the unit of every sum over coordinates and of every draw of their length, wherever the coordinates lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_SMALLEST, _LARGEST, _COUNT = 64, 16384, 256


def block_size(total: int) -> int:
    """Coordinates per block of a vector of ``total``: about 256 blocks, each a multiple of 64 between 64 and 16384."""
    ideal = -(-total // (_COUNT * _SMALLEST)) * _SMALLEST
    return min(max(ideal, _SMALLEST), _LARGEST)


@dataclass(frozen=True)
class Blocks:
    """A run of blocks.

    Args:
        start: Where the run begins among all coordinates, a multiple of ``width``.
        bounds: ``(low, high)`` of each block, counted from there.
        width: Coordinates of a whole block; the last one of all may be shorter.

    Example:
        >>> blocks = Blocks.of(150, 64, start=128)
        >>> blocks.bounds, blocks.numbers()
        (((0, 64), (64, 128), (128, 150)), [2, 3, 4])
    """

    start: int
    bounds: Sequence[tuple[int, int]]
    width: int

    @classmethod
    def of(cls, length: int, width: int, *, start: int = 0) -> "Blocks":
        """The blocks of ``length`` coordinates from ``start`` on."""
        return cls(start, tuple((low, min(low + width, length)) for low in range(0, length, width)), width)

    def __len__(self) -> int:
        return len(self.bounds)

    def numbers(self) -> list[int]:
        """The number of each block among all."""
        return [(self.start + low) // self.width for low, _ in self.bounds]

    def holding(self, ends: Sequence[int]) -> "Blocks":
        """As many blocks, which end at ``ends`` instead: of what is left of each where coordinates were left out."""
        return Blocks(self.start, tuple(pairwise([0, *ends])), self.width)
