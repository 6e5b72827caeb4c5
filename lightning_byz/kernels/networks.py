"""Sorting networks: fixed sequences of compare-and-exchange that order n values whatever they are.

Batcher's odd-even merge, of runs that need not be equally long, gives the whole network; walking it backwards from the ranks somebody reads drops
every comparator, and every half of one, that nobody reads. Ranks that are only summed with the same factor may be left in any order among themselves,
which drops more.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import chain
from typing import NamedTuple

MOST = 256
"""Rows that networks order; more are sorted."""

_UNREAD, _OWN = 0, -1
_SEARCHED = 256  # wires, up to which all ways to split them are tried


class Comparator(NamedTuple):
    """Puts the smaller of two wires on ``low`` and the larger on ``high``; a half that nobody reads is not computed."""

    low: int
    high: int
    keep_low: bool = True
    keep_high: bool = True


def _merged(first: Sequence[int], second: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """The comparators that merge two sorted runs of wires, and the wires in their new order."""
    if not first or not second:
        return [*first, *second], []
    if len(first) == len(second) == 1:
        return [*first, *second], [(first[0], second[0])]
    evens, pairs = _merged(first[::2], second[::2])
    odds, more = _merged(first[1::2], second[1::2])
    last = list(zip(odds, evens[1:], strict=False))
    left = [*odds[len(last) :], *evens[1 + len(last) :]]
    return [evens[0], *chain.from_iterable(last), *left], [*pairs, *more, *last]


@cache
def _merging(first: int, second: int) -> int:
    """How many comparators merge runs of these lengths."""
    if first * second < 2:
        return first * second
    evens, odds = (first + 1) // 2 + (second + 1) // 2, first // 2 + second // 2
    return _merging((first + 1) // 2, (second + 1) // 2) + _merging(first // 2, second // 2) + min(odds, evens - 1)


@cache
def _cheapest(count: int) -> tuple[int, int]:
    """The fewest comparators for ``count`` wires, and the length of the first run that takes so many; for very many, halves are good enough."""
    lengths = range(1, count // 2 + 1) if count <= _SEARCHED else [count // 2]
    costs = [
        (_cheapest(length)[0] + _cheapest(count - length)[0] + _merging(length, count - length), length)
        for length in lengths
    ]
    return min(costs, default=(0, 0))


def _sorted(wires: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """The comparators that sort ``wires``, and the wires in their order."""
    if len(wires) < 2:
        return list(wires), []
    for count in range(min(len(wires), _SEARCHED)):  # from below, or the search would recurse once per wire
        _cheapest(count)
    length = _cheapest(len(wires))[1]
    (first, pairs), (second, more) = _sorted(wires[:length]), _sorted(wires[length:])
    order, last = _merged(first, second)
    return order, [*pairs, *more, *last]


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
    order, pairs = _sorted(range(len(groups)))
    rank = {
        wire: place for place, wire in enumerate(order)
    }  # wires may be named after where they end: what they start with is anything
    for first, second in reversed(pairs):
        low, high = rank[first], rank[second]
        if wires[low] == wires[high] != _OWN:
            continue
        kept.append(Comparator(low, high, wires[low] != _UNREAD, wires[high] != _UNREAD))
        wires[low] = wires[high] = _OWN
    return tuple(reversed(kept))


def groups_of(shares: Sequence[float]) -> tuple[int, ...]:
    """Number the ranks by their share: 0 where it is zero, the same number where it is the same."""
    distinct = sorted({share for share in shares if share > 0})
    return tuple(distinct.index(share) + 1 if share > 0 else _UNREAD for share in shares)


def up_to(last: int, count: int) -> tuple[int, ...]:
    """The groups that order ``count`` values up to the rank ``last``."""
    return tuple(rank + 1 if rank <= last else _UNREAD for rank in range(count))
