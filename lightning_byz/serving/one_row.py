"""The way of messages that come one at a time: through one row, whoever's they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_byz.exchange import Delivered, Local, Placement, Wire
from lightning_byz.kernels import unusable
from lightning_byz.slice import whole_in_blocks


@dataclass(frozen=True)
class OneByOne(Local):
    """Every worker's message reaches the rules in the same row: one worker delivers at a step.

    Example:
        >>> wire = OneByOne().open(2, dtype=torch.float32, device=torch.device("cpu"), placement=Placement(3, 1, 0))
        >>> _ = wire.row(2).fill_(1.0)
        >>> wire.deliver([2], torch.tensor([7]))
        Delivered(vectors=tensor([[1., 1.]]), facts=tensor([0, 7]))

    """

    trusts: ClassVar[str] = "the serving process"

    def open(
        self, total: int, *, dtype: torch.dtype, device: torch.device, placement: Placement, width: int | None = None
    ) -> Wire:
        """Return a wire of one row."""
        return _Row(torch.empty(1, total, dtype=dtype, device=device), whole_in_blocks(total, width), placement.workers)


class _Row(Wire):
    def __init__(self, rows: Tensor, part: object, workers: int) -> None:
        self._rows = rows
        self.slice = part  # type: ignore[assignment]
        self.local = range(workers)

    def row(self, worker: int) -> Tensor:
        return self._rows[0]

    def deliver(self, due: Sequence[int], facts: Tensor) -> Delivered:
        if len(due) != 1:
            raise ValueError(f"{len(due)} messages at once in one row: deliver one worker's at a time.")
        return Delivered(self._rows, torch.cat([unusable(self._rows), facts.to(self._rows.device)]))

    def assemble(self, vector: Tensor, *, out: Tensor | None = None) -> Tensor:
        return (self._rows[0] if out is None else out).copy_(vector)
