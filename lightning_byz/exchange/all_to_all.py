"""Each rank aggregates one slice of the coordinates of every row."""

from dataclasses import dataclass
from typing import ClassVar

from lightning_byz.exchange.pairwise import Bounds, Pairwise, slice_bounds


@dataclass(frozen=True)
class AllToAll(Pairwise):
    """Each rank gets a slice of every message, aggregates it, and all ranks gather the slices of the aggregate.

    With one worker per rank a rank receives 2 d (R - 1) / R elements per step, as in a ring all-reduce: each message goes
    to its slices' owners, and the slices of the aggregate come back. Slices are runs of whole blocks of coordinates, so the
    result does not depend on how many ranks there are.
    """

    trusts: ClassVar[str] = "every rank as aggregator of its slice; the values of workers are not trusted"

    def bounds(self, total: int, ranks: int, width: int) -> Bounds:
        """Return runs of whole blocks, as equal as they can be."""
        return slice_bounds(total, ranks, width)
