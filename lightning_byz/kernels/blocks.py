"""Sums over rows and over coordinates, one block of coordinates at a time, always in float64.

Blocks are copied into a float64 buffer whose width never varies, so they give the same bits whether the whole stack or only a slice is at hand.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from lightning_byz.blocks import Blocks
from lightning_byz.facts import counted
from lightning_byz.kernels.paths import compiled

_CHUNK = 65536
_CACHED = 8192  # rows of this many float64 numbers, n of them, stay in a core's second-level cache
_BALANCE = 1e-9  # votes this close to balance, relatively, are balanced
_SQUARABLE = 2.0**480  # float64 only: squares of larger numbers, summed, can overflow


@dataclass
class Aside:
    """What a kernel is asked besides its result, where finding it out on the way saves a reading of all rows, and what it answers.

    Args:
        blocks: Of which the squared distances of all rows from the result are wanted; none if None.
        look: Whether a first look for unusable numbers is wanted.
        squares: One line per block, in float64.
        suspects: The rows that may hold such numbers.
    """

    blocks: Blocks | None = None
    look: bool = False
    squares: Float64[Tensor, "blocks n"] | None = None
    suspects: Bool[Tensor, " n"] | None = None


def saturate(values: Float64[Tensor, "..."], dtype: torch.dtype) -> Float[Tensor, "..."]:
    """Cast float64 ``values`` to ``dtype``, replacing what would overflow by the largest finite number of ``dtype``."""
    limits = torch.finfo(dtype)
    return values.clamp(limits.min, limits.max).to(dtype)


def _in_float64(
    vectors: Tensor, blocks: Blocks, origin: Tensor | None = None, *, together: bool = True
) -> Iterator[tuple[int, int, list[tuple[int, int]], Tensor]]:
    """Some blocks of ``vectors - origin`` at a time: the first one's number and start, where each lies in the copy, and the copy.

    The copy lives in a buffer that the next one overwrites. Its width depends on that of a block alone, and each block starts at a multiple of it, or
    at the start of the buffer unless ``together``.
    """
    count = max(_CACHED // blocks.width, 1) if together else 1
    buffer = torch.empty(vectors.shape[0] + 1, count * blocks.width, dtype=torch.float64, device=vectors.device)
    for first in range(0, len(blocks), count):
        some = blocks.bounds[first : first + count]
        low, high = some[0][0], some[-1][1]
        copy = buffer[:-1, : high - low].copy_(vectors[:, low:high])
        if origin is not None:
            copy.sub_(buffer[-1, : high - low].copy_(origin[low:high]))
        yield first, low, [(start - low, stop - low) for start, stop in some], copy


def weighted_rows(
    vectors: Float[Tensor, "n d"],
    matrix: Float64[Tensor, "m n"],
    blocks: Blocks,
    about: Float[Tensor, " d"] | None = None,
) -> Float[Tensor, "m d"]:
    """``matrix @ (vectors - about) + about`` in float64, saturated to the dtype of ``vectors``; no temporary longer than some blocks."""
    if (fast := compiled(vectors)) and fast.mixes(vectors, matrix):
        return fast.weighted_rows(vectors, matrix, about)
    limits = torch.finfo(vectors.dtype)
    result = vectors.new_empty(matrix.shape[0], vectors.shape[1])
    products = torch.empty(matrix.shape[0], max(_CACHED, blocks.width), dtype=torch.float64, device=vectors.device)
    for _, low, places, copy in _in_float64(vectors, blocks, about):
        high = low + copy.shape[1]
        for start, stop in places:
            if (
                len(matrix) == 1
            ):  # a matrix-vector product is several times cheaper than the same thing as a matrix product
                torch.mv(copy[:, start:stop].T, matrix[0], out=products[0, start:stop])
            else:
                torch.mm(matrix, copy[:, start:stop], out=products[:, start:stop])
        product = products[:, : copy.shape[1]]
        if about is not None:
            product.add_(about[low:high].to(torch.float64))
        result[:, low:high].copy_(product.clamp_(limits.min, limits.max))
    return result


def scaled_rows(
    vectors: Float[Tensor, "n d"], factors: Float64[Tensor, " n"], rows: Sequence[int]
) -> Float[Tensor, "n d"]:
    """A copy of ``vectors`` with the given ``rows`` times their factors, which must not exceed 1."""
    result = vectors.clone()
    for row in rows:
        for part in result[row].split(_CHUNK):
            part.copy_(part.to(torch.float64).mul_(factors[row]))
    return result


def majority_signs(
    vectors: Float[Tensor, "n d"], weights: Float64[Tensor, " n"], blocks: Blocks
) -> Float[Tensor, " d"]:
    """The sign of the weighted sum of signs at each coordinate; zero where it is only rounding."""
    balance = _BALANCE * float(weights.sum())
    if fast := compiled(vectors):
        return fast.majority_signs(vectors, weights, balance)
    result = vectors.new_empty(vectors.shape[1])
    for _, low, places, copy in _in_float64(vectors, blocks):
        copy.sign_()
        votes = torch.empty_like(copy[0])
        for start, stop in places:
            torch.mv(copy[:, start:stop].T, weights, out=votes[start:stop])
        result[low : low + copy.shape[1]] = votes.masked_fill_(votes.abs() <= balance, 0.0).sign_()
    return result


def moments(
    vectors: Float[Tensor, "n d"], coefficients: Float64[Tensor, " n"], blocks: Blocks
) -> tuple[Float64[Tensor, " d"], Float64[Tensor, " d"]]:
    """Mean and variance of each coordinate, the rows weighted by ``coefficients``, which sum to 1."""
    mean, variance = torch.empty(2, vectors.shape[1], dtype=torch.float64, device=vectors.device)
    for _, low, places, copy in _in_float64(vectors, blocks):
        for start, stop in places:
            own, block = slice(low + start, low + stop), copy[:, start:stop]
            mean[own] = block.T @ coefficients
            variance[own] = block.sub_(mean[own]).square_().T @ coefficients
    return mean, variance


def cross_products(
    vectors: Float[Tensor, "n d"], origin: Float[Tensor, " d"], blocks: Blocks, *, together: bool = True
) -> Float64[Tensor, "blocks n n"]:
    """Gram matrix of ``vectors - origin``, one partial sum per block.

    ``together`` must be false where blocks are not all of one width; any may be empty then.
    """
    if together and (fast := compiled(vectors)):
        return fast.cross_products(vectors, origin, blocks)
    count = vectors.shape[0]
    partials = torch.empty(len(blocks), count, count, dtype=torch.float64, device=vectors.device)
    for first, _, places, copy in _in_float64(vectors, blocks, origin, together=together):
        for index, (start, stop) in enumerate(places, first):
            block = copy[:, start:stop]
            torch.mm(block, block.T, out=partials[index])
    return partials


def square_sums(
    vectors: Float[Tensor, "n d"], origin: Float[Tensor, " d"] | None, blocks: Blocks
) -> Float64[Tensor, "blocks n"]:
    """Squared length of each row of ``vectors - origin``, one partial sum per block."""
    if fast := compiled(vectors):
        return fast.square_sums(vectors, origin, blocks)
    partials = torch.empty(len(blocks), vectors.shape[0], dtype=torch.float64, device=vectors.device)
    for first, _, places, copy in _in_float64(vectors, blocks, origin):
        copy.square_()
        for index, (start, stop) in enumerate(places, first):
            torch.sum(copy[:, start:stop], 1, out=partials[index])
    return partials


def measured(vectors: Tensor, point: Tensor, aside: Aside | None) -> Tensor:
    """``point``, after what is asked ``aside`` and was not found on the way has been found."""
    if aside is not None and aside.blocks is not None and aside.squares is None:
        aside.squares = square_sums(vectors, point, aside.blocks)
    if aside is not None and aside.look and aside.suspects is None:
        aside.suspects = suspects(vectors)
    return point


def unusable(vectors: Float[Tensor, "n d"], among: Bool[Tensor, " n"] | None = None) -> Int64[Tensor, " n"]:
    """How many coordinates of each row no rule can use: not finite, or so large that their squares overflow float64.

    The rows of which that is not zero are ``among`` these, if they are known.
    """
    counts = torch.zeros(vectors.shape[0], dtype=torch.int64, device=vectors.device)
    for row in counted(suspects(vectors) if among is None else among):
        for part in vectors[row].split(_CHUNK):
            counts[row] += part.numel() - _usable(part).sum()
    return counts


def usable_up_to(dtype: torch.dtype) -> float:
    """The largest number that rules can use."""
    return _SQUARABLE if dtype == torch.float64 else torch.finfo(dtype).max


def _usable(values: Tensor) -> Tensor:
    return values.abs() <= usable_up_to(values.dtype)


def suspects(vectors: Tensor) -> Tensor:
    """A cheap first look in one reading pass: a row of usable numbers is cleared, unless its sum overflows by itself."""
    if fast := compiled(vectors):
        return fast.suspects(vectors)
    doubtful = torch.zeros(vectors.shape[0], dtype=torch.bool, device=vectors.device)
    for part in vectors.split(_CHUNK, dim=1) if vectors.numel() else ():
        if vectors.dtype == torch.float64:
            doubtful |= ~_usable(torch.linalg.vector_norm(part, ord=torch.inf, dim=1))
        else:
            doubtful |= ~part.sum(1, dtype=torch.float32).isfinite()
    return doubtful
