"""Weighted medians and trimmed means of every coordinate.

Lay the weights of a coordinate end to end in the order of its values. The median is what lies at the middle of that line, the trimmed mean the
average of what lies further than ``f`` from both ends. With equal weights each rank keeps a share known beforehand, and only ranks that matter are
ordered.
"""

import math
from collections.abc import Sequence
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.kernels.aside import Aside
from lightning_byz.kernels.networks import groups_of
from lightning_byz.kernels.ordering import Chunks, on_chunks, ranked
from lightning_byz.kernels.paths import compiled
from lightning_byz.kernels.shares import SLIVER
from lightning_byz.kernels.weighted import weighted_median, weighted_trimmed_mean


def coordinate_median(
    vectors: Float[Tensor, "n d"], weights: Sequence[float], aside: Aside | None = None
) -> Float[Tensor, " d"]:
    """The weighted median of each coordinate over rows of positive weight: at exactly half the weight, the mean of both neighbours.

    Zero where no row has weight. ``aside`` is answered where that costs no reading of the rows.
    """
    rows, values = present(weights)
    if not rows:
        return vectors.new_zeros(vectors.shape[1])
    if len(set(values)) > 1:
        return weighted_median(vectors, rows, values, aside)
    shares = [float(abs(2 * rank + 1 - len(rows)) <= 1) for rank in range(len(rows))]
    return _rank_average(vectors, rows, shares, aside)


def trimmed_mean(
    vectors: Float[Tensor, "n d"], weights: Sequence[float], f: float, aside: Aside | None = None
) -> Float[Tensor, " d"]:
    """The mean of each coordinate without the lowest and the highest ``f`` of its weight; ``f`` must be below half of it."""
    rows, values = present(weights)
    if len(set(values)) > 1:
        return weighted_trimmed_mean(vectors, rows, values, f, aside)
    return _rank_average(vectors, rows, _trimmed_shares(len(rows), f / values[0]), aside)


def present(weights: Sequence[float]) -> tuple[list[int], list[float]]:
    """The rows of positive weight, and their weights."""
    pairs = [(row, weight) for row, weight in enumerate(weights) if weight > 0]
    return [row for row, _ in pairs], [weight for _, weight in pairs]


def _trimmed_shares(count: int, trimmed: float) -> list[float]:
    """The part kept of each rank of ``count`` unit weights; both ends are trimmed alike to the last bit."""
    depths = [min(rank, count - 1 - rank) for rank in range(count)]
    shares = [min(depth + 1.0, count - trimmed) - max(float(depth), trimmed) for depth in depths]
    return [0.0 if share < SLIVER else 1.0 if share > 1 - SLIVER**2 else share for share in shares]


def _rank_average(vectors: Tensor, rows: Sequence[int], shares: Sequence[float], aside: Aside | None) -> Tensor:
    """The average, weighted by ``shares``, of the values at each rank; which of two zeros comes first is nobody's business, so none is negative."""
    if fast := compiled(vectors, len(rows)):
        return fast.rank_average(vectors, rows, shares, aside)
    groups, total = groups_of(shares), sum(shares)
    ranks = {group: [rank for rank, own in enumerate(groups) if own == group] for group in sorted(set(groups) - {0})}
    kept = [rank for rank, share in enumerate(shares) if share == 1] if len(ranks) == 1 else []
    result = vectors.new_empty(vectors.shape[1])

    def average(chunks: Chunks) -> None:
        for low, high, wires in ranked(vectors, rows, groups, chunks):
            own = result[low:high]
            if len(kept) == 1:
                torch.clamp(wires[kept[0]], *_limits(vectors.dtype), out=own)
            elif len(kept) != 2 or not _halfway(wires[kept[0]], wires[kept[1]], own):
                sums = [_times(_sum([wires[rank] for rank in lot]), shares[lot[0]]) for lot in ranks.values()]
                own.copy_(reduce(Tensor.add_, sums).div_(total).clamp_(*_limits(vectors.dtype)))
            own.add_(0.0)

    on_chunks(average, vectors, len(rows))
    return result


def _halfway(first: Tensor, second: Tensor, out: Tensor) -> bool:
    """Write what lies between two rows of float32 to ``out``, unless they are not or their sum may overflow.

    Half of a sum in float32 is what float64 gives and the cast makes of it: the sum is rounded once either way, or exact where it is so small that
    its half is rounded.
    """
    if out.dtype != torch.float32 or out.device.type != "cpu":  # a look at the sum would stall a device
        return False
    torch.add(first, second, out=out)
    usable = math.isfinite(float(out.sum()))
    out.mul_(0.5)
    return usable


def _limits(dtype: torch.dtype) -> tuple[float, float]:
    return torch.finfo(dtype).min, torch.finfo(dtype).max


def _times(values: Tensor, factor: float) -> Tensor:
    return values if factor == 1 else values.mul_(factor)


def _sum(terms: Sequence[Tensor]) -> Tensor:
    """The sum of ``terms`` in float64, in their order."""
    result = terms[0].to(torch.float64, copy=True)
    for term in terms[1:]:
        result.add_(term)
    return result
