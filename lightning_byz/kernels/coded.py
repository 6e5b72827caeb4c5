"""Rows that are cut into pieces, block by block: their products with drawn numbers, and what they are mixed to.

In each block of a row lie as many ``pieces``, one after another. Products are made in float64, one block at a time, so that a slice has the bits of
the whole; short blocks are copied several at a time.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from lightning_byz.blocks import Blocks
from lightning_byz.kernels.blocks import on_blocks

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_CACHED = 8192  # rows of this many float64 numbers, n of them, stay in a core's second-level cache


def projected_pieces(
    vectors: Float[Tensor, "n d"], blocks: Blocks, table: Float64[Tensor, "k u"], pieces: int = 1
) -> Float64[Tensor, "blocks k m"]:
    """The product of each line of ``table``, as much of it as a piece is long, with every piece, row after row, per block."""
    rows, together = range(vectors.shape[0]), _together(blocks, pieces)
    shape = len(blocks), table.shape[0], len(rows) * pieces
    partials = torch.empty(shape, dtype=torch.float64, device=vectors.device)

    def multiply(first: int, last: int) -> None:
        for begin, copies in _in_float64(vectors, rows, blocks, first, last, together, pieces):
            for index, copy in enumerate(copies, begin):
                torch.mm(table[:, : copy.shape[1]], copy.T, out=partials[index])

    on_blocks(multiply, vectors, blocks, together=together, products=True)
    return partials


def mixed_pieces(
    vectors: Float[Tensor, "n d"],
    rows: Sequence[int],
    matrix: Float64[Tensor, "q m"],
    blocks: Blocks,
    *,
    pieces: int = 1,
    out: Float[Tensor, " e"],
) -> Float[Tensor, " e"]:
    """Write ``matrix`` times the pieces of the given ``rows``: per block one piece after another, saturated, as much of it as ``out`` has.

    Args:
        vectors: The rows; those that are not among ``rows`` are not read.
        rows: Which of them.
        matrix: A column for each piece of each of these rows, a line for each piece that is written.
        blocks: Those of ``vectors``.
        pieces: How many lie in a block of a row.
        out: Where to write.
    """
    limits, lines, together = torch.finfo(out.dtype), len(matrix), _together(blocks, pieces)

    def mix(first: int, last: int) -> None:
        buffer = torch.empty(together * lines * blocks.width // pieces, dtype=torch.float64, device=vectors.device)
        for begin, copies in _in_float64(vectors, rows, blocks, first, last, together, pieces):
            written = 0
            for copy in copies:
                product = buffer[written : written + lines * copy.shape[1]]
                torch.mm(matrix, copy, out=product.view(lines, -1))
                written += len(product)
            start = blocks.bounds[begin][0] // pieces * lines
            target = out[start : start + written]
            target.copy_(buffer[: len(target)].clamp_(limits.min, limits.max))

    on_blocks(mix, vectors, blocks, together=together, products=True)
    return out


def differing(vectors: Float[Tensor, "n d"], pairs: Sequence[tuple[int, int]], blocks: Blocks) -> Int64[Tensor, " m"]:
    """In how many numbers the rows of each pair differ in a bit."""
    bits = vectors.view(_BITS[vectors.element_size()])
    counts = torch.zeros(len(blocks), len(pairs), dtype=torch.int64, device=vectors.device)

    def compare(first: int, last: int) -> None:
        for index in range(first, last):
            low, high = blocks.bounds[index]
            for place, (one, other) in enumerate(pairs):
                counts[index, place] = bits[one, low:high].ne(bits[other, low:high]).sum()

    on_blocks(compare, vectors, blocks)
    return counts.sum(0)


def _together(blocks: Blocks, pieces: int) -> int:
    """How many blocks are copied at a time: one where rows of pieces would not be evenly apart otherwise."""
    return max(_CACHED // blocks.width, 1) if pieces == 1 else 1


def _in_float64(
    vectors: Tensor, rows: Sequence[int], blocks: Blocks, first: int, last: int, together: int, pieces: int
) -> Iterator[tuple[int, list[Tensor]]]:
    """``together`` blocks of the ``rows`` at a time: the first one's number, and the pieces of each block, in a buffer that the next overwrites."""
    width = together * blocks.width
    buffer = torch.empty(len(rows) * width, dtype=torch.float64, device=vectors.device)
    for begin in range(first, last, together):
        some = blocks.bounds[begin : min(begin + together, last)]
        low, high = some[0][0], some[-1][1]
        copy = buffer.view(len(rows), width)[:, : high - low]
        if pieces > 1:
            copy = buffer[: len(rows) * (high - low)].view(len(rows), high - low)
        if len(rows) == vectors.shape[0]:
            copy.copy_(vectors[:, low:high])
        else:
            for place, row in enumerate(rows):
                copy[place].copy_(vectors[row, low:high])
        if pieces > 1:
            yield begin, [copy.view(len(rows) * pieces, -1)]
        else:
            yield begin, [copy[:, start - low : stop - low] for start, stop in some]
