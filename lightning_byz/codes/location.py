"""Which rows of a group lie, found on the projections of its rows: Berlekamp and Welch, then every row that fits."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import comb

import torch
from torch import Tensor

from lightning_byz.codes.generators import Polynomials

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
"""How far a projection may be from where the others say it is, relative to the group's scale, by the dtype of the rows."""

_BEYOND = 2.0**20  # no honest row is so much larger than the (s + 1)-th largest
_ROUNDING = 0.1  # of the tolerance, which rows that are alike but for rounding do not need; tried first, for the sake of small lies
_TRIED = 5000  # sets of rows that are tried one by one where Berlekamp and Welch see too little


def liars_of(projections: Tensor, code: Polynomials, s: int, tolerance: float) -> list[int] | None:
    """Return which rows do not fit what the others say; ``None`` where more than ``s`` do not, whichever of them are believed.

    Args:
        projections: A line per row of the group, float64 or complex128; erased where they are not finite.
        code: What the rows are words of.
        s: How many liars there are at most.
        tolerance: How far rounding may take a row that does not lie.

    """
    rows = len(projections)
    sizes = projections.abs().amax(1)
    erased = ~sizes.isfinite()
    scale = float(torch.where(erased, torch.inf, sizes).sort(descending=True).values[s])
    if scale == float("inf"):
        return None
    erased |= sizes > _BEYOND * scale
    if scale == 0:
        return erased.nonzero().flatten().tolist()
    scaled = torch.where(erased[:, None], 0.0, projections) / scale
    alive = [row for row in range(rows) if not erased[row]]
    for believed, strict in _tried(scaled, code, alive, rows - s):
        fitting = _fitting(scaled, code, alive, believed, tolerance, strict)
        if fitting is not None:
            return [row for row in range(rows) if row not in fitting]
    return None


def _tried(values: Tensor, code: Polynomials, alive: Sequence[int], believed: int) -> Iterator[tuple[list[int], float]]:
    """Yield sets of rows that may be honest, and which part of the tolerance they are to fit each other by."""
    left = []
    for rows in _left(values, code, alive, believed):
        left.append(rows)
        yield rows, _ROUNDING
    for rows in left:
        yield rows, 1.0
    if comb(len(alive), believed) <= _TRIED:
        for rows in combinations(alive, believed):
            yield [*rows], 1.0


def _left(values: Tensor, code: Polynomials, alive: Sequence[int], believed: int) -> Iterator[list[int]]:
    """Yield the rows that the locator of errors leaves, then those that it leaves where its surest liar is erased, and so on."""
    left = list(alive)
    if len(left) == believed:
        yield left
    while len(left) > believed:
        order = _located(values, code, left, len(left) - believed)
        yield [left[place] for place in order[len(left) - believed :]]
        left.pop(order[0])


def _located(values: Tensor, code: Polynomials, rows: Sequence[int], errors: int) -> list[int]:
    """Return the places of ``rows`` in the order of what the locator is there: near zero where a row lies.

    The locator E of degree ``errors`` at most, and Q of as much more than a word, satisfy ``Q(x) = y E(x)`` at each row and column; Q is eliminated.
    """
    span = code.values[rows, : code.dimension + errors]
    outside = torch.linalg.qr(span, mode="complete").Q[:, span.shape[1] :].mH
    locators = code.locators[rows, : errors + 1]
    equations = torch.cat([outside @ (column[:, None] * locators) for column in values[rows].unbind(1)])
    locator = torch.linalg.svd(equations, full_matrices=True).Vh[-1].conj()
    return (locators @ locator).abs().argsort(stable=True).tolist()


def _fitting(
    values: Tensor, code: Polynomials, alive: Sequence[int], believed: Sequence[int], tolerance: float, strict: float
) -> set[int] | None:
    """Return all rows that fit what the believed ones say; ``None`` if these do not fit each other so strictly."""
    predict = code.generator @ code.solved(believed)
    apart = (values - predict @ values[believed]).abs().amax(1)
    if not bool((apart[believed] <= strict * tolerance).all()):
        return None
    gains = torch.linalg.vector_norm(predict, dim=1)  # of the rounding of the believed ones
    allowed = tolerance * gains.clamp(min=1.0)
    return {row for row in alive if bool(apart[row] <= allowed[row])} | set(believed)
