"""Short runs of coordinates of all rows, which stay in a core's first-level cache: how they get there, and how they are ordered.

A tile is always computed in full, which compilers like best; where fewer coordinates are left, what lies behind them is read by nobody.
"""

import inspect

import numba
import numpy as np
from numba.extending import overload

from lightning_byz.kernels.compiled.jit import part

TILE = 256
LANES = 64  # sums over coordinates go to so many places in turn, whatever the processor adds at a time


def load(source, start, count, out):
    """Copy ``count`` coordinates of ``source`` to ``out``. Half precision comes as its bits: bfloat16 in uint16, float16 in int16."""
    raise NotImplementedError  # there is one for each type below


@overload(load)
def _load(source, start, count, out):
    halves = {numba.uint16: _load_bfloat16, numba.int16: _load_float16}
    return inspect.unwrap(halves.get(source.dtype, _load_plain))


def _load_plain(source, start, count, out):
    here = source[start : start + count]
    for place in range(count):
        out[place] = here[place]


def _load_bfloat16(source, start, count, out):
    here, bits = source[start : start + count], out.view(np.uint32)
    for place in range(count):
        bits[place] = np.uint32(here[place]) << np.uint32(16)


def _load_float16(source, start, count, out):
    here, bits = source[start : start + count], out.view(np.int32)
    for place in range(count):
        half = np.int32(here[place])
        bits[place] = ((half & np.int32(-0x8000)) << np.int32(16)) | ((half & np.int32(0x7FFF)) << np.int32(13))
    for place in range(count):
        out[place] *= np.float32(2.0**112)  # as many more exponents has float32 below one


def window(source, start, count, scratch):
    """``count`` coordinates of ``source`` as numbers: where they are, or in ``scratch`` if they are of half precision."""
    raise NotImplementedError


@overload(window)
def _window(source, start, count, scratch):
    return inspect.unwrap(_window_of_halves if source.dtype in (numba.uint16, numba.int16) else _window_plain)


def _window_plain(source, start, count, scratch):
    return source[start : start + count]


def _window_of_halves(source, start, count, scratch):
    load(source, start, count, scratch)
    return scratch[:count]


@part
def store(values, count, limit, out, start):
    """Copy ``count`` of ``values`` to ``out``, none beyond ``limit``, and no negative zero."""
    here = out[start : start + count]
    for place in range(count):
        here[place] = min(max(values[place], -limit), limit)
    for place in range(count):
        here[place] += 0  # what was rounded to zero, too


@part
def clear(values):
    """Set ``TILE`` numbers to zero."""
    for place in range(TILE):
        values[place] = 0.0


@part
def load_rows(stack, rows, start, count, tile):
    """Copy ``count`` coordinates of some rows to ``tile``."""
    for place in range(rows.shape[0]):
        load(stack[0], rows[place] * stack[1] + start, count, tile[place])


@part
def doubt(tile, largest, doubts):
    """Mark the rows of ``tile`` that hold a number beyond ``largest``, or none, unless nobody asks: another row may have held it before."""
    for row in range(doubts.shape[0]):
        values, doubtful = tile[row], False
        for place in range(TILE):
            doubtful |= not abs(values[place]) <= largest
        if doubtful:
            doubts[row] = True


@part
def exchange(tile, comparators):
    """Let each of ``comparators`` (two rows, and whether the smaller and the larger value are kept) order its two rows of ``tile``."""
    for step in range(comparators.shape[0]):
        low, high = tile[comparators[step, 0]], tile[comparators[step, 1]]
        if comparators[step, 2] and comparators[step, 3]:
            for place in range(TILE):
                first, second = low[place], high[place]
                low[place] = first if first < second else second
                high[place] = second if first < second else first
        elif comparators[step, 2]:
            for place in range(TILE):
                first, second = low[place], high[place]
                low[place] = first if first < second else second
        else:
            for place in range(TILE):
                first, second = low[place], high[place]
                high[place] = second if first < second else first


@part
def exchange_with_rows(tile, rows, comparators):
    """The same of values that take their row along; of equal values the lower row comes first."""
    for step in range(comparators.shape[0]):
        low, high = tile[comparators[step, 0]], tile[comparators[step, 1]]
        low_row, high_row = rows[comparators[step, 0]], rows[comparators[step, 1]]
        for place in range(TILE):
            first, second, own, other = low[place], high[place], low_row[place], high_row[place]
            swap = (first > second) | ((first == second) & (own > other))
            low[place] = second if swap else first
            high[place] = first if swap else second
            low_row[place] = other if swap else own
            high_row[place] = own if swap else other


@part
def add_squares(stack, start, count, point, scratch, lanes):
    """Add to each row's ``lanes`` its squared distances from ``point``, of ``count`` coordinates from ``start`` on."""
    for row in range(lanes.shape[0]):
        every, own = window(stack[0], row * stack[1] + start, count, scratch), lanes[row]
        first = 0
        while first < count:
            values, about = every[first : first + LANES], point[first : first + LANES]
            for lane in range(min(LANES, count - first)):
                difference = np.float64(values[lane]) - about[lane]
                own[lane] += difference * difference
            first += LANES


@part
def add_lanes(lanes, out):
    """Sum each row's ``lanes`` in their order, and empty them."""
    for row in range(lanes.shape[0]):
        total = 0.0
        for lane in range(LANES):
            total += lanes[row, lane]
            lanes[row, lane] = 0.0
        out[row] = total


@part
def left(start, high, width):
    """How many coordinates from ``start`` on lie in one tile and one block."""
    return min(TILE, high - start, width - start % width)


@part
def finish(values, stack, start, high, width, limit, out, squares, scratch, lanes):
    """Store ``values``, add the squared distances of all rows from what was stored if somebody asks for them, and say where to go on."""
    count = left(start, high, width)
    store(values, count, limit, out, start)
    if squares.shape[1]:
        load(out, start, count, values)
        add_squares(stack, start, count, values, scratch, lanes)
        if start + count == high or (start + count) % width == 0:
            add_lanes(lanes, squares[start // width])
    return start + count
