"""Searches for the most compact subset of rows, on their n x n matrices."""

from collections.abc import Iterator
from itertools import combinations, islice

import torch
from jaxtyping import Float64
from torch import Tensor

_BATCH = 2**21  # numbers of Gram matrices at a time


def smallest_diameter(distances: Float64[Tensor, "n n"], count: int) -> list[int]:
    """``count`` rows whose largest distance is the smallest possible; among several such sets, one of rows near all others.

    Rows further apart than a diameter are in conflict, and a set of that diameter exists where taking out n - count rows resolves every conflict.
    The smallest diameter is found by bisection, with a branching search for the rows to take out: at most :math:`1.47^{n - count}` steps.
    """
    central = distances.sum(1).sort(stable=True).indices.tolist()
    table = distances[central][:, central].tolist()
    candidates = sorted({value for line in table for value in line})
    low, high = 0, len(candidates) - 1
    taken_out = 0
    while low <= high:
        middle = (low + high) // 2
        found = _resolve(_conflicts(table, candidates[middle]), (1 << len(table)) - 1, len(table) - count)
        if found is None:
            low = middle + 1
        else:
            high, taken_out = middle - 1, found
    return sorted([central[place] for place in range(len(table)) if not taken_out >> place & 1][:count])


def _conflicts(table: list[list[float]], diameter: float) -> list[int]:
    """For each row the others that are further away than ``diameter``, as bits."""
    return [sum(1 << place for place, value in enumerate(line) if value > diameter) for line in table]


def _resolve(conflicts: list[int], alive: int, budget: int) -> int | None:
    """The bits of at most ``budget`` rows of ``alive`` without which no conflict is left, or None."""
    taken = 0
    while True:
        degrees = [
            (conflicts[place] & alive).bit_count() if alive >> place & 1 else 0 for place in range(len(conflicts))
        ]
        most = max(degrees, default=0)
        if most == 0:
            return taken
        if budget <= 0 or sum(degrees) > 2 * budget * most:
            return None
        if 1 in degrees:  # the other end of a lone conflict resolves at least as much
            chosen = (conflicts[degrees.index(1)] & alive).bit_length() - 1
        elif (
            most == 2 or most > budget
        ):  # rings, of which any row will do; or more conflicts than may be resolved at their other ends
            chosen = degrees.index(most)
        else:
            break
        alive, taken, budget = alive & ~(1 << chosen), taken | 1 << chosen, budget - 1
    place = degrees.index(most)
    for out in (1 << place, conflicts[place] & alive):
        rest = _resolve(conflicts, alive & ~out, budget - out.bit_count())
        if rest is not None:
            return taken | out | rest
    return None


def smallest_spread(gram: Float64[Tensor, "n n"], count: int) -> list[int]:
    r"""``count`` rows with the smallest variance along their principal direction; of several such sets, the first.

    Every set is bounded from below by :math:`\operatorname{tr} A^2 / \operatorname{tr} A` of its Gram matrix :math:`A` about its mean; eigenvalues
    are computed in the order of the bounds until none can be smaller.
    """
    sets, bounds = [], []
    for batch in _batches(len(gram), count):
        scatter = _scatter(gram, batch)
        trace = scatter.diagonal(dim1=1, dim2=2).sum(1)
        bounds.append(torch.where(trace > 0, scatter.square().sum((1, 2)) / trace, 0.0))
        sets.append(batch)
    every, bound = torch.cat(sets), torch.cat(bounds)
    order = bound.sort(stable=True).indices
    best, found = float("inf"), 0
    step = max(_BATCH // (8 * count * count), 1)
    for start in range(0, len(order), step):
        some = order[start : start + step]
        if float(bound[some[0]]) > best * (1 + 1e-9):
            break
        values = torch.linalg.eigvalsh(_scatter(gram, every[some]))[:, -1]
        least = float(values.min())
        if least < best:
            best, found = least, int(some[values == least].min())
    return every[found].tolist()


def _scatter(gram: Tensor, sets: Tensor) -> Tensor:
    """The Gram matrix of each set about its mean."""
    own = gram[sets[:, :, None], sets[:, None, :]]
    lines = own.mean(2)
    return own - lines[:, :, None] - lines[:, None, :] + lines.mean(1)[:, None, None]


def _batches(total: int, count: int) -> Iterator[Tensor]:
    """All sets of ``count`` of ``total`` rows, in order, some at a time."""
    every = combinations(range(total), count)
    step = max(_BATCH // (count * count), 1)
    while some := list(islice(every, step)):
        yield torch.tensor(some)
