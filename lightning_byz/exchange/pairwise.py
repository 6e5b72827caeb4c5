"""Messages that ranks send each other directly: no rank relays another's, and none is received twice."""

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_byz.exchange.exchange import Delivered, Exchange, Part, Wire
from lightning_byz.exchange.placement import Placement
from lightning_byz.inside_torch import present_timeout
from lightning_byz.kernels import block_size, unusable
from lightning_byz.slice import Slice, whole_in_blocks

Bounds = Sequence[tuple[int, int]]

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
        return _sum(counts)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Broadcast rank 0's values."""
        result = tensor.detach().clone(memory_format=torch.contiguous_format)
        if _alone():
            return result
        dist.broadcast(_bytes(result), src=0)
        return result

    def gather_to_first(self, tensor: Tensor | None, *, host: int, like: Tensor) -> Tensor | None:
        """Send the tensor from its rank to rank 0."""
        rank = 0 if _alone() else dist.get_rank()
        if rank == host == 0:
            return None if tensor is None else tensor.detach().cpu()
        if rank == host and tensor is not None:
            _finish(_transfer([(tensor.detach().contiguous(), 0)], []))
        if rank != 0:
            return None
        arrived = torch.empty_like(like, memory_format=torch.contiguous_format)
        _finish(_transfer([], [(arrived, host)]))
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
        for rank, (first, last) in _others(self._bounds, here):
            for worker in due:
                if worker in self._placement.of(rank) and start < stop:
                    received.append((self._vectors[worker], rank))
                if worker in self._placement.local and first < last:
                    sent.append((self._each[worker][first:last], rank))
        works = _transfer(sent, received)
        if not self._whole:
            for worker in due:
                if worker in self._placement.local:
                    self._vectors[worker].copy_(self._each[worker][start:stop])
        _finish(works)
        self.received += sum(values.nbytes for values, _ in received)
        everyone = list(due) == list(range(self._placement.workers))
        vectors = self._vectors if everyone else self._vectors[list(due)]
        return Delivered(vectors, self.tell(unusable(vectors), facts))

    def deliver_parts(self, due: Sequence[int], part: Part, size: int, *, varies: bool) -> Mapping[int, Tensor]:
        (start, stop), local = self._own, [worker for worker in due if worker in self.local]
        cut = {run: {worker: part(worker, *run) for worker in local} for run in set(self._bounds) if run[0] < run[1]}
        others = list(_others(self._bounds, self._placement.rank))
        coming = {
            rank: [worker for worker in due if worker in self._placement.of(rank)] if start < stop else []
            for rank, _ in others
        }
        lengths = {worker: size for workers in coming.values() for worker in workers}
        if varies:
            lengths = self._lengths(cut, coming, size)
        here = {worker: self._vectors.new_empty(lengths[worker], dtype=torch.uint8) for worker in lengths}
        received = [(here[worker], rank) for rank in coming for worker in coming[rank] if lengths[worker]]
        sent = [(piece, rank) for rank, run in others for piece in cut.get(run, {}).values() if piece.numel()]
        _finish(_transfer(sent, received))
        self.received += sum(values.nbytes for values, _ in received)
        return here | cut.get(self._own, {worker: self._vectors.new_empty(0, dtype=torch.uint8) for worker in local})

    def _lengths(
        self, cut: Mapping[tuple[int, int], Mapping[int, Tensor]], coming: Mapping[int, Sequence[int]], size: int
    ) -> dict[int, int]:
        """Tell each rank how long the parts for it are, and return how long those are that come here."""
        like: dict[str, Any] = {"dtype": torch.int64, "device": self._vectors.device}
        told = {rank: torch.empty(len(workers), **like) for rank, workers in coming.items() if workers}
        sent = [
            (torch.tensor([piece.numel() for piece in cut[run].values()], **like), rank)
            for rank, run in _others(self._bounds, self._placement.rank)
            if cut.get(run)
        ]
        _finish(_transfer(sent, [(lengths, rank) for rank, lengths in told.items()]))
        self.received += sum(lengths.nbytes for lengths in told.values())
        return {
            worker: min(max(length, 0), size)
            for rank, lengths in told.items()
            for worker, length in zip(coming[rank], lengths.tolist(), strict=True)
        }

    def tell(self, seen: Int64[Tensor, " k"], facts: Int64[Tensor, " j"]) -> Int64[Tensor, " i"]:
        """Sum over ranks; where each rank saw whole messages, it counted for itself."""
        facts = facts.to(seen.device)
        return torch.cat([seen, _sum(facts)]) if self._whole else _sum(torch.cat([seen, facts]))

    def assemble(self, vector: Float[Tensor, " s"], *, out: Float[Tensor, " d"] | None = None) -> Float[Tensor, " d"]:
        # the rows have been delivered: their memory is free for what is made of them
        whole = self._rows[0] if out is None else out
        if self._whole:
            return whole.copy_(vector)
        own = vector.contiguous()
        others = list(_others(self._bounds, self._placement.rank))
        received = [(whole[first:last], rank) for rank, (first, last) in others if first < last]
        works = _transfer([(own, rank) for rank, _ in others if own.numel()], received)
        whole[slice(*self._own)].copy_(own)
        _finish(works)
        self.received += sum(values.nbytes for values, _ in received)
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

    return Slice(start, stop, total, gather, _sum, width)


def _alone() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def _sum(counts: Tensor) -> Tensor:
    """Sum whole numbers over ranks."""
    result = counts.clone()
    if not _alone():
        dist.all_reduce(result)
    return result


def _others(bounds: Bounds, here: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Return the other ranks with their bounds, each rank starting at its neighbour so that no rank is everyone's first."""
    ranks = len(bounds)
    return ((rank, bounds[rank]) for rank in ((here + step) % ranks for step in range(1, ranks)))


def _transfer(sent: Sequence[tuple[Tensor, int]], received: Sequence[tuple[Tensor, int]]) -> Sequence[dist.Work]:
    """Start moving contiguous tensors between ranks, as bytes: values are moved, never read."""
    transfers = [
        *(dist.P2POp(dist.irecv, _bytes(values), rank) for values, rank in received),
        *(dist.P2POp(dist.isend, _bytes(values), rank) for values, rank in sent),
    ]
    return dist.batch_isend_irecv(transfers) if transfers else ()


def _finish(works: Sequence[dist.Work]) -> None:
    """Wait for messages, as long as a collective would."""
    limit = present_timeout() if works else None
    for work in works:
        work.wait() if limit is None else work.wait(limit)


def _bytes(tensor: Tensor) -> Tensor:
    """View a contiguous tensor as flat bytes; of a single number torch calls any stride contiguous."""
    flat = tensor.as_strided((1,), (1,)) if tensor.numel() == 1 else tensor.view(-1)
    return flat.view(torch.uint8)
