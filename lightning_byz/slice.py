"""Which coordinates a rank holds."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lightning_byz.blocks import Blocks, block_size


@dataclass(frozen=True)
class Slice:
    """The run of whole blocks of coordinates that a rank holds, and how partial results become those of all coordinates.

    Args:
        start: First coordinate, a multiple of ``width``.
        stop: One past the last coordinate; the slice may be empty.
        total: Coordinates of the whole.
        gather: Takes float64 partial results, one per block of this slice along the first dimension; returns those of all blocks, in block order.
        add: Takes an int64 tensor; returns its elementwise sum over all slices.
        width: Coordinates per block; 0 means ``block_size(total)``, which it is afterwards. The same on every rank.

    Raises:
        ValueError: If the slice is not a run of whole blocks, or ``width`` is negative.
    """

    start: int
    stop: int
    total: int
    gather: Callable[[Tensor], Tensor]
    add: Callable[[Tensor], Tensor]
    width: int = 0

    def __post_init__(self) -> None:
        if self.width < 0:
            raise ValueError(f"width must be at least 1, or 0 for block_size(total), not {self.width}")
        object.__setattr__(self, "width", self.width or block_size(self.total))
        whole = all(end % self.width == 0 or end == self.total for end in (self.start, self.stop))
        if not (whole and 0 <= self.start <= self.stop <= self.total):
            raise ValueError(
                f"a slice from {self.start} to {self.stop} of {self.total} coordinates is not a run of whole blocks: "
                f"both ends must be multiples of {self.width}, or the total, and start <= stop"
            )

    @property
    def blocks(self) -> Blocks:
        """The blocks of this slice."""
        return Blocks.of(self.stop - self.start, self.width, start=self.start)


def whole_in_blocks(total: int, width: int | None) -> Slice | None:
    """All coordinates in blocks of ``width``; None where that is what they are in anyway."""
    if width is None or width == block_size(total):
        return None
    return Slice(0, total, total, lambda partials: partials, lambda counts: counts, width)
