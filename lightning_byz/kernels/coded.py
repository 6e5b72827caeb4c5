"""Rows that are cut into pieces, block by block: their products with drawn numbers, and what they are mixed to.

In each block of ``width`` coordinates of a row lie ``pieces`` pieces, one after another. Everything is computed in float64, block by block, so that a
slice has the bits of the whole.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from lightning_byz.blocks import Blocks
from lightning_byz.kernels.blocks import on_blocks

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def projected_pieces(
    vectors: Float[Tensor, "n d"], blocks: Blocks, table: Float64[Tensor, "u k"], pieces: int = 1
) -> Float64[Tensor, "blocks m k"]:
    """The product of every piece with the first lines of ``table``, row after row, per block."""
    count = vectors.shape[0]
    partials = torch.empty(len(blocks), count * pieces, table.shape[1], dtype=torch.float64, device=vectors.device)

    def multiply(first: int, last: int) -> None:
        buffer = torch.empty(count * blocks.width, dtype=torch.float64, device=vectors.device)
        for index in range(first, last):
            low, high = blocks.bounds[index]
            copy = buffer[: count * (high - low)].view(count, high - low).copy_(vectors[:, low:high])
            torch.mm(copy.view(count * pieces, -1), table[: (high - low) // pieces], out=partials[index])

    on_blocks(multiply, vectors, blocks, products=True)
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
    limits, count, lines = torch.finfo(out.dtype), len(rows), len(matrix)
    everyone = count == vectors.shape[0]

    def mix(first: int, last: int) -> None:
        buffer, products = (
            torch.empty(size * blocks.width // part, dtype=torch.float64, device=vectors.device)
            for size, part in ((count, 1), (lines, pieces))
        )
        for low, high in blocks.bounds[first:last]:
            copy, start = buffer[: count * (high - low)].view(count, high - low), low // pieces * lines
            if everyone:
                copy.copy_(vectors[:, low:high])
            else:
                for place, row in enumerate(rows):
                    copy[place].copy_(vectors[row, low:high])
            length = (high - low) // pieces
            product = products[: lines * length].view(lines, length)
            torch.mm(matrix, copy.view(count * pieces, length), out=product)
            target = out[start : start + lines * length]
            target.copy_(product.view(-1)[: len(target)].clamp_(limits.min, limits.max))

    on_blocks(mix, vectors, blocks, products=True)
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
