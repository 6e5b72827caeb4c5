"""Messages that ranks send each other directly: no rank relays another's, and none is received twice."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_byz.exchange.exchange import Delivered, Exchange, Part, Wire
from lightning_byz.exchange.placement import Placement
from lightning_byz.exchange.transfers import Bounds, added, alone, bytes_of, finish, others_of, transfer
from lightning_byz.kernels import block_size, unusable
from lightning_byz.slice import Slice, whole_in_blocks

_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""The name that torch gives to a gathering into one tensor; where both exist, the older one is deprecated."""


class Pairwise(Exchange):
    """An exchange among ranks, each of which aggregates a run of coordinates that the subclass chooses.

    Pairs of ranks, not gloo's rings: less than half of the processor time, and each rank can corrupt its own rows only.
    """

    @abstractmethod
    def bounds(self, total: int, ranks: int, width: int) -> Bounds:
        """Return the first and one past the last coordinate that each rank aggregates, multiples of ``width`` or the total."""

    def place(self, workers: int) -> Placement:
        """Spread the workers over the ranks."""
        if not (dist.is_available() and dist.is_initialized()):
            return Placement(workers, 1, 0)
        return Placement(workers, dist.get_world_size(), dist.get_rank())

    def open(
        self, total: int, *, dtype: torch.dtype, device: torch.device, placement: Placement, width: int | None = None
    ) -> Wire:
        """Return a wire with this rank's rows, and its part of everyone's."""
        width = block_size(total) if width is None else width
        bounds = self.bounds(total, placement.ranks, width)
        return _PairwiseWire(bounds, placement, width=width, like=torch.empty(0, dtype=dtype, device=device))

    def all_reduce(self, counts: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
        """Sum over ranks."""
        return added(counts)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Broadcast rank 0's values."""
        result = tensor.detach().clone(memory_format=torch.contiguous_format)
        if alone():
            return result
        dist.broadcast(bytes_of(result), src=0)
        return result

    def gather_to_first(self, tensor: Tensor | None, *, host: int, like: Tensor) -> Tensor | None:
        """Send the tensor from its rank to rank 0."""
        rank = 0 if alone() else dist.get_rank()
        if rank == host == 0:
            return None if tensor is None else tensor.detach().cpu()
        if rank == host and tensor is not None:
            finish(transfer([(tensor.detach().contiguous(), 0)], []))
        if rank != 0:
            return None
        arrived = torch.empty_like(like, memory_format=torch.contiguous_format)
        finish(transfer([], [(arrived, host)]))
        return arrived.cpu()


class _PairwiseWire(Wire):
    def __init__(self, bounds: Bounds, placement: Placement, *, width: int, like: Tensor) -> None:
        start, stop = self._own = bounds[placement.rank]
        total, local = bounds[-1][1], placement.local
        self._bounds, self._placement = bounds, placement
        self._vectors = like.new_empty(placement.workers, stop - start)
        self._whole = all(run == (0, total) for run in bounds)
        # what arrives is the whole message where this rank sees all coordinates: its own rows then lie among them
        self._rows = self._vectors[local.start : local.stop] if self._whole else like.new_empty(len(local), total)
        self._each = dict(zip(local, self._rows, strict=True))
        self.local = local
        self.starts = sorted({first for first, last in bounds if first < last})
        self.slice = whole_in_blocks(total, width) if self._whole else _slice(start, stop, bounds, width)

    def row(self, worker: int) -> Float[Tensor, " d"]:
        return self._each[worker]

    def deliver(self, due: Sequence[int], facts: Int64[Tensor, " k"]) -> Delivered:
        """Post every receive before any send, and note which facts were added up while messages were on their way."""
        here, (start, stop) = self._placement.rank, self._own
        sent, received = [], []
        for rank, (first, last) in others_of(self._bounds, here):
            for worker in due:
                if worker in self._placement.of(rank) and start < stop:
                    received.append((self._vectors[worker], rank))
                if worker in self._placement.local and first < last:
                    sent.append((self._each[worker][first:last], rank))
        works = transfer(sent, received)
        if not self._whole:
            for worker in due:
                if worker in self._placement.local:
                    self._vectors[worker].copy_(self._each[worker][start:stop])
        finish(works)
        self._count(sent, received)
        everyone = list(due) == list(range(self._placement.workers))
        vectors = self._vectors if everyone else self._vectors[list(due)]
        return Delivered(vectors, self.tell(unusable(vectors), facts))

    def deliver_parts(self, due: Sequence[int], part: Part, size: int, *, varies: bool) -> Mapping[int, Tensor]:
        (start, stop), local = self._own, [worker for worker in due if worker in self.local]
        others = list(others_of(self._bounds, self._placement.rank))
        runs = {run for _, run in others if run[0] < run[1]} | {self._own}
        cut = {run: [part(worker, *run) for worker in local] for run in runs}
        coming = {rank: [worker for worker in due if worker in self._placement.of(rank)] for rank, _ in others}
        sizes = {rank: [size] * len(workers) if start < stop else [] for rank, workers in coming.items()}
        sent = {rank: cut[run] for rank, run in others if run in cut and run[0] < run[1]}
        if varies:
            sizes = self._lengths(sent, sizes)
        pieces = self._moved(sent, sizes)
        empty = self._vectors.new_empty(0, dtype=torch.uint8)
        parts = dict(zip(local, cut[self._own], strict=True))
        for rank, workers in coming.items():
            parts.update(zip(workers, pieces[rank] or [empty] * len(workers), strict=True))
        return parts

    def spread(
        self, part: Tensor, size: Callable[[int, int], int], *, varies: bool
    ) -> Sequence[tuple[int, int, Tensor]]:
        here, (start, stop) = self._placement.rank, self._own
        if self._whole:
            return [(start, stop, part)]
        others = [(rank, run) for rank, run in others_of(self._bounds, here) if run[0] < run[1]]
        everyone = [rank for rank, _ in others_of(self._bounds, here)] if start < stop else []
        sizes = {rank: [size(*run)] for rank, run in others}
        if varies:
            sizes = self._lengths({rank: [part] for rank in everyone}, sizes)
        pieces = self._moved({rank: [part] for rank in everyone}, sizes)
        runs = [(*run, pieces[rank][0]) for rank, run in others]
        return sorted([*runs, (start, stop, part)] if start < stop else runs, key=lambda run: run[:2])

    def _moved(
        self, sent: Mapping[int, Sequence[Tensor]], sizes: Mapping[int, Sequence[int]]
    ) -> dict[int, list[Tensor]]:
        """Send bytes to other ranks, and return those of known lengths that come from each."""
        here = {
            rank: [self._vectors.new_empty(length, dtype=torch.uint8) for length in lengths]
            for rank, lengths in sizes.items()
        }
        coming = [(piece, rank) for rank, pieces in here.items() for piece in pieces if piece.numel()]
        going = [(piece, rank) for rank, pieces in sent.items() for piece in pieces if piece.numel()]
        finish(transfer(going, coming))
        self._count(going, coming)
        return here

    def _lengths(self, sent: Mapping[int, Sequence[Tensor]], most: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
        """Tell other ranks how long the bytes for them are, and return how long those are that come from each, cut to what they may be."""
        like: dict[str, Any] = {"dtype": torch.int64, "device": self._vectors.device}
        coming = [(torch.empty(len(limits), **like), rank) for rank, limits in most.items() if limits]
        going = [
            (torch.tensor([piece.numel() for piece in pieces], **like), rank) for rank, pieces in sent.items() if pieces
        ]
        finish(transfer(going, coming))
        self._count(going, coming)
        told = {rank: lengths.tolist() for lengths, rank in coming}
        return {
            rank: [min(max(length, 0), limit) for length, limit in zip(told.get(rank, []), limits, strict=True)]
            for rank, limits in most.items()
        }

    def _count(self, going: Sequence[tuple[Tensor, int]], coming: Sequence[tuple[Tensor, int]]) -> None:
        self.sent += sum(values.nbytes for values, _ in going)
        self.received += sum(values.nbytes for values, _ in coming)

    def tell(self, seen: Int64[Tensor, " k"], facts: Int64[Tensor, " j"]) -> Int64[Tensor, " i"]:
        """Sum over ranks; where each rank saw whole messages, it counted for itself."""
        facts = facts.to(seen.device)
        return torch.cat([seen, added(facts)]) if self._whole else added(torch.cat([seen, facts]))

    def assemble(self, vector: Float[Tensor, " s"], *, out: Float[Tensor, " d"] | None = None) -> Float[Tensor, " d"]:
        # the rows have been delivered: their memory is free for what is made of them
        whole = self._rows[0] if out is None else out
        if self._whole:
            return whole.copy_(vector)
        own = vector.contiguous()
        others = list(others_of(self._bounds, self._placement.rank))
        received = [(whole[first:last], rank) for rank, (first, last) in others if first < last]
        sent = [(own, rank) for rank, _ in others if own.numel()]
        works = transfer(sent, received)
        whole[slice(*self._own)].copy_(own)
        finish(works)
        self._count(sent, received)
        return whole


def slice_bounds(total: int, ranks: int, width: int | None = None) -> list[tuple[int, int]]:
    """Cut ``total`` coordinates into one run of whole blocks per rank; late ranks may get fewer, or none."""
    width = block_size(total) if width is None else width
    length = math.ceil(math.ceil(total / width) / ranks) * width
    return [(min(rank * length, total), min((rank + 1) * length, total)) for rank in range(ranks)]


def _slice(start: int, stop: int, bounds: Bounds, width: int) -> Slice:
    """Return the slice of this rank, with partial results gathered over all ranks."""
    total, ranks = bounds[-1][1], len(bounds)
    blocks, longest = math.ceil(total / width), math.ceil(bounds[0][1] / width)

    def gather(partials: Tensor) -> Tensor:
        own = partials.new_zeros((longest, *partials.shape[1:]))
        own[: partials.shape[0]] = partials
        whole = partials.new_empty((ranks * longest, *partials.shape[1:]))
        _gather(whole, own)
        return whole[:blocks]

    return Slice(start, stop, total, gather, added, width)
