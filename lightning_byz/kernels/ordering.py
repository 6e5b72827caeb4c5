"""The values of a chunk of coordinates by rank, many coordinates at once, without writing to the rows.

A sorting network does this, and of very many rows, where it would cost more, a sort of each coordinate. Which of the two depends on the number of
rows alone; the values of a rank are the same.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lightning_byz.kernels.networks import MOST, Comparator, network
from lightning_byz.threads import spread

Chunks = Iterable[tuple[int, int]]

_CHUNK = 16384  # rows of this many coordinates, n of them, stay in a core's second-level cache
_SHARED = 3  # so many times more where threads take turns at Python's lock, so that they meet there less often; below 2 they gain nothing
_DEVICE_CHUNK = 2**22
_NETWORK = MOST
_SORTED, _DEVICE_SORTED = 2**20, 2**26  # numbers to sort at a time


class Room:
    """Memory that one chunk after another uses: under the same name the same, as long as chunks are equally long."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def empty(self, name: str, *shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor with whatever was left in it."""
        if name not in self._held or self._held[name].shape != shape:
            self._held[name] = torch.empty(shape, dtype=dtype, device=device)
        return self._held[name]


def by_network(rows: Sequence[int]) -> bool:
    """Whether ``rows`` are few enough for a network."""
    return len(rows) <= _NETWORK


def on_chunks(work: Callable[[Chunks], None], vectors: Tensor, count: int, *, part: int = 1) -> None:
    """Call ``work`` for chunks of coordinates to order ``count`` rows of, all chunks of a thread in few calls; the result must not depend on them.

    Args:
        work: Goes through the ``(low, high)`` of the chunks that it is given, with buffers of its own.
        vectors: Whose coordinates they are.
        count: How many of its rows.
        part: What part of the usual length a chunk has, since each coordinate takes so many times the room.
    """
    length, threads = vectors.shape[1], torch.get_num_threads()
    if vectors.device.type != "cpu":
        work(chunks(0, length, max(_DEVICE_SORTED // count, 1) if count > _NETWORK else _DEVICE_CHUNK // part))
        return
    step = max(_SORTED // count, 1) if count > _NETWORK else _CHUNK // part
    grain = step if count > _NETWORK else 2 * step
    if threads > 1 and length >= 2 * grain and count <= _NETWORK:
        shares = threads * max(round(length / (threads * _SHARED * step)), 1)
        step = grain = max(-(-length // (64 * shares)) * 64, grain)
    spread(lambda low, high: work(chunks(low, high, step)), length, grain)


def chunks(low: int, high: int, step: int) -> Iterator[tuple[int, int]]:
    """``(low, high)`` of runs of up to ``step`` coordinates."""
    return ((start, min(start + step, high)) for start in range(low, high, step))


def ranked(
    vectors: Tensor, rows: Sequence[int], groups: tuple[int, ...], places: Chunks
) -> Iterator[tuple[int, int, Sequence[Tensor]]]:
    """Where each chunk of coordinates begins and ends, and the values of ``rows`` there by rank, as far as ``groups`` tells ranks apart.

    They are valid until the next chunk.
    """
    comparators, buffers = network(groups) if by_network(rows) else (), []
    for low, high in places:
        if by_network(rows):
            whole = vectors[:, low:high].unbind()
            yield low, high, ordered([whole[row] for row in rows], comparators, buffers)
        else:
            yield low, high, vectors[rows, low:high].sort(dim=0).values.unbind()


def ordered(
    rows: Sequence[Tensor], comparators: tuple[Comparator, ...], buffers: list[Tensor], *, kept: bool = True
) -> list[Tensor]:
    """Values by rank where ``comparators`` keep the rank, elsewhere whatever was left.

    Args:
        rows: One chunk of each row.
        comparators: The network.
        buffers: Memory to use, which comes back longer for the next call; until then the result may lie in it.
        kept: Whether nothing may be written to ``rows``.
    """
    steps, ends, needed = _plan(comparators, len(rows), kept)
    if buffers and buffers[0].shape != rows[0].shape:
        buffers.clear()
    buffers.extend(torch.empty_like(rows[0]) for _ in range(needed - len(buffers)))
    places = [*rows, *buffers]
    for exchange, first, second, target in steps:
        exchange(places[first], places[second], out=places[target])
    return [places[end] for end in ends]


@lru_cache(maxsize=256)
def _plan(
    comparators: tuple[Comparator, ...], count: int, kept: bool
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
        free.extend(place for place in (first, second) if place >= count or not kept)
    return steps, wires, used - count
