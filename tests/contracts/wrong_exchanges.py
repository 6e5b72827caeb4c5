"""Exchanges with one thing wrong each, and the law that says so, on two ranks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from lightning_byz.exchange import AllGather, AllToAll, Delivered, Exchange, Placement, Wire
from lightning_byz.exchange.pairwise import slice_bounds
from lightning_byz.kernels import unusable
from lightning_byz.testing import check_exchange


def rewired(change: Callable[[Wire], None], base: type[Exchange] = AllToAll) -> Callable[[type], type]:
    """Let every wire of an exchange be changed once it is open."""

    def wrap(name: type) -> type:
        def opened(self, *arguments, **rest):
            wire = base.open(self, *arguments, **rest)
            change(wire)
            return wire

        return dataclass(frozen=True)(
            type(name.__name__, (base,), {"open": opened, "__doc__": name.__doc__, "__module__": __name__})
        )

    return wrap


def delivering(change: Callable) -> Callable[[Wire], None]:
    """``change`` takes the deliver that is right, the wire, who is due, and the facts."""

    def rewire(wire):
        right = wire.deliver
        wire.deliver = lambda due, facts: change(right, wire, due, facts)

    return rewire


def assembling(change: Callable) -> Callable[[Wire], None]:
    """``change`` takes the assemble that is right, the wire, the vector and out."""

    def rewire(wire):
        right = wire.assemble
        wire.assemble = lambda vector, *, out=None: change(right, wire, vector, out)

    return rewire


def _changed(change: Callable) -> Callable:
    def deliver(right, wire, due, facts):
        vectors, counts = right(due, facts)
        return Delivered(change(vectors), counts)

    return deliver


@rewired(delivering(_changed(lambda vectors: vectors.flip(0))))
class SwapsRows:
    pass


@rewired(delivering(_changed(lambda vectors: torch.where(vectors.isnan(), torch.zeros_like(vectors), vectors))))
class LosesNaN:
    pass


@rewired(delivering(_changed(lambda vectors: vectors + 0.0)))
class LosesTheSignOfZero:
    pass


@rewired(delivering(lambda right, wire, due, facts: right(sorted(due), facts)))
class IgnoresTheOrder:
    pass


@rewired(delivering(lambda right, wire, due, facts: Delivered(*right(range(2), facts))))
class BringsEverybody:
    pass


def _only_own_facts(right, wire, due, facts):
    vectors, counts = right(due, facts)
    return Delivered(vectors, torch.cat([counts[: len(due)], facts]))


@rewired(delivering(_only_own_facts))
class ForgetsFactsOfOthers:
    pass


def _only_own_counts(right, wire, due, facts):
    vectors, counts = right(due, facts)
    return Delivered(vectors, torch.cat([unusable(vectors), counts[len(due) :]]))


@rewired(delivering(_only_own_counts))
class CountsItsOwnSlice:
    pass


def _first_again(right, wire, vector, out):
    whole = right(vector, out=out)
    if not hasattr(wire, "first"):
        wire.first = whole.clone()
    return whole.copy_(wire.first)


@rewired(assembling(_first_again))
class AssemblesAStaleVector:
    pass


def _only_own_part(right, wire, vector, out):
    whole = right(vector, out=out)
    part = wire.slice
    if part is not None:
        whole[: part.start] = 0
        whole[part.stop :] = 0
    return whole


@rewired(assembling(_only_own_part))
class ForgetsPartsOfOthers:
    pass


def _beside_out(right, wire, vector, out):
    return right(vector) if out is None else right(vector, out=torch.empty_like(out))


@rewired(assembling(_beside_out))
class LeavesOutAlone:
    pass


def _over_rows(right, wire, vector, out):
    for worker in wire.local:
        wire.row(worker).zero_()
    return right(vector, out=out)


@rewired(assembling(_over_rows))
class WritesOverRows:
    pass


def _nothing_received(wire):
    class Silent(type(wire)):
        received = property(lambda self: 0, lambda self, value: None)

    wire.__class__ = Silent


@rewired(_nothing_received, AllGather)
class CountsNoBytes:
    pass


def _own_rows_too(right, wire, due, facts):
    delivered = right(due, facts)
    wire.received += sum(wire.row(worker).nbytes for worker in due if worker in wire.local)
    return delivered


@rewired(delivering(_own_rows_too))
class CountsItsOwnRows:
    pass


def _narrow_starts(wire):
    wire.starts = wire.starts[:1]


@rewired(_narrow_starts)
class ForgetsStarts:
    pass


def _half_the_partials(wire):
    if wire.slice is not None:
        right = wire.slice.gather
        object.__setattr__(wire.slice, "gather", lambda partials: right(partials).flip(0))


@rewired(_half_the_partials)
class TurnsBlocksRound:
    pass


@dataclass(frozen=True)
class NarrowBlocks(AllToAll):
    def bounds(self, total, ranks, width):
        return slice_bounds(total, ranks)


@dataclass(frozen=True)
class SliceOfItsOwn(AllGather):
    """Says that its ranks see all coordinates, and cuts them."""

    def bounds(self, total, ranks, width):
        return slice_bounds(total, ranks, width)


@dataclass(frozen=True)
class LastRanksFirst(AllToAll):
    def place(self, workers):
        right = super().place(workers)
        return Placement(workers, right.ranks, right.ranks - 1 - right.rank)


_SHARED: dict = {}


@dataclass(frozen=True)
class SharesItsWires(AllToAll):
    """Opens a wire once for each length and dtype."""

    def open(self, total, *, dtype, device, placement, width=None):
        key = total, dtype, placement, width
        wire = _SHARED.setdefault(
            key, super().open(total, dtype=dtype, device=device, placement=placement, width=width)
        )
        wire.received = 0
        return wire


@dataclass(frozen=True)
class SumsInPlace(AllToAll):
    def all_reduce(self, counts):
        dist.all_reduce(counts)
        return counts


@dataclass(frozen=True)
class SumsInFloat32(AllToAll):
    def all_reduce(self, counts):
        return super().all_reduce(counts).float().long()


@dataclass(frozen=True)
class BroadcastsInPlace(AllToAll):
    def broadcast(self, tensor):
        return tensor.copy_(super().broadcast(tensor))


@dataclass(frozen=True)
class BroadcastsTheLast(AllToAll):
    def broadcast(self, tensor):
        result = tensor.contiguous().clone()
        if dist.is_initialized() and tensor.numel():
            dist.broadcast(result.view(-1).view(torch.uint8), src=dist.get_world_size() - 1)
        return result


@dataclass(frozen=True)
class KeepsWhatItGathered(AllToAll):
    def gather_to_first(self, tensor, *, host, like):
        arrived = super().gather_to_first(tensor, host=host, like=like)
        return tensor if arrived is None else arrived


@dataclass(frozen=True)
class GathersFloats(AllToAll):
    def gather_to_first(self, tensor, *, host, like):
        arrived = super().gather_to_first(tensor, host=host, like=like)
        return None if arrived is None else arrived.float()


WRONG: list[tuple[Exchange, str]] = [
    (LastRanksFirst(), "exchange_places"),
    (NarrowBlocks(), "exchange_slices"),
    (SliceOfItsOwn(), "exchange_slices"),
    (ForgetsStarts(), "exchange_slices"),
    (TurnsBlocksRound(), "exchange_partials"),
    (SwapsRows(), "exchange_rows"),
    (LosesNaN(), "exchange_rows"),
    (LosesTheSignOfZero(), "exchange_rows"),
    (IgnoresTheOrder(), "exchange_rows"),
    (BringsEverybody(), "exchange_rows"),
    (ForgetsFactsOfOthers(), "exchange_facts"),
    (CountsItsOwnSlice(), "exchange_facts"),
    (AssemblesAStaleVector(), "exchange_whole"),
    (ForgetsPartsOfOthers(), "exchange_whole"),
    (LeavesOutAlone(), "exchange_whole"),
    (WritesOverRows(), "exchange_whole"),
    (SharesItsWires(), "exchange_apart"),
    (CountsNoBytes(), "exchange_traffic"),
    (CountsItsOwnRows(), "exchange_traffic"),
    (SumsInPlace(), "exchange_sums"),
    (SumsInFloat32(), "exchange_sums"),
    (BroadcastsInPlace(), "exchange_broadcast"),
    (BroadcastsTheLast(), "exchange_broadcast"),
    (KeepsWhatItGathered(), "exchange_first"),
    (GathersFloats(), "exchange_first"),
]


def group() -> None:
    """Join the process group of this pool of ranks."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")


def seen_of(exchange: Exchange, **rest) -> str:
    """On a rank: what the contract says of an exchange; nothing where it is kept."""
    group()
    try:
        check_exchange(exchange, **rest)
    except (AssertionError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def seen_of_wrong(index: int, **rest) -> str:
    """On a rank: what the contract says of a wrong exchange."""
    return seen_of(WRONG[index][0], **rest)
