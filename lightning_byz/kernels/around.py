"""The mean of what lies nearest to the median, at every coordinate."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.facts import total_of
from lightning_byz.kernels.aside import Aside
from lightning_byz.kernels.blocks import saturate
from lightning_byz.kernels.medians import present
from lightning_byz.kernels.ordering import Chunks, Room, by_network, on_chunks, ranked
from lightning_byz.kernels.paths import compiled
from lightning_byz.kernels.shares import SLIVER, slivers, without_slivers
from lightning_byz.kernels.weighted import PART, halves, median_between, median_of_line


def mean_around_median(
    vectors: Float[Tensor, "n d"], weights: Sequence[float], f: float, aside: Aside | None = None
) -> Float[Tensor, " d"]:
    """The mean of each coordinate over the values nearest to its median, up to all but ``f`` of the weight.

    The value that passes this weight is kept in part; of two values equally far from the median the lower one is nearer.
    """
    rows, values = present(weights)
    if len(set(values)) > 1:
        return _weighted(vectors, rows, values, f, aside)
    kept = len(rows) - f / values[0]
    count = int(kept + SLIVER)
    part = kept - count if kept - count > SLIVER else 0.0
    return _unweighted(vectors, rows, count, part, aside)


def _unweighted(vectors: Tensor, rows: Sequence[int], count: int, part: float, aside: Aside | None) -> Tensor:
    """The mean of the ``count`` nearest values and a ``part`` of the next one."""
    groups = _groups(len(rows), count)
    if fast := compiled(vectors, len(rows)):
        return fast.mean_around_median(vectors, rows, groups, count, part, aside)
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    result = vectors.new_empty(vectors.shape[1])

    def average(chunks: Chunks) -> None:
        for low, high, values in ranked(vectors, rows, groups, chunks):
            wires = [value.to(dtype) for value in values]
            total = _nearest_sum(wires, count)
            if part:
                total.mul_(1 - part).add_(_nearest_sum(wires, count + 1).mul_(part))
            result[low:high].copy_(saturate(total.div_(count + part), vectors.dtype)).add_(0.0)

    on_chunks(average, vectors, len(rows))
    return result


def _groups(total: int, count: int) -> tuple[int, ...]:
    """Ranks in groups within which any order will do: those surely among the ``count`` nearest to the median are only summed."""
    middles = {(total - 1) // 2, total // 2} if count > 1 else set()  # of two values one alone is kept: the lower
    sure = range(total - count, count)
    return tuple(total + 2 if rank in middles else total + 1 if rank in sure else rank + 1 for rank in range(total))


def _nearest_sum(wires: Sequence[Tensor], count: int) -> Tensor:
    """The sum of the ``count`` values nearest to the median, of values by rank.

    They are a run of ranks, which starts at the lowest one and moves up by one for each rank that is further away than the one it would gain.
    Distances are halved, since the largest numbers would overflow; their rounding is monotone, so that it turns near ties into ties and nothing else.
    """
    spare = len(wires) - count
    low, high, kept = wires[0].new_empty(3, len(wires[0]))
    half = wires[(len(wires) - 1) // 2] / 4 + wires[len(wires) // 2] / 4
    minus = -half
    gains = wires[0].new_empty(spare, len(half))  # 0 or 1: arithmetic is many times faster than `where`
    for rank, gain in enumerate(gains):
        torch.sub(half, torch.mul(wires[rank], 0.5, out=low), out=low)
        torch.add(minus, torch.mul(wires[rank + count], 0.5, out=high), out=high)
        torch.gt(low, high, out=gain)
    total = torch.zeros_like(half, dtype=torch.float64)
    for rank, value in enumerate(wires):
        reached = value if rank < count else torch.mul(value, gains[rank - count], out=kept)
        if rank < spare:
            reached = torch.sub(reached, torch.mul(reached, gains[rank], out=low), out=kept)
        total.add_(reached)
    return total


def _weighted(vectors: Tensor, rows: Sequence[int], weights: Sequence[float], f: float, aside: Aside | None) -> Tensor:
    """For each value, how much weight is nearer to the median than it; what is left of all but ``f`` is how much of it is kept."""
    budget = total_of(weights) - f
    if fast := compiled(vectors, len(rows)):
        told = halves(weights), (budget, *slivers(budget + f))
        return fast.weighted_mean_around_median(vectors, rows, weights, *told, median_between(weights)[1], aside)
    masses = torch.tensor(weights, dtype=torch.float64, device=vectors.device)
    result = vectors.new_empty(vectors.shape[1])

    def average(chunks: Chunks) -> None:
        room = Room()
        for low, high in chunks:
            values = [vectors[row, low:high].double() for row in rows]
            middle = median_of_line(vectors, rows, weights, low, high, room)
            nearer = _nearer_in_pairs(values, middle, weights) if by_network(rows) else _nearer(values, middle, masses)
            kept, total = torch.zeros_like(middle), torch.zeros_like(middle)
            for value, weight, before in zip(values, masses, nearer, strict=True):
                share = without_slivers((budget - before).clamp_(min=0.0).clamp_(max=weight), weight, budget + f)
                kept += share * value
                total += share
            result[low:high].copy_(saturate(kept / total, vectors.dtype)).add_(0.0)

    on_chunks(average, vectors, len(rows), part=PART)
    return result


def _nearer_in_pairs(values: Sequence[Tensor], middle: Tensor, weights: Sequence[float]) -> Sequence[Tensor]:
    """The weight of the values that are nearer to ``middle`` than each one, of equally near ones the lower and then the first; every two compared."""
    distances = [(value - middle).abs_() for value in values]
    before = [torch.zeros_like(middle) for _ in values]
    nearer, lower, other = torch.empty(3, len(middle), dtype=middle.dtype, device=middle.device)
    for second in range(len(values)):
        for first in range(second):
            # 0 or 1: with arithmetic, several times faster than truth values
            torch.eq(distances[first], distances[second], out=nearer)
            nearer.mul_(torch.le(values[first], values[second], out=lower))
            nearer.add_(torch.lt(distances[first], distances[second], out=lower))
            before[second].add_(nearer, alpha=weights[first])
            before[first].add_(torch.eq(nearer, 0.0, out=other), alpha=weights[second])
    return before


def _nearer(values: Sequence[Tensor], middle: Tensor, weights: Tensor) -> Tensor:
    """The same by sorting, for many values."""
    ordered, order = torch.stack(list(values)).sort(dim=0, stable=True)
    places = (ordered - middle).abs_().sort(dim=0, stable=True).indices
    order = order.gather(0, places)
    masses = weights[order]
    return torch.zeros_like(masses).scatter_(0, order, masses.cumsum(0) - masses)
