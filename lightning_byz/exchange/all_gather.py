"""Every rank aggregates every row."""

from dataclasses import dataclass
from typing import ClassVar

from lightning_byz.exchange.pairwise import Bounds, Pairwise


@dataclass(frozen=True)
class AllGather(Pairwise):
    """Each rank gets all messages whole, and aggregates them for itself.

    A rank receives (n - m) d elements per step, for the n - m workers of other ranks, and holds n d of them. For small
    models, and for ranks that may compute wrongly anywhere: no rank takes another's word for a coordinate.
    """

    trusts: ClassVar[str] = "no rank as aggregator; the values of workers are not trusted"
    slices: ClassVar[bool] = False

    def bounds(self, total: int, ranks: int, width: int) -> Bounds:
        """Return all coordinates, for each rank."""
        return [(0, total)] * ranks
