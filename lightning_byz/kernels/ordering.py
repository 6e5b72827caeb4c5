"""The values of a chunk of coordinates by rank, many coordinates at once, without writing to the rows.

A sorting network does this, and of very many rows, where it would cost more, a sort of each coordinate. Which of the two depends on the number of
rows alone; the values of a rank are the same.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lightning_byz.kernels.networks import Comparator, network

_CHUNK = 16384  # rows of this many coordinates, n of them, stay in a core's second-level cache
_SHARED = 3  # so many times more per thread, where several threads share the work: below that waiting for each other costs more than it saves
_DEVICE_CHUNK = 2**22
_NETWORK = 256  # rows, up to which a network orders them
_SORTED, _DEVICE_SORTED = 2**20, 2**26  # numbers to sort at a time


def by_network(rows: Sequence[int]) -> bool:
    """Whether ``rows`` are few enough for a network."""
    return len(rows) <= _NETWORK


def chunks(vectors: Tensor, *, count: int = 0) -> Iterator[tuple[int, int]]:
    """``(low, high)`` of runs of coordinates to order at a time, of ``count`` rows; the result does not depend on where they end."""
    length, threads, device = vectors.shape[1], torch.get_num_threads(), vectors.device.type != "cpu"
    if count > _NETWORK:
        step = max((_DEVICE_SORTED if device else _SORTED * threads) // count, 1)
    else:
        step = _DEVICE_CHUNK if device else _CHUNK if threads == 1 else _SHARED * threads * _CHUNK
    return ((low, min(low + step, length)) for low in range(0, length, step))


def ranked(
    vectors: Tensor, rows: Sequence[int], groups: tuple[int, ...]
) -> Iterator[tuple[int, int, Sequence[Tensor]]]:
    """Where each chunk of coordinates begins and ends, and the values of ``rows`` there by rank, as far as ``groups`` tells ranks apart.

    They are valid until the next chunk.
    """
    comparators, buffers = network(groups) if by_network(rows) else (), []
    for low, high in chunks(vectors, count=len(rows)):
        if by_network(rows):
            yield low, high, ordered([vectors[row, low:high] for row in rows], comparators, buffers)
        else:
            yield low, high, vectors[rows, low:high].sort(dim=0).values.unbind()


def ranked_with_rows(vectors: Tensor, rows: Sequence[int], low: int, high: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The values of ``rows`` from ``low`` to ``high`` by rank, each with the place of its row among ``rows``, as a whole number."""
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    if by_network(rows):
        comparators = network(tuple(range(1, len(rows) + 1)))
        for value, row in ordered_with_rows([vectors[row, low:high].to(dtype) for row in rows], comparators):
            yield value, row.to(torch.int32)
    else:
        values, places = vectors[rows, low:high].to(dtype).sort(dim=0, stable=True)
        yield from zip(values, places, strict=True)


def ordered(rows: Sequence[Tensor], comparators: tuple[Comparator, ...], buffers: list[Tensor]) -> list[Tensor]:
    """Values by rank where ``comparators`` keep the rank, elsewhere whatever was left.

    Args:
        rows: One chunk of each row.
        comparators: The network.
        buffers: Memory to use, which comes back longer for the next call; until then the result may lie in it.
    """
    steps, ends, needed = _plan(comparators, len(rows))
    if buffers and buffers[0].shape != rows[0].shape:
        buffers.clear()
    buffers.extend(torch.empty_like(rows[0]) for _ in range(needed - len(buffers)))
    places = [*rows, *buffers]
    for exchange, first, second, target in steps:
        exchange(places[first], places[second], out=places[target])
    return [places[end] for end in ends]


@lru_cache(maxsize=256)
def _plan(
    comparators: tuple[Comparator, ...], count: int
) -> tuple[list[tuple[Callable[..., Tensor], int, int, int]], list[int], int]:
    """What to compute from which places into which: rows come first, then buffers; where each rank ends; and how many buffers that takes.

    The buffer that was used last is warmest, so it is used next.
    """
    wires, steps, free, used = list(range(count)), [], [], count
    for low, high, keep_low, keep_high in comparators:
        first, second = wires[low], wires[high]
        for keep, wire, exchange in ((keep_low, low, torch.minimum), (keep_high, high, torch.maximum)):
            if keep:
                used += not free
                wires[wire] = free.pop() if free else used - 1
                steps.append((exchange, first, second, wires[wire]))
        free.extend(place for place in (first, second) if place >= count)
    return steps, wires, used - count


def ordered_with_rows(rows: Sequence[Tensor], comparators: Sequence[Comparator]) -> list[tuple[Tensor, Tensor]]:
    """Values by rank, each with the index of its row as a number of the same dtype; ``comparators`` must keep all ranks.

    Args:
        rows: In float32 or float64, where all indices are exact.
        comparators: A network that sorts.
    """
    wires = [(row, torch.full_like(row, index)) for index, row in enumerate(rows)]
    for low, high, _, _ in comparators:
        (first, first_row), (second, second_row) = wires[low], wires[high]
        swap = torch.gt(
            first, second, out=torch.empty_like(first)
        )  # 0 or 1: with arithmetic, several times faster than `where`
        change = (second_row - first_row).mul_(swap)
        wires[low] = torch.minimum(first, second), first_row + change
        wires[high] = torch.maximum(first, second), second_row - change
    return wires
