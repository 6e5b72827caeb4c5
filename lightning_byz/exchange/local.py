"""All workers in this process."""

from dataclasses import dataclass
from typing import ClassVar

import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_byz.exchange.exchange import Delivery, Exchange
from lightning_byz.exchange.placement import Placement
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class Local(Exchange):
    """Nothing travels: every worker lives in this process. For simulation and tests.

    Raises:
        ValueError: If there are several ranks.

    """

    trusts: ClassVar[str] = "this process"
    slices: ClassVar[bool] = False

    def place(self, workers: int) -> Placement:
        """Place every worker here."""
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if ranks > 1:
            raise ValueError(
                f"exchange=Local() serves one process, and this run has {ranks} ranks: use AllToAll(), or leave exchange out."
            )
        return Placement(workers, 1, 0)

    def scatter(
        self, rows: Float[Tensor, "m d"], notes: Int64[Tensor, " k"], *, placement: Placement, f: float
    ) -> Delivery:
        """Stack the rows."""
        return Delivery(Stack(rows, f=f), notes, 0)

    def gather(self, vector: Float[Tensor, " s"], stack: Stack) -> tuple[Float[Tensor, " d"], int]:
        """Return the vector."""
        return vector, 0

    def add(self, counts: Int64[Tensor, " k"]) -> Int64[Tensor, " k"]:
        """Return the counts."""
        return counts

    def collect(self, row: Tensor | None, *, worker: int, placement: Placement, like: Tensor) -> Tensor | None:
        """Return the row."""
        return None if row is None else row.detach().cpu()

    def share(self, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor
