"""Which coordinates a vector has that is compressed: all of a message, or a slice of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod

from torch import Tensor

from lightning_byz.blocks import Blocks, block_size
from lightning_byz.slice import Slice, whole_in_blocks


@dataclass(frozen=True)
class Coordinates:
    """The coordinates of a vector, in the tensors that they belong to.

    Args:
        shapes: Shape of each parameter tensor, in the order of the whole vector.
        slice: Which of the coordinates the vector has; ``None`` for all.

    Example:
        >>> whole = Coordinates([(2, 3), (4,)])
        >>> whole.total, list(whole.runs())
        (10, [(0, 0, 6), (1, 6, 10)])

    """

    shapes: Sequence[tuple[int, ...]]
    slice: Slice | None = None

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of coordinates of each tensor."""
        return tuple(prod(shape) for shape in self.shapes)

    @cached_property
    def total(self) -> int:
        """Coordinates of the whole, d."""
        return sum(self.sizes)

    @property
    def start(self) -> int:
        """The first coordinate that the vector has."""
        return 0 if self.slice is None else self.slice.start

    @property
    def stop(self) -> int:
        """One past the last."""
        return self.total if self.slice is None else self.slice.stop

    @property
    def whole(self) -> "Coordinates":
        """All coordinates, in the same blocks."""
        return Coordinates(self.shapes, None if self.slice is None else whole_in_blocks(self.total, self.slice.width))

    @cached_property
    def blocks(self) -> Blocks:
        """The blocks of coordinates, in which sums and draws are made."""
        return Blocks.of(self.total, block_size(self.total)) if self.slice is None else self.slice.blocks

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Yield each tensor that the vector has something of: its number, and from where to where, counted from the vector's start."""
        ends = list(accumulate(self.sizes))
        for place, (end, size) in enumerate(zip(ends, self.sizes, strict=True)):
            low, high = max(end - size, self.start), min(end, self.stop)
            if low < high:
                yield place, low - self.start, high - self.start

    def gather(self, partials: Tensor) -> Tensor:
        """Return the float64 partial results of all blocks, from those of the vector's blocks, along the first dimension."""
        return partials if self.slice is None else self.slice.gather(partials)

    def add(self, counts: Tensor) -> Tensor:
        """Return the sum of int64 counts over all slices."""
        return counts if self.slice is None else self.slice.add(counts)
