"""Medians and trimmed means of coordinates whose weights differ: values are ordered together with the rows they came from."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_byz.kernels.blocks import saturate
from lightning_byz.kernels.networks import network
from lightning_byz.kernels.ordering import chunks, ordered_with_rows
from lightning_byz.kernels.shares import without_slivers

_HALF = 1e-9  # weight this close to half of the total is half of it


def weighted_median(vectors: Tensor, rows: Sequence[int], weights: Tensor) -> Tensor:
    """The median of the given ``rows``, weighted by ``weights`` (of these rows only), at each coordinate."""
    total = float(weights.sum())
    below, above = total * (0.5 - _HALF), total * (0.5 + _HALF)
    result = vectors.new_empty(vectors.shape[1])
    for low, high in chunks(vectors):
        lower = upper = vectors[rows[0], low:high]
        for value, start, _ in _line(vectors, rows, weights, low, high):
            lower = torch.where(start < below, value, lower)
            upper = torch.where(start <= above, value, upper)
        result[low:high] = saturate((lower.to(torch.float64) + upper) / 2, vectors.dtype)
    return result


def weighted_trimmed_mean(vectors: Tensor, rows: Sequence[int], weights: Tensor, f: float) -> Tensor:
    """The mean of what lies between ``f`` and the total less ``f`` on the line of weights, at each coordinate."""
    end = float(weights.sum()) - f
    result = vectors.new_empty(vectors.shape[1])
    for low, high in chunks(vectors):
        kept = torch.zeros(high - low, dtype=torch.float64, device=vectors.device)
        total = torch.zeros_like(kept)
        for value, start, weight in _line(vectors, rows, weights, low, high):
            share = ((start + weight).clamp_(max=end) - start.clamp(min=f)).clamp_(min=0.0)
            share = without_slivers(share, weight)
            kept += share * value
            total += share
        result[low:high] = saturate(kept / total, vectors.dtype)
    return result


def _line(
    vectors: Tensor, rows: Sequence[int], weights: Tensor, low: int, high: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """By rank, smallest first: the value, where its weight starts on the line of weights, and that weight."""
    comparators = network(tuple(range(1, len(rows) + 1)))
    wires = ordered_with_rows([vectors[row, low:high] for row in rows], comparators)
    start = torch.zeros(high - low, dtype=torch.float64, device=vectors.device)
    for value, row in wires:
        weight = weights.index_select(0, row)
        yield value, start, weight
        start = start + weight
