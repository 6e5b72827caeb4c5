"""Which coordinates a rank holds."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

import lightning_byz.kernels as kernels


@dataclass(frozen=True)
class Slice:
    """The run of whole blocks of coordinates that a rank holds, and how partial results become those of all coordinates.

    Args:
        start: First coordinate, a multiple of ``block_size(total)``.
        stop: One past the last coordinate; the slice may be empty.
        total: Coordinates of the whole.
        gather: Takes float64 partial results, one per block of this slice along the first dimension; returns those of all blocks, in block order.
        add: Takes an int64 tensor; returns its elementwise sum over all slices.
    """

    start: int
    stop: int
    total: int
    gather: Callable[[Tensor], Tensor]
    add: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        size = kernels.block_size(self.total)
        whole = all(end % size == 0 or end == self.total for end in (self.start, self.stop))
        if not (whole and 0 <= self.start <= self.stop <= self.total):
            raise ValueError(
                f"a slice from {self.start} to {self.stop} of {self.total} coordinates is not a run of whole blocks: "
                f"both ends must be multiples of {size}, or the total, and start <= stop"
            )
