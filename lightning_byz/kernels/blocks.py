"""Sums over rows and over coordinates, one block of coordinates at a time, always in float64.

Blocks are copied into a float64 buffer whose width never varies, so they give the same bits whether the whole stack or only a slice is at hand.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lightning_byz.blocks import Blocks
from lightning_byz.kernels.paths import compiled
from lightning_byz.threads import spread

_CHUNK = 32768
_DEVICE_CHUNK = 2**22
_CACHED = 8192  # rows of this many float64 numbers, n of them, stay in a core's second-level cache
_WORTH = 2**17  # numbers that are worth a thread
_SMALL = 4096  # numbers in a block up to which MKL multiplies on one thread, however many it has
_BALANCE = 1e-9  # votes this close to balance, relatively, are balanced


def saturate(values: Float64[Tensor, "..."], dtype: torch.dtype) -> Float[Tensor, "..."]:
    """Cast float64 ``values`` to ``dtype``, replacing what would overflow by the largest finite number of ``dtype``."""
    limits = torch.finfo(dtype)
    return values.clamp(limits.min, limits.max).to(dtype)


def on_blocks(
    work: Callable[[int, int], None], vectors: Tensor, blocks: Blocks, *, together: int = 1, products: bool = False
) -> None:
    """Call ``work`` for runs of blocks, from the first of each to before its last, which start at multiples of ``together``.

    Sums of ``products`` have the same bits on any number of threads only if each is computed by one.
    """
    if vectors.device.type != "cpu":
        work(0, len(blocks))
        return
    grain = -(-_WORTH * max(len(blocks), 1) // (together * max(vectors.numel(), 1))) * together
    alone = products and vectors.shape[0] * min(blocks.width, vectors.shape[1]) > _SMALL
    spread(work, len(blocks), grain, alone=alone)


def _in_float64(
    vectors: Tensor, blocks: Blocks, first: int, last: int, origin: Tensor | None = None, *, together: int
) -> Iterator[tuple[int, int, list[tuple[int, int]], Tensor]]:
    """``together`` blocks of ``vectors - origin`` at a time: the first one's number and start, where each lies in the copy, and the copy.

    The copy lives in a buffer that the next one overwrites. Its width depends on that of a block alone, and each block starts at a multiple of it.
    """
    width = together * blocks.width
    buffer = torch.empty(vectors.shape[0] + 1, width, dtype=torch.float64, device=vectors.device)
    for begin in range(first, last, together):
        some = blocks.bounds[begin : min(begin + together, last)]
        low, high = some[0][0], some[-1][1]
        copy = buffer[:-1, : high - low].copy_(vectors[:, low:high])
        if origin is not None:
            copy.sub_(buffer[-1, : high - low].copy_(origin[low:high]))
        yield begin, low, [(start - low, stop - low) for start, stop in some], copy


def _together(blocks: Blocks, columns: int = _CACHED) -> int:
    """How many blocks make up ``columns``."""
    return max(columns // blocks.width, 1)


def columns(vectors: Tensor, blocks: Blocks, first: int, last: int) -> Iterator[tuple[int, int]]:
    """``(low, high)`` of some blocks at a time, for what is computed number by number."""
    step = _together(blocks, _CHUNK if vectors.device.type == "cpu" else _DEVICE_CHUNK)
    for begin in range(first, last, step):
        yield blocks.bounds[begin][0], blocks.bounds[min(begin + step, last) - 1][1]


def weighted_rows(
    vectors: Float[Tensor, "n d"],
    matrix: Float64[Tensor, "m n"],
    blocks: Blocks,
    about: Float[Tensor, " d"] | None = None,
) -> Float[Tensor, "m d"]:
    """``matrix @ (vectors - about) + about`` in float64, saturated to the dtype of ``vectors``; no temporary longer than some blocks."""
    if (fast := compiled(vectors)) and fast.mixes(vectors, matrix):
        return fast.weighted_rows(vectors, matrix, about)
    if len(matrix) == 1:
        return _weighted_row(vectors, matrix[0].tolist(), blocks, about)[None]
    limits, together = torch.finfo(vectors.dtype), _together(blocks)
    result = vectors.new_empty(matrix.shape[0], vectors.shape[1])

    def mix(first: int, last: int) -> None:
        products = torch.empty(len(matrix), together * blocks.width, dtype=torch.float64, device=vectors.device)
        for _, low, places, copy in _in_float64(vectors, blocks, first, last, about, together=together):
            high = low + copy.shape[1]
            for start, stop in places:
                torch.mm(matrix, copy[:, start:stop], out=products[:, start:stop])
            product = products[:, : copy.shape[1]]
            if about is not None:
                product.add_(about[low:high].to(torch.float64))
            result[:, low:high].copy_(product.clamp_(limits.min, limits.max))

    on_blocks(mix, vectors, blocks, together=together, products=True)
    return result


def _weighted_row(
    vectors: Tensor, factors: Sequence[float], blocks: Blocks, about: Float[Tensor, " d"] | None
) -> Float[Tensor, " d"]:
    """The same of one line, row by row: several times cheaper than a product."""
    limits, result = torch.finfo(vectors.dtype), vectors.new_empty(vectors.shape[1])
    pairs = [(row, factor) for row, factor in enumerate(factors) if factor != 0]

    def add_up(first: int, last: int) -> None:
        for low, high in columns(vectors, blocks, first, last):
            rows = vectors[:, low:high].unbind()
            total, moved = torch.zeros(2, high - low, dtype=torch.float64, device=vectors.device)
            point = None if about is None else about[low:high].to(torch.float64)
            for row, factor in pairs:
                total.add_(rows[row] if point is None else torch.sub(rows[row], point, out=moved), alpha=factor)
            if point is not None:
                total.add_(point)
            result[low:high].copy_(total.clamp_(limits.min, limits.max))

    on_blocks(add_up, vectors, blocks, together=_together(blocks, _CHUNK))
    return result


def scaled_rows(
    vectors: Float[Tensor, "n d"], factors: Float64[Tensor, " n"], rows: Sequence[int]
) -> Float[Tensor, "n d"]:
    """A copy of ``vectors`` with the given ``rows`` times their factors, which must not exceed 1."""
    result, parts = torch.empty_like(vectors), Blocks.of(vectors.shape[1], _CHUNK)

    def scale(first: int, last: int) -> None:
        for low, high in columns(vectors, parts, first, last):
            result[:, low:high].copy_(vectors[:, low:high])
            for row in rows:
                part = result[row, low:high]
                part.copy_(part.to(torch.float64).mul_(factors[row]))

    on_blocks(scale, vectors, parts)
    return result


def majority_signs(
    vectors: Float[Tensor, "n d"], weights: Float64[Tensor, " n"], blocks: Blocks
) -> Float[Tensor, " d"]:
    """The sign of the weighted sum of signs at each coordinate, summed in the order of the rows; zero where it is only rounding."""
    balance = _BALANCE * float(weights.sum())
    if fast := compiled(vectors):
        return fast.majority_signs(vectors, weights, balance)
    result, factors = vectors.new_empty(vectors.shape[1]), weights.tolist()

    def vote(first: int, last: int) -> None:
        for low, high in columns(vectors, blocks, first, last):
            votes = torch.zeros(high - low, dtype=torch.float64, device=vectors.device)
            sign = torch.empty_like(votes, dtype=vectors.dtype)
            for values, weight in zip(vectors[:, low:high].unbind(), factors, strict=True):
                votes.add_(torch.sign(values, out=sign), alpha=weight)
            result[low:high].copy_(votes.masked_fill_(votes.abs() <= balance, 0.0).sign_())

    on_blocks(vote, vectors, blocks, together=_together(blocks, _CHUNK))
    return result


def moments(
    vectors: Float[Tensor, "n d"], coefficients: Float64[Tensor, " n"], blocks: Blocks
) -> tuple[Float64[Tensor, " d"], Float64[Tensor, " d"]]:
    """Mean and variance of each coordinate, the rows weighted by ``coefficients``, which sum to 1."""
    mean, variance = torch.empty(2, vectors.shape[1], dtype=torch.float64, device=vectors.device)
    together = _together(blocks)

    def measure(first: int, last: int) -> None:
        for _, low, places, copy in _in_float64(vectors, blocks, first, last, together=together):
            for start, stop in places:
                own, block = slice(low + start, low + stop), copy[:, start:stop]
                mean[own] = block.T @ coefficients
                variance[own] = block.sub_(mean[own]).square_().T @ coefficients

    on_blocks(measure, vectors, blocks, together=together, products=True)
    return mean, variance


def cross_products(
    vectors: Float[Tensor, "n d"], origin: Float[Tensor, " d"], blocks: Blocks, *, together: bool = True
) -> Float64[Tensor, "blocks n n"]:
    """Gram matrix of ``vectors - origin``, one partial sum per block.

    ``together`` must be false where blocks are not all of one width; any may be empty then.
    """
    if together and (fast := compiled(vectors)):
        return fast.cross_products(vectors, origin, blocks)
    count, some = vectors.shape[0], _together(blocks) if together else 1
    partials = torch.empty(len(blocks), count, count, dtype=torch.float64, device=vectors.device)

    def multiply(first: int, last: int) -> None:
        for begin, _, places, copy in _in_float64(vectors, blocks, first, last, origin, together=some):
            for index, (start, stop) in enumerate(places, begin):
                block = copy[:, start:stop]
                torch.mm(block, block.T, out=partials[index])

    on_blocks(multiply, vectors, blocks, together=some, products=True)
    return partials


def square_sums(
    vectors: Float[Tensor, "n d"], origin: Float[Tensor, " d"] | None, blocks: Blocks
) -> Float64[Tensor, "blocks n"]:
    """Squared length of each row of ``vectors - origin``, one partial sum per block."""
    if fast := compiled(vectors):
        return fast.square_sums(vectors, origin, blocks)
    partials = torch.empty(len(blocks), vectors.shape[0], dtype=torch.float64, device=vectors.device)
    together = _together(blocks)

    def measure(first: int, last: int) -> None:
        for begin, _, places, copy in _in_float64(vectors, blocks, first, last, origin, together=together):
            copy.square_()
            for index, (start, stop) in enumerate(places, begin):
                torch.sum(copy[:, start:stop], 1, out=partials[index])

    on_blocks(measure, vectors, blocks, together=together)
    return partials
