"""The compiled kernels as the others call them: with tensors, numbers and networks."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_byz.blocks import Blocks
from lightning_byz.kernels.aside import Aside, measured
from lightning_byz.kernels.compiled import lines, ranks, sums
from lightning_byz.kernels.compiled.tiles import LANES, TILE
from lightning_byz.kernels.networks import groups_of, network, up_to
from lightning_byz.kernels.usable import usable_up_to

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
    own = vectors.detach()
    own = own if own.stride(1) == 1 or own.shape[1] == 1 else own.contiguous()
    return _line(own.as_strided(((own.shape[0] - 1) * own.stride(0) + own.shape[1],), (1,))), own.stride(0)


def _computed(dtype: torch.dtype) -> type:
    return np.float64 if dtype == torch.float64 else np.float32


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _point(point: Tensor | None) -> tuple[Array, Array]:
    """A vector, or nothing, and room for a tile of it in the type to compute it in."""
    own = torch.empty(0) if point is None else point.detach().contiguous()
    own = own if own.dtype in (*_BITS, torch.float32) else own.double()
    return _line(own), np.zeros(TILE, _computed(own.dtype))


def _room(dtype: torch.dtype, *, rows: int = 0, lines: int = 0, all_rows: int = 0) -> Callable[[], tuple[Array, ...]]:
    """Memory to work in: a tile of ``rows``, one of a single row, ``lines`` in float64, sums for ``all_rows``, and whole numbers for ``rows``."""
    own = _computed(dtype)

    def room() -> tuple[Array, ...]:
        tile, whole = np.zeros((rows, TILE), own), np.zeros((rows, TILE), np.int32)
        return tile, np.zeros(TILE, own), np.zeros((lines, TILE)), np.zeros((all_rows, LANES)), whole

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
    result = torch.empty(d, dtype=_wide(vectors.dtype))
    room = _room(vectors.dtype, rows=len(rows), lines=lines, all_rows=partials.shape[1])
    stack = *_stack(vectors), _computed(vectors.dtype)(usable_up_to(vectors.dtype)), doubts
    told = np.array(rows), _comparators(tuple(groups)), *arguments, limit, result.numpy(), partials
    kernel.over(d, _grain(width), room, stack, width, *told)
    result = _narrowed(result, vectors.dtype)
    if aside is not None:
        aside.squares = None if blocks is None else torch.from_numpy(partials)
        aside.suspects = torch.from_numpy(doubts) if len(doubts) else None
        measured(vectors, result, aside)
    return result


def _narrowed(values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` in ``dtype``, without negative zeros."""
    return values if values.dtype == dtype else values.to(dtype).add_(0.0)


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
    partials = torch.empty(len(blocks), len(vectors), dtype=torch.float64)
    room = _room(vectors.dtype, lines=1, all_rows=len(vectors))
    sums.square_sums.over(
        vectors.shape[1], _grain(blocks.width), room, _stack(vectors), blocks.width, *_point(origin), partials.numpy()
    )
    return partials


def cross_products(vectors: Tensor, origin: Tensor, blocks: Blocks) -> Tensor:
    """Gram matrix of ``vectors - origin``, one partial sum per block."""
    partials = torch.zeros(len(blocks), len(vectors), len(vectors), dtype=torch.float64)
    room = _room(vectors.dtype, lines=1 + len(vectors))
    sums.cross_products.over(
        vectors.shape[1], _grain(blocks.width), room, _stack(vectors), blocks.width, *_point(origin), partials.numpy()
    )
    return partials


def mixes(vectors: Tensor, matrix: Tensor) -> bool:
    """Whether ``weighted_rows`` is faster than a matrix product of torch's."""
    return len(matrix) == 1 or len(matrix) == len(vectors) <= _MIXED


def weighted_rows(vectors: Tensor, matrix: Tensor, about: Tensor | None) -> Tensor:
    """``matrix @ (vectors - about) + about``, of one line, or of as many as there are rows and no ``about``."""
    (n, d), dtype, limit = vectors.shape, vectors.dtype, torch.finfo(vectors.dtype).max
    out = torch.from_numpy(np.empty((len(matrix), d), _computed(dtype)))  # numpy asks for large pages, which cost less
    if len(matrix) == 1:
        rows = matrix[0].nonzero()[:, 0]
        told = rows.numpy(), matrix[0, rows].numpy(), *_point(about), limit, out[0].numpy()
        sums.weighted_row.over(d, _RUN, _room(dtype, lines=2), _stack(vectors), *told)
    else:
        sums.mixed_rows.over(
            d, _RUN, _room(dtype, lines=4 + n), _stack(vectors), matrix.contiguous().numpy(), limit, out.numpy()
        )
    return _narrowed(out, dtype)


def majority_signs(vectors: Tensor, weights: Tensor, balance: float) -> Tensor:
    """The sign of the weighted sum of signs; zero where that is at most ``balance``."""
    out = torch.empty(vectors.shape[1], dtype=_wide(vectors.dtype))
    room = _room(vectors.dtype, lines=1)
    sums.majority_signs.over(len(out), _RUN, room, _stack(vectors), weights.numpy(), balance, out.numpy())
    return _narrowed(out, vectors.dtype)


def suspects(vectors: Tensor) -> Tensor:
    """The rows that hold a number that is not usable."""
    found, largest = np.zeros(len(vectors), np.bool_), _computed(vectors.dtype)(usable_up_to(vectors.dtype))
    sums.suspects.over(vectors.shape[1], _RUN, _room(vectors.dtype), _stack(vectors), largest, found)
    return torch.from_numpy(found)
