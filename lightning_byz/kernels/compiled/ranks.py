"""Statistics of rows that weigh alike: of each coordinate's values by rank.

Arguments of all kernels here and in lines.py: ``low`` and ``high``, the first coordinate and one past the last; ``room`` to work in; ``stack``, all
rows one after the other, how far it is from one to the next, the largest number that is usable, and where to mark rows with others, or nothing;
``width`` of a block; the ``rows`` that count; ``comparators`` of the network;
``limit``, the largest number that ``out``, the result, can hold; ``squares``, a line of each row's squared distance from the result per block, or
empty.
"""

from lightning_byz.kernels.compiled.jit import Kernel, part
from lightning_byz.kernels.compiled.tiles import TILE, clear, doubt, exchange, finish, left, load_rows


@Kernel
def rank_average(low, high, room, stack, width, rows, comparators, groups, limit, out, squares):
    """The average of the values at some ranks.

    ``groups`` are the ranks of one group after the other, where each group ends, the share of each of its ranks, and the sum of the shares.
    """
    tile, scratch, lines, lanes, _, _ = room
    members, ends, shares, total = groups
    average, group = lines[0], lines[1]
    start = low
    while start < high:
        load_rows(stack, rows, start, left(start, high, width), tile)
        doubt(tile, stack[2], stack[3])
        exchange(tile, comparators)
        clear(average)
        member = 0
        for index in range(ends.shape[0]):
            clear(group)
            while member + 2 <= ends[index]:
                values, others = tile[members[member]], tile[members[member + 1]]
                for place in range(TILE):
                    group[place] = group[place] + values[place] + others[place]
                member += 2
            while member < ends[index]:
                values = tile[members[member]]
                for place in range(TILE):
                    group[place] += values[place]
                member += 1
            for place in range(TILE):
                average[place] += group[place] * shares[index]
        for place in range(TILE):
            average[place] /= total
        start = finish(average, stack, start, high, width, limit, out, squares, scratch, lanes)


@Kernel
def mean_around_median(low, high, room, stack, width, rows, comparators, kept, limit, out, squares):
    """The mean of the values nearest to the median.

    ``kept`` is how many are kept, the part of the next one that is, and one quarter and one half in the type to compute in.
    """
    tile, scratch, lines, lanes, marks, _ = room
    nearest, rest, parts = kept
    n, total, more = rows.shape[0], lines[0], lines[1]
    start = low
    while start < high:
        load_rows(stack, rows, start, left(start, high, width), tile)
        doubt(tile, stack[2], stack[3])
        exchange(tile, comparators)
        lower, upper = tile[(n - 1) // 2], tile[n // 2]
        for place in range(TILE):
            scratch[place] = lower[place] * parts[0] + upper[place] * parts[0]
        nearest_sum(tile, scratch, nearest, parts, marks, total)
        if rest > 0.0:
            nearest_sum(tile, scratch, nearest + 1, parts, marks, more)
            for place in range(TILE):
                total[place] = total[place] * (1 - rest) + more[place] * rest
        for place in range(TILE):
            total[place] /= nearest + rest
        start = finish(total, stack, start, high, width, limit, out, squares, scratch, lanes)


@part
def nearest_sum(tile, half, count, parts, marks, total):
    """The sum of the ``count`` values nearest to the median, whose half is given, of values by rank: kernels.around explains how."""
    spare = tile.shape[0] - count
    for rank in range(spare):
        lower, upper, gains = tile[rank], tile[rank + count], marks[rank]
        for place in range(TILE):
            gains[place] = half[place] - lower[place] * parts[1] > upper[place] * parts[1] - half[place]
    clear(total)
    for rank in range(tile.shape[0]):
        values = tile[rank]
        if rank >= count and rank < spare:
            gains, losses = marks[rank - count], marks[rank]
            for place in range(TILE):
                total[place] += values[place] if gains[place] and not losses[place] else 0.0
        elif rank >= count:
            gains = marks[rank - count]
            for place in range(TILE):
                total[place] += values[place] if gains[place] else 0.0
        elif rank < spare:
            losses = marks[rank]
            for place in range(TILE):
                total[place] += 0.0 if losses[place] else values[place]
        else:
            for place in range(TILE):
                total[place] += values[place]
