"""Medians and trimmed means of coordinates whose weights differ: values are ordered together with the rows they came from."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_byz.facts import total_of
from lightning_byz.kernels.blocks import Aside, measured, saturate
from lightning_byz.kernels.ordering import chunks, ranked_with_rows
from lightning_byz.kernels.paths import compiled
from lightning_byz.kernels.shares import slivers, without_slivers

_TOLERANCE = 1e-9  # weight this close to half of the total, relatively, is half of it


def weighted_median(vectors: Tensor, rows: Sequence[int], weights: Sequence[float], aside: Aside | None) -> Tensor:
    """The median of the given ``rows``, weighted by ``weights`` (of these rows only), at each coordinate."""
    if fast := compiled(vectors, len(rows)):
        return fast.weighted_median(vectors, rows, weights, halves(weights), aside)
    result = vectors.new_empty(vectors.shape[1])
    for low, high in chunks(vectors, count=len(rows)):
        result[low:high] = saturate(median_of_line(vectors, rows, weights, low, high), vectors.dtype)
    return measured(vectors, result, aside)


def halves(weights: Sequence[float]) -> tuple[float, float]:
    """Half of the weight, less and more what it may be off."""
    half = total_of(weights) / 2
    return half * (1 - _TOLERANCE), half * (1 + _TOLERANCE)


def median_of_line(vectors: Tensor, rows: Sequence[int], weights: Sequence[float], low: int, high: int) -> Tensor:
    """The same of the coordinates from ``low`` to ``high``, in float64."""
    below, above = halves(weights)
    values, starts, _ = zip(*_line(vectors, rows, weights, low, high), strict=True)
    lower = _last(starts, below)
    upper = _last(starts, above)
    middles = torch.stack(values).gather(0, torch.stack([lower, upper])).to(torch.float64)
    return (middles[0] + middles[1]).div_(2).add_(0.0)  # no negative zero


def _last(starts: Sequence[Tensor], limit: float) -> Tensor:
    """The highest rank whose weight starts at or below ``limit``; starts never decrease."""
    count = torch.zeros_like(starts[0])
    for start in starts[1:]:
        count += torch.le(start, limit, out=torch.empty_like(start))
    return count.to(torch.int64)


def weighted_trimmed_mean(
    vectors: Tensor, rows: Sequence[int], weights: Sequence[float], f: float, aside: Aside | None
) -> Tensor:
    """The mean of what lies between ``f`` and the total less ``f`` on the line of weights, at each coordinate."""
    end = total_of(weights) - f
    if fast := compiled(vectors, len(rows)):
        return fast.weighted_trimmed_mean(vectors, rows, weights, (f, end, *slivers(end + f)), aside)
    result = vectors.new_empty(vectors.shape[1])
    for low, high in chunks(vectors, count=len(rows)):
        kept = torch.zeros(high - low, dtype=torch.float64, device=vectors.device)
        total = torch.zeros_like(kept)
        for value, start, weight in _line(vectors, rows, weights, low, high):
            share = ((start + weight).clamp_(max=end) - start.clamp(min=f)).clamp_(min=0.0)
            share = without_slivers(share, weight, end + f)
            kept += share * value
            total += share
        result[low:high] = saturate(kept / total, vectors.dtype)
    return measured(vectors, result, aside)


def _line(
    vectors: Tensor, rows: Sequence[int], weights: Sequence[float], low: int, high: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """By rank, smallest first: the value, where its weight starts on the line of weights, and that weight."""
    start = torch.zeros(high - low, dtype=torch.float64, device=vectors.device)
    masses = torch.tensor(weights, dtype=torch.float64, device=vectors.device)
    for value, row in ranked_with_rows(vectors, rows, low, high):
        weight = masses.index_select(0, row)
        yield value, start, weight
        start = start + weight
