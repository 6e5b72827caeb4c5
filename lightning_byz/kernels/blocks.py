"""Sums over rows and over coordinates, one block of coordinates at a time, always in float64.

A block is copied into one float64 buffer whose width never varies, so it gives the same bits whether the whole stack or only a slice is at hand.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

Bounds = Sequence[tuple[int, int]]

_SMALLEST, _LARGEST, _COUNT = 64, 16384, 256
_CHUNK = 65536
_BALANCE = 1e-9  # votes this close to balance, relatively, are balanced
_SQUARABLE = 2.0**480  # float64 only: squares of larger numbers, summed, can overflow


def block_size(total: int) -> int:
    """Coordinates per block of a vector of ``total``: about 256 blocks, each a multiple of 64 between 64 and 16384."""
    ideal = -(-total // (_COUNT * _SMALLEST)) * _SMALLEST
    return min(max(ideal, _SMALLEST), _LARGEST)


def saturate(values: Float64[Tensor, "..."], dtype: torch.dtype) -> Float[Tensor, "..."]:
    """Cast float64 ``values`` to ``dtype``, replacing what would overflow by the largest finite number of ``dtype``."""
    limits = torch.finfo(dtype)
    return values.clamp(limits.min, limits.max).to(dtype)


def _in_float64(vectors: Tensor, bounds: Bounds, width: int) -> Iterator[tuple[int, int, Tensor]]:
    """Each block of ``vectors`` as ``(low, high, copy)``; the copy lives in a buffer that the next block overwrites."""
    buffer = torch.empty(vectors.shape[0], width, dtype=torch.float64, device=vectors.device)
    for low, high in bounds:
        yield low, high, buffer[:, : high - low].copy_(vectors[:, low:high])


def _columns_in_float64(vectors: Tensor, bounds: Bounds, width: int, columns: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """As :func:`_in_float64`, of the ascending ``columns`` in each block; ``low`` and ``high`` are places among ``columns``."""
    buffer = torch.empty(vectors.shape[0], width, dtype=torch.float64, device=vectors.device)
    ends = torch.searchsorted(columns, torch.tensor([0, *(high for _, high in bounds)], device=columns.device)).tolist()
    for low, high in pairwise(ends):
        yield low, high, buffer[:, : high - low].copy_(vectors[:, columns[low:high]])


def weighted_rows(
    vectors: Float[Tensor, "n d"], matrix: Float64[Tensor, "m n"], bounds: Bounds, width: int, about: Float[Tensor, " d"] | None = None
) -> Float[Tensor, "m d"]:
    """``matrix @ (vectors - about) + about`` in float64, saturated to the dtype of ``vectors``; no temporary longer than a block."""
    lines, limits = matrix.shape[0], torch.finfo(vectors.dtype)
    result = vectors.new_empty(lines, vectors.shape[1])
    products = torch.empty(lines, width, dtype=torch.float64, device=vectors.device)
    for low, high, block in _in_float64(vectors, bounds, width):
        product = products[:, : high - low]
        origin = None if about is None else about[low:high].to(torch.float64)
        if origin is not None:
            block.sub_(origin)
        if lines == 1:  # a matrix-vector product is several times cheaper than the same thing as a matrix product
            torch.mv(block.T, matrix[0], out=product[0])
        else:
            torch.mm(matrix, block, out=product)
        if origin is not None:
            product.add_(origin)
        result[:, low:high].copy_(product.clamp_(limits.min, limits.max))
    return result


def scaled_rows(vectors: Float[Tensor, "n d"], factors: Float64[Tensor, " n"], rows: Sequence[int]) -> Float[Tensor, "n d"]:
    """A copy of ``vectors`` with the given ``rows`` times their factors, which must not exceed 1."""
    result = vectors.clone()
    for row in rows:
        for part in result[row].split(_CHUNK):
            part.copy_(part.to(torch.float64).mul_(factors[row]))
    return result


def majority_signs(vectors: Float[Tensor, "n d"], weights: Float64[Tensor, " n"], bounds: Bounds, width: int) -> Float[Tensor, " d"]:
    """The sign of the weighted sum of signs at each coordinate; zero where it is only rounding."""
    result, balance = vectors.new_empty(vectors.shape[1]), _BALANCE * weights.sum()
    for low, high, block in _in_float64(vectors, bounds, width):
        votes = block.sign_().T @ weights
        result[low:high] = votes.masked_fill_(votes.abs() <= balance, 0.0).sign_()
    return result


def moments(
    vectors: Float[Tensor, "n d"], coefficients: Float64[Tensor, " n"], bounds: Bounds, width: int
) -> tuple[Float64[Tensor, " d"], Float64[Tensor, " d"]]:
    """Mean and variance of each coordinate, the rows weighted by ``coefficients``, which sum to 1."""
    mean, variance = torch.empty(2, vectors.shape[1], dtype=torch.float64, device=vectors.device)
    for low, high, block in _in_float64(vectors, bounds, width):
        mean[low:high] = block.T @ coefficients
        variance[low:high] = block.sub_(mean[low:high]).square_().T @ coefficients
    return mean, variance


def cross_products(
    vectors: Float[Tensor, "n d"], origin: Float[Tensor, " d"], bounds: Bounds, width: int, columns: Int64[Tensor, " k"] | None = None
) -> Float64[Tensor, "blocks n n"]:
    """Gram matrix of ``vectors - origin``, one partial sum per block; over the ascending ``columns`` only, if given."""
    count = vectors.shape[0]
    partials = torch.empty(len(bounds), count, count, dtype=torch.float64, device=vectors.device)
    blocks = _in_float64(vectors, bounds, width) if columns is None else _columns_in_float64(vectors, bounds, width, columns)
    for index, (low, high, block) in enumerate(blocks):
        here = origin[low:high] if columns is None else origin[columns[low:high]]
        block.sub_(here.to(torch.float64))
        partials[index] = block @ block.T
    return partials


def square_sums(vectors: Float[Tensor, "n d"], origin: Float[Tensor, " d"] | None, bounds: Bounds, width: int) -> Float64[Tensor, "blocks n"]:
    """Squared length of each row of ``vectors - origin``, one partial sum per block."""
    partials = torch.empty(len(bounds), vectors.shape[0], dtype=torch.float64, device=vectors.device)
    for index, (low, high, block) in enumerate(_in_float64(vectors, bounds, width)):
        if origin is not None:
            block.sub_(origin[low:high].to(torch.float64))
        partials[index] = block.square_().sum(1)
    return partials


def unusable(vectors: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
    """How many coordinates of each row no rule can use: not finite, or so large that their squares overflow float64."""
    counts = torch.zeros(vectors.shape[0], dtype=torch.int64, device=vectors.device)
    suspects = _suspects(vectors).nonzero()[:, 0].tolist()
    for row in suspects:
        for part in vectors[row].split(_CHUNK):
            counts[row] += part.numel() - _usable(part).sum()
    return counts


def _usable(values: Tensor) -> Tensor:
    return values.abs() <= _SQUARABLE if values.dtype == torch.float64 else values.isfinite()


def _suspects(vectors: Tensor) -> Tensor:
    """A cheap first look in one reading pass: a row of usable numbers is cleared, unless its sum overflows by itself."""
    doubtful = torch.zeros(vectors.shape[0], dtype=torch.bool, device=vectors.device)
    for part in vectors.split(_CHUNK, dim=1) if vectors.numel() else ():
        if vectors.dtype == torch.float64:
            doubtful |= ~_usable(torch.linalg.vector_norm(part, ord=torch.inf, dim=1))
        else:
            doubtful |= ~part.sum(1, dtype=torch.float32).isfinite()
    return doubtful
