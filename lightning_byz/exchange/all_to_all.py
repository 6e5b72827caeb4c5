"""Each rank aggregates one slice of the coordinates of every row."""

import math
from typing import ClassVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_byz.exchange.exchange import Delivery, Exchange
from lightning_byz.exchange.placement import Placement
from lightning_byz.kernels import block_size, unusable
from lightning_byz.stack import Slice, Stack


class AllToAll(Exchange):
    """Each rank gets a slice of every row, aggregates it, and all ranks gather the slices of the aggregate.

    With one worker per rank a rank receives 2 d (R - 1) / R elements per step, as in a ring all-reduce: each row goes to its slices' owners, and the
    slices of the aggregate come back. Slices are runs of whole blocks of coordinates, so the result does not depend on how many ranks there are.
    """

    trusts: ClassVar[str] = "every rank as aggregator of its slice; the values of workers are not trusted"

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def place(self, workers: int) -> Placement:
        """Spread the workers over the ranks."""
        if not (dist.is_available() and dist.is_initialized()):
            return Placement(workers, 1, 0)
        return Placement(workers, dist.get_world_size(), dist.get_rank())

    def scatter(
        self, rows: Float[Tensor, "m d"], notes: Int64[Tensor, " k"], *, placement: Placement, f: float
    ) -> Delivery:
        """Send each rank its slice of this rank's rows; receive this rank's slice of all rows."""
        total = rows.shape[1]
        bounds = slice_bounds(total, placement.ranks)
        start, stop = bounds[placement.rank]
        vectors = self._buffer("rows", placement.workers * (stop - start), rows).view(placement.workers, stop - start)
        _all_to_all(
            vectors.view(-1),
            _by_destination(rows, bounds),
            [share * (stop - start) for share in placement.shares],
            [rows.shape[0] * (last - first) for first, last in bounds],
        )
        stack = Stack(vectors, f=f, slice=_slice(start, stop, total, placement.ranks))
        counts = torch.cat([unusable(vectors), notes])
        dist.all_reduce(counts)
        received = (placement.workers - rows.shape[0]) * (stop - start)
        return Delivery(stack.inspected(counts[: placement.workers]), counts[placement.workers :], received)

    def gather(self, vector: Float[Tensor, " s"], stack: Stack) -> tuple[Float[Tensor, " d"], int]:
        """Gather the slices of the aggregate."""
        part = stack.slice
        if part is None:
            return vector, 0
        whole = self._buffer("whole", part.total, vector)
        bounds = slice_bounds(part.total, dist.get_world_size())
        whole[part.start : part.stop].copy_(vector)
        own, transfers = vector.contiguous(), []
        # Pairs, not gloo's ring: less than half of the processor time, and no rank relays another's slice.
        for rank, (start, stop) in _others(bounds):
            if start < stop:
                transfers.append(dist.P2POp(dist.irecv, _bytes(whole[start:stop]), rank))
            if own.numel():
                transfers.append(dist.P2POp(dist.isend, _bytes(own), rank))
        for work in dist.batch_isend_irecv(transfers) if transfers else ():
            work.wait()
        return whole, part.total - own.numel()

    def add(self, counts: Int64[Tensor, " k"]) -> Int64[Tensor, " k"]:
        """Sum over ranks."""
        return _sum(counts)

    def collect(self, row: Tensor | None, *, worker: int, placement: Placement, like: Tensor) -> Tensor | None:
        """Send the row from its rank to rank 0."""
        owner = next(rank for rank in range(placement.ranks) if worker in placement.of(rank))
        if owner == 0:
            return None if row is None else row.detach().cpu()
        if placement.rank == owner:
            assert row is not None
            dist.send(_bytes(row.detach().contiguous()), dst=0)
        if placement.rank != 0:
            return None
        arrived = torch.empty_like(like, memory_format=torch.contiguous_format)
        dist.recv(_bytes(arrived), src=owner)
        return arrived.cpu()

    def share(self, tensor: Tensor) -> Tensor:
        """Broadcast rank 0's values."""
        result = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.broadcast(_bytes(result), src=0)
        return result

    def _buffer(self, name: str, size: int, like: Tensor) -> Tensor:
        """Return a buffer that is kept from step to step."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() != size or buffer.dtype != like.dtype or buffer.device != like.device:
            buffer = self._buffers[name] = torch.empty(size, dtype=like.dtype, device=like.device)
        return buffer


def slice_bounds(total: int, ranks: int) -> list[tuple[int, int]]:
    """Cut ``total`` coordinates into one run of whole blocks per rank; late ranks may get fewer, or none."""
    size = block_size(total)
    length = math.ceil(math.ceil(total / size) / ranks) * size
    return [(min(rank * length, total), min((rank + 1) * length, total)) for rank in range(ranks)]


def _slice(start: int, stop: int, total: int, ranks: int) -> Slice:
    """Return the slice of this rank, with partial results gathered over all ranks."""
    size = block_size(total)
    blocks, longest = math.ceil(total / size), math.ceil(slice_bounds(total, ranks)[0][1] / size)

    def gather(partials: Tensor) -> Tensor:
        own = partials.new_zeros((longest, *partials.shape[1:]))
        own[: partials.shape[0]] = partials
        whole = partials.new_empty((ranks * longest, *partials.shape[1:]))
        dist.all_gather_into_tensor(whole, own)
        return whole[:blocks]

    return Slice(start, stop, total, gather, _sum)


def _sum(counts: Tensor) -> Tensor:
    """Sum whole numbers over ranks."""
    result = counts.clone()
    dist.all_reduce(result)
    return result


def _others(bounds: list[tuple[int, int]]) -> list[tuple[int, tuple[int, int]]]:
    """Return the other ranks with their bounds, each rank starting at its neighbour so that no rank is everyone's first."""
    own, ranks = dist.get_rank(), len(bounds)
    return [(rank, bounds[rank]) for rank in ((own + step) % ranks for step in range(1, ranks))]


def _by_destination(rows: Tensor, bounds: list[tuple[int, int]]) -> Tensor:
    """Order the coordinates of the rows by the rank they go to; one row is in that order already."""
    if rows.shape[0] == 1:
        return rows.reshape(-1)
    return torch.cat([rows[:, first:last].reshape(-1) for first, last in bounds])


def _all_to_all(output: Tensor, source: Tensor, received: list[int], sent: list[int]) -> None:
    """Exchange parts of unequal length, as bytes: values are moved, never read."""
    width = source.element_size()
    dist.all_to_all_single(
        _bytes(output), _bytes(source), [count * width for count in received], [count * width for count in sent]
    )


def _bytes(tensor: Tensor) -> Tensor:
    """View a contiguous tensor as flat bytes."""
    return tensor.view(-1).view(torch.uint8)
