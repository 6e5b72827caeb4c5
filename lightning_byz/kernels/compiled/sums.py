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
def square_sums(low, high, room, stack, width, origin, squares):
    """Squared distances of all rows from ``origin``, or their squared lengths if that is empty."""
    _, scratch, lines, lanes, _, narrow = room
    start = low
    while start < high:
        count = left(start, high, width)
        load_point(origin, start, count, narrow, lines[0])
        add_squares(stack, start, count, lines[0], scratch, lanes)
        if start + count == high or (start + count) % width == 0:
            add_lanes(lanes, squares[start // width])
        start += count


@Kernel
def weighted_row(low, high, room, stack, rows, factors, about, limit, out):
    """The sum of the given ``rows`` less ``about`` times ``factors``, plus ``about``, which may be empty."""
    _, scratch, lines, _, _, narrow = room
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
    """``matrix`` times the rows."""
    _, scratch, lines, _, _, _ = room
    n, start, tile = out.shape[0], low, lines[4:]
    while start < high:
        count = left(start, high, TILE)
        for row in range(n):
            values, wide = window(stack[0], row * stack[1] + start, count, scratch), tile[row]
            for column in range(count):
                wide[column] = values[column]
        for line in range(n):
            if line % 4 == 0 and line + 4 <= n:
                mix_four(tile, matrix[line : line + 4], lines)
            elif line >= n - n % 4:
                mix_one(tile, matrix[line], lines[line % 4])
            store(lines[line % 4], count, limit, out[line], start)
        start += count


def _mix_four(tile, matrix, lines):
    """Four lines at once, and four rows: each number that is read takes part in four products, each sum in four."""
    first, second, third, fourth = lines[0], lines[1], lines[2], lines[3]
    for column in range(TILE):
        first[column], second[column], third[column], fourth[column] = 0.0, 0.0, 0.0, 0.0
    row = 0
    while row + 4 <= tile.shape[0]:
        w, x, y, z = tile[row], tile[row + 1], tile[row + 2], tile[row + 3]
        a, b, c, d = matrix[0, row], matrix[0, row + 1], matrix[0, row + 2], matrix[0, row + 3]
        e, f, g, h = matrix[1, row], matrix[1, row + 1], matrix[1, row + 2], matrix[1, row + 3]
        i, j, k, m = matrix[2, row], matrix[2, row + 1], matrix[2, row + 2], matrix[2, row + 3]
        p, q, r, s = matrix[3, row], matrix[3, row + 1], matrix[3, row + 2], matrix[3, row + 3]
        for column in range(TILE):
            one, two, three, four = w[column], x[column], y[column], z[column]
            first[column] = first[column] + a * one + b * two + c * three + d * four
            second[column] = second[column] + e * one + f * two + g * three + h * four
            third[column] = third[column] + i * one + j * two + k * three + m * four
            fourth[column] = fourth[column] + p * one + q * two + r * three + s * four
        row += 4
    while row < tile.shape[0]:
        values = tile[row]
        a, b, c, d = matrix[0, row], matrix[1, row], matrix[2, row], matrix[3, row]
        for column in range(TILE):
            first[column] += a * values[column]
            second[column] += b * values[column]
            third[column] += c * values[column]
            fourth[column] += d * values[column]
        row += 1


def _mix_one(tile, factors, result):
    """What is left of the lines; rows in the same order."""
    for column in range(TILE):
        result[column] = 0.0
    for row in range(tile.shape[0]):
        values, factor = tile[row], factors[row]
        for column in range(TILE):
            result[column] += factor * values[column]


@Kernel
def majority_signs(low, high, room, stack, weights, balance, out):
    """The sign of the sum of weighted signs, zero where that is at most ``balance``."""
    _, scratch, lines, _, _, _ = room
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
def suspects(low, high, room, stack, largest, found):
    """Mark the rows in which any number is beyond ``largest``, or none."""
    for row in range(found.shape[0]):
        start = low
        while start < high:
            count = left(start, high, TILE)
            values, doubtful = window(stack[0], row * stack[1] + start, count, room[1]), False
            for column in range(count):
                doubtful |= not abs(values[column]) <= largest
            if doubtful:
                found[row] = True
            start += count


@Kernel
def cross_products(low, high, room, stack, width, origin, products):
    """Inner products of all rows less ``origin``, of each block its own."""
    _, scratch, lines, _, _, narrow = room
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
mix_four = numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})(inspect.unwrap(_mix_four))
mix_one = numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})(inspect.unwrap(_mix_one))
add_products = numba.njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})(
    inspect.unwrap(_add_products)
)
