"""All workers in this process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_byz.exchange.exchange import Delivered, Exchange, Part, Wire
from lightning_byz.exchange.placement import Placement, world_size
from lightning_byz.kernels import unusable
from lightning_byz.slice import Slice, whole_in_blocks


@dataclass(frozen=True)
class Local(Exchange):
    """Nothing travels: every worker lives in this process. For simulation and tests.

    Raises:
        ValueError: If there are several ranks.

    Example:
        >>> local = Local()
        >>> wire = local.open(3, dtype=torch.float32, device=torch.device("cpu"), placement=local.place(2))
        >>> _ = wire.row(0).fill_(1.0), wire.row(1).fill_(float("nan"))
        >>> wire.deliver([0, 1], torch.tensor([7]))
        Delivered(vectors=tensor([[1., 1., 1.],
                [nan, nan, nan]]), facts=tensor([0, 3, 7]))

    """

    trusts: ClassVar[str] = "this process"
    slices: ClassVar[bool] = False

    def place(self, workers: int) -> Placement:
        """Place every worker here."""
        ranks = world_size()
        if ranks > 1:
            raise ValueError(
                f"exchange=Local() serves one process, and this run has {ranks} ranks: use AllToAll(), or leave exchange"
                " out."
            )
        return Placement(workers, 1, 0)

    def open(
        self, total: int, *, dtype: torch.dtype, device: torch.device, placement: Placement, width: int | None = None
    ) -> Wire:
        """Return a wire whose rows are what the rules see."""
        rows = torch.empty(placement.workers, total, dtype=dtype, device=device)
        return _LocalWire(rows, whole_in_blocks(total, width))

    def all_reduce(self, counts: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
        """Return the counts."""
        return counts

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor

    def gather_to_first(self, tensor: Tensor | None, *, host: int, like: Tensor) -> Tensor | None:
        """Return the tensor."""
        return None if tensor is None else tensor.detach().cpu()


class _LocalWire(Wire):
    def __init__(self, rows: Float[Tensor, "n d"], part: Slice | None) -> None:
        self._rows, self._each = rows, dict(enumerate(rows))
        self.slice = part
        self.local = range(len(rows))

    def row(self, worker: int) -> Float[Tensor, " d"]:
        return self._each[worker]

    def deliver(self, due: Sequence[int], facts: Int64[Tensor, " k"]) -> Delivered:
        run = range(due[0], due[-1] + 1) if due else range(0)
        vectors = self._rows[run.start : run.stop] if list(due) == list(run) else self._rows[list(due)]
        return Delivered(vectors, torch.cat([unusable(vectors), facts.to(vectors.device)]))

    def deliver_parts(self, due: Sequence[int], part: Part, size: int, *, varies: bool) -> Mapping[int, Tensor]:
        return {worker: part(worker, 0, self._rows.shape[1]) for worker in due}

    def tell(self, seen: Int64[Tensor, " k"], facts: Int64[Tensor, " j"]) -> Int64[Tensor, " i"]:
        return torch.cat([seen, facts.to(seen.device)])

    def assemble(self, vector: Float[Tensor, " s"], *, out: Float[Tensor, " d"] | None = None) -> Float[Tensor, " d"]:
        return (self._each[0] if out is None else out).copy_(vector)
