"""Runs a sorting network on the rows of a chunk of coordinates, many coordinates at once, without writing to the rows."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lightning_byz.kernels.networks import Comparator

_CHUNK = 16384  # rows of this many coordinates, n of them, stay in a core's second-level cache
_SHARED = 3  # so many times more per thread, where several threads share the work: below that waiting for each other costs more than it saves
_DEVICE_CHUNK = 2**22


def chunks(vectors: Tensor) -> Iterator[tuple[int, int]]:
    """``(low, high)`` of runs of coordinates to order at a time; the result does not depend on where they end."""
    length, threads = vectors.shape[1], torch.get_num_threads()
    step = _DEVICE_CHUNK if vectors.device.type != "cpu" else _CHUNK if threads == 1 else _SHARED * threads * _CHUNK
    return ((low, min(low + step, length)) for low in range(0, length, step))


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
