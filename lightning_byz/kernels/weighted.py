"""Medians and trimmed means of coordinates whose weights differ: values are ordered together with the rows they came from."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from lightning_byz.facts import total_of
from lightning_byz.kernels.aside import Aside
from lightning_byz.kernels.blocks import saturate
from lightning_byz.kernels.lines import Line, line
from lightning_byz.kernels.ordering import Chunks, Room, on_chunks
from lightning_byz.kernels.paths import compiled
from lightning_byz.kernels.shares import slivers, without_slivers

PART = 2  # of a chunk: eight bytes a value instead of four
_TOLERANCE = 1e-9  # weight this close to half of the total, relatively, is half of it
_ROUNDING = 1e-9  # more than sums in another order are off by, relatively
_HEAVY = 2.0**-40  # of all weight: what is so heavy and kept whole is no sliver, whatever rounding makes of it


def weighted_median(vectors: Tensor, rows: Sequence[int], weights: Sequence[float], aside: Aside | None) -> Tensor:
    """The median of the given ``rows``, weighted by ``weights`` (of these rows only), at each coordinate."""
    if fast := compiled(vectors, len(rows)):
        return fast.weighted_median(vectors, rows, weights, halves(weights), median_between(weights)[1], aside)
    result = vectors.new_empty(vectors.shape[1])

    def median(chunks: Chunks) -> None:
        room = Room()
        for low, high in chunks:
            middle = median_of_line(vectors, rows, weights, low, high, room)
            result[low:high].copy_(saturate(middle, vectors.dtype)).add_(0.0)

    on_chunks(median, vectors, len(rows), part=PART)
    return result


def halves(weights: Sequence[float]) -> tuple[float, float]:
    """Half of the weight, less and more what it may be off."""
    half = total_of(weights) / 2
    return half * (1 - _TOLERANCE), half * (1 + _TOLERANCE)


def median_between(weights: Sequence[float]) -> tuple[int, int]:
    """The ranks below and above which the median cannot be, whichever weight has which rank."""
    below, above = halves(weights)
    least, most = _reach(weights)
    first = max(rank for rank, start in enumerate(most[:-1]) if start <= below)
    return first, max(rank for rank, start in enumerate(least[:-1]) if start <= above)


def median_of_line(
    vectors: Tensor, rows: Sequence[int], weights: Sequence[float], low: int, high: int, room: Room
) -> Tensor:
    """The same of the coordinates from ``low`` to ``high``, in float64."""
    limits, (first, last) = halves(weights), median_between(weights)
    ordered = line(vectors, rows, low, high, room, last=last)
    places = torch.zeros(2, high - low, dtype=torch.float64, device=vectors.device)
    begun = torch.empty_like(places[0])
    for rank, (start, _) in enumerate(_starts(ordered, weights, last)):
        if (
            rank > first
        ):  # the highest rank whose weight starts at or below each limit, counted from the first; starts never decrease
            for place, limit in zip(places, limits, strict=True):
                place.add_(torch.le(start, limit, out=begun))
    some = torch.stack(ordered.wires[first : last + 1])
    middles = ordered.value(some.gather(0, places.to(torch.int64))).to(torch.float64)
    return (middles[0] + middles[1]).div_(2)


def weighted_trimmed_mean(
    vectors: Tensor, rows: Sequence[int], weights: Sequence[float], f: float, aside: Aside | None
) -> Tensor:
    """The mean of what lies between ``f`` and the total less ``f`` on the line of weights, at each coordinate."""
    end = total_of(weights) - f
    least, most = _reach(weights)
    first = min(rank for rank, stop in enumerate(most[1:]) if stop > f)
    last = max(rank for rank, start in enumerate(least[:-1]) if start < end)
    if fast := compiled(vectors, len(rows)):
        return fast.weighted_trimmed_mean(vectors, rows, weights, (f, end, *slivers(end + f)), (first, last), aside)
    heavy = min(weights) > _HEAVY * (end + f)
    whole = [heavy and least[rank] >= f and most[rank + 1] <= end for rank in range(len(rows))]
    result = vectors.new_empty(vectors.shape[1])

    def average(chunks: Chunks) -> None:
        room = Room()
        for low, high in chunks:
            ordered = line(vectors, rows, low, high, room, last=last)
            kept, total, share = torch.zeros(3, high - low, dtype=torch.float64, device=vectors.device)
            for rank, (start, weight) in enumerate(_starts(ordered, weights, last)):
                if rank < first:
                    continue
                torch.add(start, weight, out=share)
                if whole[rank]:
                    share.sub_(start)
                else:
                    share.clamp_(max=end).sub_(start.clamp(min=f)).clamp_(min=0.0)
                    share.copy_(without_slivers(share, weight, end + f))
                total.add_(share)
                kept.add_(share.mul_(ordered.value(ordered.wires[rank])))
            result[low:high].copy_(saturate(kept.div_(total), vectors.dtype)).add_(0.0)

    on_chunks(average, vectors, len(rows), part=PART)
    return result


def _reach(weights: Sequence[float]) -> tuple[list[float], list[float]]:
    """Where the weight at each rank starts, and the last one ends, at least and at most."""
    light = sorted(weights)
    least, most = accumulate(light, initial=0.0), accumulate(reversed(light), initial=0.0)
    return [start * (1 - _ROUNDING) for start in least], [start * (1 + _ROUNDING) for start in most]


def _starts(ordered: Line, weights: Sequence[float], last: int) -> Iterator[tuple[Tensor, Tensor]]:
    """By rank, up to ``last``: where the value's weight starts on the line of weights, and that weight; both until the next."""
    masses = torch.tensor(weights, dtype=torch.float64, device=ordered.wires[0].device)
    start, weight = torch.zeros(2, len(ordered.wires[0]), dtype=torch.float64, device=masses.device)
    for rank in range(last + 1):
        torch.index_select(masses, 0, ordered.place(rank), out=weight)
        yield start, weight
        start.add_(weight)
