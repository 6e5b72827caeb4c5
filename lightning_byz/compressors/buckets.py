"""Buckets of coordinates with a norm each: equal parts of a block, or whole blocks."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lightning_byz.compressors.coordinates import Coordinates
from lightning_byz.compressors.entries import touched


def length(coordinates: Coordinates, least: int | None) -> int:
    """Return how many coordinates a bucket has: the smallest divisor of a block that is not below ``least``, or whole blocks; all for None."""
    width = coordinates.blocks.width
    if least is None or least >= width:
        return -(-max(coordinates.total if least is None else least, 1) // width) * width
    return next(size for size in range(least, width + 1) if width % size == 0)


def norms(vector: Float[Tensor, " s"], coordinates: Coordinates, norm: str, bucket: int) -> Float64[Tensor, " c"]:
    """Return the norms of the buckets that the vector has something of, of whole buckets also where it has a part of one."""
    order, width = (2.0 if norm == "l2" else torch.inf), coordinates.blocks.width
    rows = [_rows(vector[low:high], min(bucket, width)) for low, high in coordinates.blocks.bounds]
    own = [torch.linalg.vector_norm(row, ord=order, dim=1, dtype=torch.float64) for row in rows]
    partials = torch.cat(own) if own else torch.zeros(0, dtype=torch.float64, device=vector.device)
    if bucket <= width:
        return partials
    everywhere = coordinates.gather(partials)
    together = _rows(everywhere, bucket // width)
    first, last = touched(coordinates.start, coordinates.stop, bucket)
    return torch.linalg.vector_norm(together, ord=order, dim=1)[first:last]


def _rows(values: Tensor, width: int) -> Tensor:
    """Return ``values`` in rows, the last one filled with zeros."""
    return torch.nn.functional.pad(values, (0, -len(values) % width)).view(-1, width)


def over(scales: Float[Tensor, " c"], coordinates: Coordinates, low: int, high: int, bucket: int) -> Float[Tensor, "_"]:
    """Return the scales of the coordinates of a block, or the only one."""
    start = coordinates.start
    first, last = touched(start + low, start + high, bucket)
    own = scales[first - start // bucket : last - start // bucket]
    return own if len(own) == 1 else own.repeat_interleave(bucket)[: high - low]
