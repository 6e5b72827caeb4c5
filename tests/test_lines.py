"""Order statistics to the bit, against plain loops: ties go to the lower row, products are rounded before they are added, and no zero is negative."""

import math
from collections.abc import Sequence

import pytest
import torch

from lightning_byz.blocks import Blocks
from lightning_byz.facts import total_of
from lightning_byz.kernels import (
    SLIVER,
    coordinate_median,
    majority_signs,
    mean_around_median,
    ordering,
    saturate,
    trimmed_mean,
)
from lightning_byz.kernels.lines import line
from lightning_byz.kernels.ordering import Room
from tests.test_kernels import DTYPES, bits, many

TOLERANCE, GRAIN = 1e-9, 2.0**-45


def in_order(column: Sequence[float]) -> list[int]:
    """The rows by value, and of equal values the lower one first."""
    return sorted(range(len(column)), key=lambda row: (column[row], row))


def median(column: Sequence[float], weights: Sequence[float]) -> float:
    half, start, lower, upper = total_of(weights) / 2, 0.0, 0.0, 0.0
    for row in in_order(column):
        if start <= half * (1 - TOLERANCE):
            lower = column[row]
        if start <= half * (1 + TOLERANCE):
            upper = column[row]
        start += weights[row]
    return (lower + upper) / 2


def without_slivers(share: float, weight: float, total: float) -> float:
    return share if share >= max(SLIVER * weight, GRAIN * total) else 0.0


def trimmed(column: Sequence[float], weights: Sequence[float], f: float) -> float:
    end, start, kept, total = total_of(weights) - f, 0.0, 0.0, 0.0
    for row in in_order(column):
        share = max(min(start + weights[row], end) - max(start, f), 0.0)
        share = without_slivers(share, weights[row], end + f)
        kept, total, start = kept + share * column[row], total + share, start + weights[row]
    return kept / total


def around(column: Sequence[float], weights: Sequence[float], f: float) -> float:
    middle, budget, kept, total = median(column, weights), total_of(weights) - f, 0.0, 0.0
    ranks = [(abs(value - middle), value, row) for row, value in enumerate(column)]
    for row, value in enumerate(column):
        before = 0.0
        for other, weight in enumerate(weights):
            before += weight if ranks[other] < ranks[row] else 0.0
        share = without_slivers(min(max(budget - before, 0.0), weights[row]), weights[row], budget + f)
        kept, total = kept + share * value, total + share
    return kept / total


WEIGHTS = {
    "irregular": lambda n: [0.1 + (row * 7 % 11) / 7 for row in range(n)],
    "balanced": lambda n: [1.0 + row % 2 for row in range(n)],
    "of all sizes": lambda n: [10.0 ** -(row % 15) for row in range(n)],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 3, 8, 17, 40, 256, 257])
def test_ties_go_to_the_lower_row(n: int, dtype: torch.dtype) -> None:
    rows = many(n, 50, dtype)
    rows[:, 10:30] = torch.randint(-2, 3, (n, 20), generator=torch.Generator().manual_seed(1)).to(dtype)
    rows[: n // 2, 40] = -rows[: n // 2, 41]
    ordered = line(rows, range(n), 0, 50, Room(), last=n - 1)
    places = torch.stack([ordered.place(rank) for rank in range(n)]).long()
    assert places.T.tolist() == [in_order(column) for column in rows.double().T.tolist()]
    values = torch.stack([ordered.value(wire) for wire in ordered.wires])
    assert torch.equal(values, rows.gather(0, places))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 5, 17, 40])
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("sorted_", [False, True])
def test_statistics_of_unequal_weights_are_those_of_plain_loops(
    n: int, dtype: torch.dtype, kind: str, sorted_: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sorted_:
        monkeypatch.setattr(ordering, "_NETWORK", 0)
    rows, weights = many(n, 60, dtype, seed=n), WEIGHTS[kind](n)
    rows[:, 20:30] = torch.randint(-2, 3, (n, 10), generator=torch.Generator().manual_seed(1)).to(dtype)
    kernels = [
        (coordinate_median, median, ()),
        *((trimmed_mean, trimmed, (part * sum(weights),)) for part in (0, 0.1, 0.37)),
    ]
    if not sorted_:  # sorts add up weights in another order there
        kernels += [(mean_around_median, around, (part * sum(weights),)) for part in (0, 0.1, 0.37)]
    for kernel, plain, rest in kernels:
        expected = torch.tensor(
            [plain(column, weights, *rest) for column in rows.double().T.tolist()], dtype=torch.float64
        )
        assert torch.equal(bits(kernel(rows, weights, *rest)), bits(saturate(expected, dtype) + 0.0)), (kernel, rest)


def test_a_part_of_a_value_is_rounded_before_it_is_added() -> None:
    """Sums of whole numbers are exact, so that nothing else rounds."""
    rows = torch.randint(-1000, 1000, (9, 400), generator=torch.Generator().manual_seed(0)).double()
    for f in (0.3, 1.7, 2.9):
        count, part = math.floor(9 - f), 9 - f - math.floor(9 - f)
        expected = []
        for column in rows.T.tolist():
            near = sorted(column, key=lambda value, column=column: (abs(value - sorted(column)[4]), value))
            total = sum(near[:count]) * (1 - part) + sum(near[: count + 1]) * part
            expected.append(total / (count + part) + 0.0)
        assert mean_around_median(rows, [1.0] * 9, f).tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 300])
def test_no_zero_is_negative(n: int, dtype: torch.dtype) -> None:
    """Not where all are, and not where rounding makes one."""
    limits = torch.finfo(dtype)
    rows = torch.full((n, 64), -0.0, dtype=dtype)
    rows[-1, 1:] = 0.0
    rows[0, 2:] = -limits.smallest_normal * limits.eps
    rows[: n // 2 + 1, 3:] = -limits.smallest_normal * limits.eps
    zeros = 0
    for weights in ([1.0] * n, [1.0 + row % 3 / 3 for row in range(n)]):
        for kernel in (coordinate_median, trimmed_mean, mean_around_median):
            for f in (0.0, 0.2, 0.4 * n) if kernel != coordinate_median else ():
                result = kernel(rows, weights, f)
                zeros += int((result == 0).sum())
                assert not bool((result.signbit() & (result == 0)).any()), (kernel, weights[:3], f)
            if kernel is coordinate_median:
                result = kernel(rows, weights)
                assert not bool((result.signbit() & (result == 0)).any()), weights[:3]
        assert zeros > 0
        signs = majority_signs(rows, torch.tensor(weights, dtype=torch.float64), Blocks.of(64, 64))
        assert not bool((signs.signbit() & (signs == 0)).any())
        assert set(signs.tolist()) <= {-1.0, 0.0}
