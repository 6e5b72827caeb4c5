"""Sums over rows and over coordinates, in float64. Arguments are those of ranks.py."""

import inspect

import numba

from lightning_byz.kernels.compiled.jit import Kernel, part
from lightning_byz.kernels.compiled.tiles import TILE, add_lanes, add_squares, clear, left, load, store, window


@part
def load_point(point, start, count, narrow, out):
    """Copy ``count`` coordinates of ``point`` to ``out`` in float64; nothing if it is empty."""
    if point.shape[0]:
        load(point, start, count, narrow)
        for place in range(TILE):
            out[place] = narrow[place]


@Kernel
def square_sums(low, high, room, stack, width, origin, narrow, squares):
    """Squared distances of all rows from ``origin``, or their squared lengths if that is empty. ``narrow`` is of the type to compute it in."""
    _, scratch, lines, lanes, _ = room
    start = low
    while start < high:
        count = left(start, high, width)
        load_point(origin, start, count, narrow, lines[0])
        add_squares(stack, start, count, lines[0], scratch, lanes)
        if start + count == high or (start + count) % width == 0:
            add_lanes(lanes, squares[start // width])
        start += count


@Kernel
def weighted_row(low, high, room, stack, rows, factors, about, narrow, limit, out):
    """The sum of the given ``rows`` less ``about`` times ``factors``, plus ``about``, which may be empty."""
    _, scratch, lines, _, _ = room
    point, result = lines[0], lines[1]
    start = low
    while start < high:
        count = left(start, high, TILE)
        load_point(about, start, count, narrow, point)
        clear(result)
        for place in range(rows.shape[0]):
            values, factor = window(stack[0], rows[place] * stack[1] + start, count, scratch), factors[place]
            for column in range(count):
                result[column] += factor * (values[column] - point[column])
        for column in range(TILE):
            result[column] += point[column]
        store(result, count, limit, out, start)
        start += count


@Kernel
def mixed_rows(low, high, room, stack, matrix, limit, out):
    """``matrix`` times the rows; its lines go on with zeros up to a multiple of four."""
    _, scratch, lines, _, _ = room
    first, second, tile = lines[0], lines[1], lines[2:]
    n, start = out.shape[0], low
    while start < high:
        count = left(start, high, TILE)
        for row in range(n):
            values, wide = window(stack[0], row * stack[1] + start, count, scratch), tile[row]
            for column in range(count):
                wide[column] = values[column]
        for line in range(0, n, 2):
            other = min(line + 1, n - 1)
            mix_two(tile, matrix[line], matrix[other], first, second)
            store(first, count, limit, out[line], start)
            store(second, count, limit, out[other], start)
        start += count


def _mix_two(tile, one, two, first, second):
    """Two lines at once, and four rows: each number that is read takes part in two products, each sum in four."""
    for column in range(TILE):
        first[column], second[column] = 0.0, 0.0
    for row in range(0, tile.shape[0], 4):
        a, b, c, d = tile[row], tile[row + 1], tile[row + 2], tile[row + 3]
        p, q, r, s = one[row], one[row + 1], one[row + 2], one[row + 3]
        t, u, v, w = two[row], two[row + 1], two[row + 2], two[row + 3]
        for column in range(TILE):
            first[column] = first[column] + p * a[column] + q * b[column] + r * c[column] + s * d[column]
            second[column] = second[column] + t * a[column] + u * b[column] + v * c[column] + w * d[column]


@Kernel
def majority_signs(low, high, room, stack, weights, balance, out):
    """The sign of the sum of weighted signs, zero where that is at most ``balance``."""
    _, scratch, lines, _, _ = room
    votes = lines[0]
    start = low
    while start < high:
        count = left(start, high, TILE)
        clear(votes)
        for row in range(weights.shape[0]):
            values, weight = window(stack[0], row * stack[1] + start, count, scratch), weights[row]
            for column in range(count):
                votes[column] += (weight if values[column] > 0 else 0.0) - (weight if values[column] < 0 else 0.0)
        here = out[start : start + count]
        for column in range(count):
            here[column] = (1.0 if votes[column] > balance else 0.0) - (1.0 if votes[column] < -balance else 0.0)
        start += count


@Kernel
def suspects(low, high, room, bits, stride, limit, found):
    """Mark the rows in which the bits of any number, but for its sign, are above ``limit``: a number of their type, in an array."""
    for row in range(found.shape[0]):
        here, largest = bits[row * stride + low : row * stride + high], limit[0]
        for column in range(here.shape[0]):
            largest = max(largest, here[column] & limit[1])
        if largest > limit[0]:
            found[row] = True


@Kernel
def cross_products(low, high, room, stack, width, origin, narrow, products):
    """Inner products of all rows less ``origin``, of each block its own."""
    _, scratch, lines, _, _ = room
    point, tile = lines[0], lines[1:]
    n, start = products.shape[1], low
    while start < high:
        count, own = left(start, high, width), products[start // width]
        load_point(origin, start, count, narrow, point)
        for row in range(n):
            values, wide = window(stack[0], row * stack[1] + start, count, scratch), tile[row]
            for column in range(count):
                wide[column] = values[column] - point[column]
            for column in range(count, TILE):
                wide[column] = 0.0
        add_products(tile, own)
        if start + count == high or (start + count) % width == 0:
            for row in range(n):
                for other in range(row):
                    own[other, row] = own[row, other]
        start += count


def _add_products(tile, out):
    """Add the inner products of the rows of ``tile`` two by two: each number that is read takes part in two of them."""
    n = tile.shape[0]
    for row in range(0, n, 2):
        next_row = min(row + 1, n - 1)
        one, two = tile[row], tile[next_row]
        for other in range(0, row + 1, 2):
            next_other = min(other + 1, n - 1)
            three, four = tile[other], tile[next_other]
            a, b, c, d = 0.0, 0.0, 0.0, 0.0
            for column in range(TILE):
                a += one[column] * three[column]
                b += one[column] * four[column]
                c += two[column] * three[column]
                d += two[column] * four[column]
            out[row, other] += a
            if next_other > other:
                out[row, next_other] += b
            if next_row > row:
                out[next_row, other] += c
            if next_row > row and next_other > other:
                out[next_row, next_other] += d


# sums of products may be rounded once, and inner products added up as suits the processor: partial sums travel, so that ranks agree nevertheless
mix_two = numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})(inspect.unwrap(_mix_two))
add_products = numba.njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})(
    inspect.unwrap(_add_products)
)
