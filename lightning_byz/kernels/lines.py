"""Values of unequal weight in order, each with the row it came from: by value, and of equal values (both zeros are equal) the lower row first.

Of numbers of up to 32 bits, value and row are packed into one whole number, the key, so that to order keys is to order values with their rows.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_byz.kernels.networks import Comparator, network, up_to
from lightning_byz.kernels.ordering import Room, by_network, ordered

_KEYS = {2: (torch.int16, torch.int32), 4: (torch.int32, torch.int64)}  # bytes of a number: its bits, and its key
_SPARE = 2  # wires that a comparator writes to
_FAR = 512.0  # more than a network has rows


class Line(NamedTuple):
    """A chunk of coordinates in order."""

    wires: list[Tensor] | tuple[Tensor, ...]
    """By rank, smallest first: keys or values."""
    place: Callable[[int], Tensor]
    """Of a rank, the places of its rows among the rows, as whole numbers."""
    value: Callable[[Tensor], Tensor]
    """The values of wires."""


def line(vectors: Tensor, rows: Sequence[int], low: int, high: int, room: Room, *, last: int) -> Line:
    """The values of ``rows`` from ``low`` to ``high``, in order up to the rank ``last``; they are valid until ``room`` is used again."""
    chunk = vectors[:, low:high] if len(rows) == len(vectors) else vectors[rows, low:high]
    if not by_network(rows):
        values, places = chunk.sort(dim=0, stable=True)
        return Line(values.unbind(), places.__getitem__, torch.clone)
    comparators = network(up_to(last, len(rows)))
    if chunk.dtype == torch.float64:
        pairs = ordered_with_rows(chunk.unbind(), comparators)
        return Line([value for value, _ in pairs], lambda rank: pairs[rank][1].to(torch.int32), torch.clone)
    bits, key = _KEYS[chunk.element_size()]
    size = torch.iinfo(bits).bits
    keys = room.empty("keys", len(rows) + _SPARE, high - low, dtype=key, device=chunk.device)
    packed = keys_of(chunk, keys[: len(rows)], room.empty("bits", *chunk.shape, dtype=chunk.dtype, device=chunk.device))
    wires = ordered(packed.unbind(), comparators, [*keys[len(rows) :].unbind()], kept=False)
    return Line(wires, lambda rank: wires[rank] & ((1 << size) - 1), lambda some: values_of(some, chunk.dtype))


def keys_of(values: Tensor, keys: Tensor, spare: Tensor) -> Tensor:
    """Whole numbers in the order of ``values``, each with its row in its lower half, in ``keys``; ``spare`` is like ``values``.

    The bits of a positive number, as a whole number, are in its order; those of a negative one in the opposite order, until all but the sign are
    turned over.
    """
    bits, key = _KEYS[values.element_size()]
    none_negative = torch.add(values, 0.0, out=spare)  # of both zeros the positive one
    keys.copy_(_turned(none_negative.view(bits), keys.view(bits)[:, : values.shape[1]]))
    keys.bitwise_left_shift_(torch.iinfo(bits).bits)
    return keys.bitwise_or_(torch.arange(len(values), dtype=key, device=values.device)[:, None])


def values_of(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """What ``keys`` are of."""
    bits, _ = _KEYS[dtype.itemsize]
    own = (keys >> torch.iinfo(bits).bits).to(bits)
    return _turned(own, torch.empty_like(own)).view(dtype)


def _turned(bits: Tensor, spare: Tensor) -> Tensor:
    """The bits with those of negative numbers turned over, all but the sign, in place."""
    return bits.bitwise_xor_(torch.clamp(bits, -1, 0, out=spare).bitwise_and_(torch.iinfo(bits.dtype).max))


def ordered_with_rows(rows: Sequence[Tensor], comparators: Sequence[Comparator]) -> list[tuple[Tensor, Tensor]]:
    """Values by rank, as far as ``comparators`` keep the rank, each with the index of its row as a number of the same dtype.

    Args:
        rows: In float32 or float64, where all indices are exact.
        comparators: A network that sorts.
    """
    wires = [(row, torch.full_like(row, index)) for index, row in enumerate(rows)]
    for low, high, keep_low, keep_high in comparators:
        (first, own), (second, other) = wires[low], wires[high]
        # 0 or 1: with arithmetic, several times faster than `where`; where neither is larger, the lower index is the smaller number
        above = torch.gt(first, second, out=torch.empty_like(first)).mul_(_FAR).add_(own)
        below = torch.lt(first, second, out=torch.empty_like(first)).mul_(_FAR).add_(other)
        lower = torch.minimum(above, below, out=above)
        if keep_low:
            wires[low] = torch.minimum(first, second), lower
        if keep_high:
            wires[high] = torch.maximum(first, second), torch.add(own, other, out=below).sub_(lower)
    return wires
