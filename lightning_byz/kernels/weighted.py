"""Medians and trimmed means of coordinates whose weights differ: values are ordered together with the rows they came from."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_byz.kernels.blocks import saturate
from lightning_byz.kernels.networks import network
from lightning_byz.kernels.ordering import chunks, ordered_with_rows
from lightning_byz.kernels.shares import without_slivers

_TOLERANCE = 1e-9  # weight this close to half of the total, relatively, is half of it


def weighted_median(vectors: Tensor, rows: Sequence[int], weights: Tensor) -> Tensor:
    """The median of the given ``rows``, weighted by ``weights`` (of these rows only), at each coordinate."""
    result = vectors.new_empty(vectors.shape[1])
    for low, high in chunks(vectors):
        result[low:high] = saturate(median_of_line(vectors, rows, weights, low, high), vectors.dtype)
    return result


def median_of_line(vectors: Tensor, rows: Sequence[int], weights: Tensor, low: int, high: int) -> Tensor:
    """The same of the coordinates from ``low`` to ``high``, in float64."""
    half = float(weights.sum()) / 2
    values, starts, _ = zip(*_line(vectors, rows, weights, low, high), strict=True)
    lower = _last(starts, half * (1 - _TOLERANCE))
    upper = _last(starts, half * (1 + _TOLERANCE))
    middles = torch.stack(values).gather(0, torch.stack([lower, upper])).to(torch.float64)
    return (middles[0] + middles[1]) / 2


def _last(starts: Sequence[Tensor], limit: float) -> Tensor:
    """The highest rank whose weight starts at or below ``limit``; starts never decrease."""
    count = torch.zeros_like(starts[0])
    for start in starts[1:]:
        count += torch.le(start, limit, out=torch.empty_like(start))
    return count.to(torch.int64)


def weighted_trimmed_mean(vectors: Tensor, rows: Sequence[int], weights: Tensor, f: float) -> Tensor:
    """The mean of what lies between ``f`` and the total less ``f`` on the line of weights, at each coordinate."""
    end = float(weights.sum()) - f
    result = vectors.new_empty(vectors.shape[1])
    for low, high in chunks(vectors):
        kept = torch.zeros(high - low, dtype=torch.float64, device=vectors.device)
        total = torch.zeros_like(kept)
        for value, start, weight in _line(vectors, rows, weights, low, high):
            share = ((start + weight).clamp_(max=end) - start.clamp(min=f)).clamp_(min=0.0)
            share = without_slivers(share, weight, end + f)
            kept += share * value
            total += share
        result[low:high] = saturate(kept / total, vectors.dtype)
    return result


def _line(
    vectors: Tensor, rows: Sequence[int], weights: Tensor, low: int, high: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """By rank, smallest first: the value, where its weight starts on the line of weights, and that weight."""
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    comparators = network(tuple(range(1, len(rows) + 1)))
    start = torch.zeros(high - low, dtype=torch.float64, device=vectors.device)
    for value, row in ordered_with_rows([vectors[row, low:high].to(dtype) for row in rows], comparators):
        weight = weights.index_select(0, row.to(torch.int32))
        yield value, start, weight
        start = start + weight
