"""Statistics of rows whose weights differ: of each coordinate's values, each with its row, laid end to end in the order of the values.

Arguments are those of ranks.py, and ``weights``, of the rows that count.
"""

import numpy as np

from lightning_byz.kernels.compiled.jit import Kernel, part
from lightning_byz.kernels.compiled.tiles import LANES, TILE, clear, doubt, exchange_with_rows, finish, left, load_rows


@part
def line(stack, rows, start, count, comparators, tile, places):
    """Values by rank, and the place of each one's row among ``rows``."""
    load_rows(stack, rows, start, count, tile)
    doubt(tile, stack[2], stack[3])
    for place in range(rows.shape[0]):
        own = places[place]
        for column in range(TILE):
            own[column] = place
    exchange_with_rows(tile, places, comparators)


@part
def middle(tile, places, weights, limits, last, out):
    """The weighted median: the mean of the last values, up to the rank ``last``, whose weights start at or below each of two ``limits``."""
    for column in range(TILE):
        lower, start = 0, weights[places[0, column]]
        while lower < last and start <= limits[0]:
            lower += 1
            start += weights[places[lower, column]]
        upper = lower
        while upper < last and start <= limits[1]:
            upper += 1
            start += weights[places[upper, column]]
        out[column] = (np.float64(tile[lower, column]) + np.float64(tile[upper, column])) / 2 + 0.0


@part
def look_up(weights, places, first, last, out):
    """The weights of ``LANES`` columns up to the rank ``last``, column by column: along the rows compilers would gather, which is slow."""
    for column in range(LANES):
        for rank in range(last + 1):
            out[rank, column] = weights[places[rank, first + column]]


@Kernel
def weighted_median(low, high, room, stack, width, rows, comparators, weights, limits, last, limit, out, squares):
    """The weighted median. ``limits`` are half of the weight, less and more its tolerance; it is not above the rank ``last``."""
    tile, scratch, lines, lanes, places, _ = room
    start = low
    while start < high:
        line(stack, rows, start, left(start, high, width), comparators, tile, places)
        middle(tile, places, weights, limits, last, lines[0])
        start = finish(lines[0], stack, start, high, width, limit, out, squares, scratch, lanes)


@Kernel
def weighted_trimmed_mean(low, high, room, stack, width, rows, comparators, weights, kept, ranks, limit, out, squares):
    """The mean of what lies between two ends of the line, which is of ``ranks`` from the first to the last.

    ``kept`` are these ends, and the share of a row and the absolute weight below which what is kept of it is rounding.
    """
    tile, scratch, lines, lanes, places, _ = room
    result, total, begins, masses = lines[0], lines[1], lines[2], lines[3:]
    first, last, sliver, grain = kept
    lowest, highest = ranks
    start = low
    while start < high:
        line(stack, rows, start, left(start, high, width), comparators, tile, places)
        clear(result)
        clear(total)
        clear(begins)
        for run in range(0, TILE, LANES):
            look_up(weights, places, run, highest, masses)
            sums, shares, ends = result[run : run + LANES], total[run : run + LANES], begins[run : run + LANES]
            for rank in range(lowest):
                own = masses[rank]
                for column in range(LANES):
                    ends[column] += own[column]
            for rank in range(lowest, highest + 1):
                values, own = tile[rank][run : run + LANES], masses[rank]
                for column in range(LANES):
                    weight, begin = own[column], ends[column]
                    share = max(min(begin + weight, last) - max(begin, first), 0.0)
                    share = share if share >= max(sliver * weight, grain) else 0.0
                    sums[column] += share * values[column]
                    shares[column] += share
                    ends[column] = begin + weight
        for column in range(TILE):
            result[column] /= total[column]
        start = finish(result, stack, start, high, width, limit, out, squares, scratch, lanes)


@Kernel
def weighted_mean_around_median(
    low, high, room, stack, width, rows, comparators, weights, limits, kept, last, limit, out, squares
):
    """The mean of the weight nearest to the weighted median, every two values compared.

    ``kept`` are how much weight is, and the share of a row and the absolute weight below which what is kept of it is rounding.
    """
    tile, scratch, lines, lanes, places, _ = room
    n, (budget, sliver, grain) = rows.shape[0], kept
    centre, total, result, distances, nearer = lines[0], lines[1], lines[2], lines[3 : 3 + n], lines[3 + n :]
    start = low
    while start < high:
        line(stack, rows, start, left(start, high, width), comparators, tile, places)
        middle(tile, places, weights, limits, last, centre)
        load_rows(stack, rows, start, left(start, high, width), tile)
        for row in range(n):
            clear(nearer[row])
            values, far = tile[row], distances[row]
            for column in range(TILE):
                far[column] = abs(values[column] - centre[column])
        for second in range(n):
            for first in range(second):
                count_nearer(tile, distances, nearer, first, second, weights)
        clear(total)
        clear(result)
        for row in range(n):
            values, before, weight = tile[row], nearer[row], weights[row]
            for column in range(TILE):
                share = min(max(budget - before[column], 0.0), weight)
                share = share if share >= max(sliver * weight, grain) else 0.0
                result[column] += share * values[column]
                total[column] += share
        for column in range(TILE):
            result[column] /= total[column]
        start = finish(result, stack, start, high, width, limit, out, squares, scratch, lanes)


@part
def count_nearer(tile, distances, nearer, first, second, weights):
    """Add each one's weight to what is nearer than the other: of equally near ones the lower value is, and then the first."""
    one, other, far, further = tile[first], tile[second], distances[first], distances[second]
    to_one, to_other, weight, weight_of_other = nearer[first], nearer[second], weights[first], weights[second]
    for column in range(TILE):
        same = (far[column] == further[column]) & (one[column] <= other[column])
        before = (far[column] < further[column]) | same
        to_other[column] += weight if before else 0.0
        to_one[column] += 0.0 if before else weight_of_other
