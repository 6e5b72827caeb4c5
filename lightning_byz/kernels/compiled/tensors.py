"""The compiled kernels as the others call them: with tensors, numbers and networks."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_byz.blocks import Blocks
from lightning_byz.kernels.aside import Aside
from lightning_byz.kernels.compiled import lines, ranks, sums
from lightning_byz.kernels.compiled.tiles import LANES, TILE
from lightning_byz.kernels.networks import groups_of, network, up_to
from lightning_byz.kernels.usable import usable_up_to
from lightning_byz.threads import spread

Array = np.ndarray
_RUN = 32 * TILE  # coordinates that are some hundred microseconds of work
_BITS = {torch.float16: np.int16, torch.bfloat16: np.uint16}
_MIXED = 32  # rows, above which a matrix product of torch's mixes them faster


def _line(values: Tensor) -> Array:
    """Numbers that lie one after the other as numpy sees them, half precision as its bits."""
    if values.dtype in _BITS:
        return values.view(torch.int16).numpy().view(_BITS[values.dtype])
    return values.numpy()


def _stack(vectors: Tensor) -> tuple[Array, int]:
    """All rows in one line, and how far it is from one to the next."""
    own = vectors.detach().resolve_neg()
    own = own if own.stride(1) == 1 or own.shape[1] == 1 else own.contiguous()
    return _line(own.as_strided(((own.shape[0] - 1) * own.stride(0) + own.shape[1],), (1,))), own.stride(0)


def _computed(dtype: torch.dtype) -> type:
    return np.float64 if dtype == torch.float64 else np.float32


def _fresh(dtype: torch.dtype, *shape: int) -> Tensor:
    """Memory for a result in the type to compute in; of much of it numpy asks for large pages, which are there sooner."""
    return torch.from_numpy(np.empty(shape, _computed(dtype)))


def _point(point: Tensor | None) -> Array:
    """A vector as kernels take it, or nothing."""
    if point is None:
        return np.zeros(0, np.float32)
    own = point.detach().resolve_neg().contiguous()
    return _line(own if own.dtype in (*_BITS, torch.float32) else own.double())


def _room(
    dtype: torch.dtype, *, rows: int = 0, lines: int = 0, all_rows: int = 0, point: Array | None = None
) -> Callable[[], tuple[Array, ...]]:
    """Memory that a run works in, none of it shared.

    A tile of ``rows``, one of a single row, ``lines`` in float64, sums for ``all_rows``, whole numbers for ``rows``, and a tile of a ``point``.
    """
    own = _computed(dtype)
    others = np.float64 if point is not None and point.dtype == np.float64 else np.float32

    def room() -> tuple[Array, ...]:
        tile, whole = np.zeros((rows, TILE), own), np.zeros((rows, TILE), np.int32)
        sums = np.zeros((all_rows, LANES))
        return tile, np.zeros(TILE, own), np.zeros((lines, TILE)), sums, whole, np.zeros(TILE, others)

    return room


@lru_cache(maxsize=256)
def _comparators(groups: tuple[int, ...]) -> Array:
    """The network for ``groups``, as numbers, which nobody writes to."""
    return np.array(network(groups), dtype=np.int64).reshape(-1, 4)


def _statistic(
    kernel: Any,
    vectors: Tensor,
    rows: Sequence[int],
    groups: Sequence[int],
    *arguments: Any,
    lines: int,
    aside: Aside | None,
) -> Tensor:
    """Run a kernel that makes one number of each coordinate, and finds out what is asked ``aside``."""
    n, d, limit, asked = vectors.shape[0], vectors.shape[1], torch.finfo(vectors.dtype).max, aside or Aside()
    blocks = (
        None if vectors.dtype in _BITS else asked.blocks
    )  # of a result that is rounded once more distances come later
    partials = np.empty((0, 0)) if blocks is None else np.empty((len(blocks), n))
    width = _RUN if blocks is None else blocks.width
    doubts = np.zeros(n if asked.look and len(rows) == n else 0, np.bool_)
    result = _fresh(vectors.dtype, d)
    room = _room(vectors.dtype, rows=len(rows), lines=lines, all_rows=partials.shape[1])
    stack = *_stack(vectors), _computed(vectors.dtype)(usable_up_to(vectors.dtype)), doubts
    told = np.array(rows), _comparators(tuple(groups)), *arguments, limit, result.numpy(), partials
    kernel.over(d, _grain(width), room, stack, width, *told)
    result = _narrowed(result, vectors.dtype)
    if aside is not None:
        aside.squares = None if blocks is None else torch.from_numpy(partials)
        aside.suspects = torch.from_numpy(doubts) if len(doubts) else None
    return result


def _narrowed(values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` in ``dtype``, without negative zeros."""
    if values.dtype == dtype:
        return values
    result = torch.empty(values.shape, dtype=dtype, device=values.device)

    def narrow(low: int, high: int) -> None:
        result[..., low:high].copy_(values[..., low:high]).add_(0.0)

    spread(narrow, values.shape[-1], 4 * _RUN)
    return result


def _grain(width: int) -> int:
    """Whole blocks, enough of them to be worth a thread."""
    return -(-_RUN // width) * width


def rank_average(vectors: Tensor, rows: Sequence[int], shares: Sequence[float], aside: Aside | None) -> Tensor:
    """The average, weighted by ``shares``, of the values at each rank."""
    groups = groups_of(shares)
    members = [[rank for rank, own in enumerate(groups) if own == group] for group in sorted(set(groups) - {0})]
    told = (
        np.array([rank for group in members for rank in group]),
        np.cumsum([len(group) for group in members]),
        np.array([float(shares[group[0]]) for group in members]),
        float(sum(shares)),
    )
    return _statistic(ranks.rank_average, vectors, rows, groups, told, lines=2, aside=aside)


def mean_around_median(
    vectors: Tensor, rows: Sequence[int], groups: Sequence[int], count: int, rest: float, aside: Aside | None
) -> Tensor:
    """The mean of the ``count`` nearest values and a part, the ``rest``, of the next one."""
    parts = np.array([0.25, 0.5], _computed(vectors.dtype))
    told = (count, float(rest), parts)
    return _statistic(ranks.mean_around_median, vectors, rows, groups, told, lines=2, aside=aside)


def weighted_median(
    vectors: Tensor,
    rows: Sequence[int],
    weights: Sequence[float],
    limits: tuple[float, float],
    last: int,
    aside: Aside | None,
) -> Tensor:
    """The mean of the last values, up to the rank ``last``, whose weights start at or below each of two ``limits``."""
    told = np.array(weights, dtype=np.float64), limits, last
    return _statistic(lines.weighted_median, vectors, rows, up_to(last, len(rows)), *told, lines=1, aside=aside)


def weighted_trimmed_mean(
    vectors: Tensor,
    rows: Sequence[int],
    weights: Sequence[float],
    kept: tuple[float, float, float, float],
    ranks: tuple[int, int],
    aside: Aside | None,
) -> Tensor:
    """The mean between two ends of the line of weights, of some ranks; ``kept`` are the ends, and what is a sliver of a row's weight and of all."""
    told, room = (np.array(weights, dtype=np.float64), kept, ranks), 3 + len(rows)
    groups = up_to(ranks[1], len(rows))
    return _statistic(lines.weighted_trimmed_mean, vectors, rows, groups, *told, lines=room, aside=aside)


def weighted_mean_around_median(
    vectors: Tensor,
    rows: Sequence[int],
    weights: Sequence[float],
    limits: tuple[float, float],
    kept: tuple[float, float, float],
    last: int,
    aside: Aside | None,
) -> Tensor:
    """The mean of the weight nearest to the weighted median; ``kept`` is how much, and what is a sliver of a row's weight and of all."""
    told, room = (np.array(weights, dtype=np.float64), limits, kept, last), 3 + 2 * len(rows)
    groups = up_to(last, len(rows))
    return _statistic(lines.weighted_mean_around_median, vectors, rows, groups, *told, lines=room, aside=aside)


def square_sums(vectors: Tensor, origin: Tensor | None, blocks: Blocks) -> Tensor:
    """Squared length of each row of ``vectors - origin``, one partial sum per block."""
    partials, point = np.empty((len(blocks), len(vectors))), _point(origin)
    room = _room(vectors.dtype, lines=1, all_rows=len(vectors), point=point)
    told = _stack(vectors), blocks.width, point, partials
    sums.square_sums.over(vectors.shape[1], _grain(blocks.width), room, *told)
    return torch.from_numpy(partials)


def cross_products(vectors: Tensor, origin: Tensor, blocks: Blocks) -> Tensor:
    """Gram matrix of ``vectors - origin``, one partial sum per block."""
    partials, point = np.zeros((len(blocks), len(vectors), len(vectors))), _point(origin)
    room = _room(vectors.dtype, lines=1 + len(vectors), point=point)
    told = _stack(vectors), blocks.width, point, partials
    sums.cross_products.over(vectors.shape[1], _grain(blocks.width), room, *told)
    return torch.from_numpy(partials)


def mixes(vectors: Tensor, matrix: Tensor) -> bool:
    """Whether ``weighted_rows`` is faster than a matrix product of torch's."""
    return len(matrix) == 1 or len(matrix) == len(vectors) <= _MIXED


def weighted_rows(vectors: Tensor, matrix: Tensor, about: Tensor | None) -> Tensor:
    """``matrix @ (vectors - about) + about``, of one line, or of as many as there are rows and no ``about``."""
    (n, d), dtype, limit = vectors.shape, vectors.dtype, torch.finfo(vectors.dtype).max
    out, point = _fresh(dtype, len(matrix), d), _point(about)
    if len(matrix) == 1:
        rows = matrix[0].nonzero()[:, 0]
        told = rows.numpy(), matrix[0, rows].numpy(), point, limit, out[0].numpy()
        sums.weighted_row.over(d, _RUN, _room(dtype, lines=2, point=point), _stack(vectors), *told)
    else:
        sums.mixed_rows.over(
            d, _RUN, _room(dtype, lines=4 + n), _stack(vectors), matrix.contiguous().numpy(), limit, out.numpy()
        )
    return _narrowed(out, dtype)


def majority_signs(vectors: Tensor, weights: Tensor, balance: float) -> Tensor:
    """The sign of the weighted sum of signs; zero where that is at most ``balance``."""
    out = _fresh(vectors.dtype, vectors.shape[1])
    room = _room(vectors.dtype, lines=1)
    sums.majority_signs.over(len(out), _RUN, room, _stack(vectors), weights.numpy(), balance, out.numpy())
    return _narrowed(out, vectors.dtype)


def suspects(vectors: Tensor) -> Tensor:
    """The rows that hold a number that is not usable."""
    found, largest = np.zeros(len(vectors), np.bool_), _computed(vectors.dtype)(usable_up_to(vectors.dtype))
    sums.suspects.over(vectors.shape[1], _RUN, _room(vectors.dtype), _stack(vectors), largest, found)
    return torch.from_numpy(found)
