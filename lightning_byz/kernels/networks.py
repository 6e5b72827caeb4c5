"""Sorting networks: fixed sequences of compare-and-exchange that order n values whatever they are.

Batcher's odd-even merge gives the whole network; walking it backwards from the ranks somebody reads drops every comparator, and every half of one,
that nobody reads. Ranks that are only summed with the same factor may be left in any order among themselves, which drops more.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

_UNREAD, _OWN = 0, -1


class Comparator(NamedTuple):
    """Puts the smaller of two wires on ``low`` and the larger on ``high``; a half that nobody reads is not computed."""

    low: int
    high: int
    keep_low: bool = True
    keep_high: bool = True


def _odd_even_merge_sort(count: int) -> list[tuple[int, int]]:
    """All comparators for ``count`` wires: runs of length 1, 2, 4, ... are merged, odd and even places separately."""
    pairs = []
    run = 1
    while run < count:
        step = run
        while step >= 1:
            for start in range(step % run, count - step, 2 * step):
                for wire in range(start, min(start + step, count - step)):
                    if wire // (2 * run) == (wire + step) // (2 * run):
                        pairs.append((wire, wire + step))
            step //= 2
        run *= 2
    return pairs


@lru_cache(maxsize=256)
def network(groups: tuple[int, ...]) -> tuple[Comparator, ...]:
    """The comparators that bring n values to the ranks that are read.

    Args:
        groups: For each rank, smallest first: 0 if it is not read, else a positive number; ranks with the same number come out in any order among
            themselves. ``(1, 2, ..., n)`` sorts; ``(0, 0, 1, 0, 0)`` is the median of five.

    References:
        Batcher. Sorting networks and their applications. AFIPS 1968.

    Example:
        >>> len(network((1, 2, 3, 4, 5))), len(network((0, 0, 1, 0, 0))), len(network((1, 1, 1, 1, 1)))
        (9, 8, 0)
    """
    wires = list(groups)
    kept: list[Comparator] = []
    for low, high in reversed(_odd_even_merge_sort(len(groups))):
        if wires[low] == wires[high] != _OWN:
            continue
        kept.append(Comparator(low, high, wires[low] != _UNREAD, wires[high] != _UNREAD))
        wires[low] = wires[high] = _OWN
    return tuple(reversed(kept))


def groups_of(shares: Sequence[float]) -> tuple[int, ...]:
    """Number the ranks by their share: 0 where it is zero, the same number where it is the same."""
    distinct = sorted({share for share in shares if share > 0})
    return tuple(distinct.index(share) + 1 if share > 0 else _UNREAD for share in shares)
