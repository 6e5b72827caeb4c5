"""The way of coded rows to the rules, and of the mean that they decode to back to all ranks."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_byz.codes import Code, Interleaved
from lightning_byz.exchange import Exchange, Placement, Wire
from lightning_byz.exchange.exchange import Delivered


class CodedWire(Wire):
    """Two wires whose slices are cut alike: one for the workers' coded rows, one for vectors as long as a gradient.

    ``row`` and ``deliver`` are those of coded rows, ``slice``, ``starts`` and ``assemble`` those of gradients.

    Args:
        code: What rows are made of.
        exchange: How they reach the rules.
        total: Coordinates of a gradient.
        dtype: That of gradients.
        device: Where they live.
        placement: Which workers live here.

    """

    def __init__(
        self,
        code: Code,
        exchange: Exchange,
        total: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        placement: Placement,
    ) -> None:
        self.where: Interleaved = code.coordinates(total)
        """How a coded row is laid out."""
        where, ranks = self.where, placement.ranks
        rows = {"dtype": code.dtype(dtype), "device": device, "placement": placement, "width": where.width}
        self.coded = exchange.open(where.coded, **rows)
        """The wire of coded rows."""
        width = where.width // where.carried * where.pieces
        back = {"dtype": dtype, "device": device, "placement": Placement(ranks, ranks, placement.rank), "width": width}
        self._mean = exchange.open(total, **back)
        self._exchange, self._device = exchange, device
        self.dtype = dtype
        """That of gradients."""
        self.gradients = [torch.empty(total, dtype=dtype, device=device) for _ in range(placement.batches)]
        """Where a worker's gradients are written until its row is made of them; all local workers share it."""
        self.local, self.slice, self.starts = self.coded.local, self._mean.slice, self._mean.starts

    @property
    def received(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Bytes that came from other ranks so far."""
        return self.coded.received + self._mean.received

    @property
    def sent(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Bytes that went to other ranks so far."""
        return self.coded.sent + self._mean.sent

    def row(self, worker: int) -> Float[Tensor, " c"]:
        """Return where a local worker's coded row is to be written."""
        return self.coded.row(worker)

    def deliver(self, due: Sequence[int], facts: Int64[Tensor, " k"]) -> Delivered:
        """Bring the coded rows of the ``due`` workers to the rules, and add up the ranks' facts."""
        return self.coded.deliver(due, facts)

    def assemble(self, vector: Float[Tensor, " s"], *, out: Float[Tensor, " d"] | None = None) -> Float[Tensor, " d"]:
        """Return the whole vector from every rank's part, in memory that the next call writes over."""
        return self._mean.assemble(vector, out=out)

    def drawn(self, draw: Callable[[], int]) -> int:
        """Return what rank 0 draws, below 2 ** 63, on every rank. Every rank must call it; others draw too, and it does not count."""
        return int(self._exchange.broadcast(torch.tensor([draw()], dtype=torch.int64, device=self._device)))
