"""Where coordinates lie does not matter: slices of whole blocks give the bits of the whole."""

import torch

from lightning_byz.aggregators import Aggregator
from lightning_byz.stack import Stack
from lightning_byz.testing.case import Case, require, require_equal
from lightning_byz.testing.cutting import cuts_of, on_slices
from lightning_byz.testing.law import law
from lightning_byz.testing.rows import DTYPES
from lightning_byz.testing.running import explain, reference, run
from lightning_byz.testing.sizes import size, tolerated, uneven

LENGTHS = [64 * 256 + 7, 1000, 150, 33333, 64, 1]


def spread_out(case: Case, n: int, d: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows with a common part, one of them huge."""
    rows = (case.normal(n, d) * 3 + 100).to(dtype)
    rows[0] *= 500
    return rows


def _example(rule: Aggregator, case: Case) -> Stack:
    d, dtype = LENGTHS[case.seed % len(LENGTHS)], DTYPES[case.seed % len(DTYPES)]
    n, limit = size(case, rule)
    while n > 13:
        n, limit = size(case, rule)
    rows, f = spread_out(case, n, d, dtype), float(case.whole(0, limit))
    if f >= 1 and case.chance(0.4):
        rows[case.whole(0, n - 1), d - 1] = float("nan")
    weights = uneven(case, n)
    part = float(weights.sum()) * f / n
    unequal = (
        rule.unequal_weights
        and case.chance(0.5)
        and not bool(rows.isnan().any())
        and part > 0
        and tolerated(rule, weights, part)
    )
    case.note(n=n, f=part if unequal else f, d=d, dtype=dtype, weights=weights.tolist() if unequal else 1)
    return Stack(rows, weights if unequal else None, part if unequal else f, reference(case, rule, d, dtype))


@law("slices of whole blocks, however they are cut, give the bits of the whole", part=0.12)
def slices(rule: Aggregator, case: Case) -> None:
    """The aggregate and the coefficients of 1 to 12 slices, some of them empty."""
    stack = _example(rule, case)
    whole, shares = explain(rule, stack)
    count = case.one_of([1, 2, 3, 4, 5, 12])
    ends = cuts_of(stack.vectors.shape[1], count, case.generator)
    case.note(cuts=ends)
    pieces = on_slices(lambda part: explain(rule, part), stack, ends)
    require_equal(torch.cat([piece for piece, _ in pieces]), whole, "the slices together")
    for _, own in pieces:
        require((own is None) == (shares is None), "coefficients on the slices only, or on the whole only")
        if own is not None and shares is not None:
            require_equal(own, shares, "coefficients on a slice")


@law(
    "what a rule does not say it uses, stack.reference, changes nothing",
    where=lambda rule: not rule.uses_reference,
    part=0.04,
)
def no_reference(rule: Aggregator, case: Case) -> None:
    """The aggregate with and without a reference."""
    n, limit = size(case, rule)
    rows = case.normal(n, 5)
    case.note(n=n, f=limit, d=5)
    require_equal(
        run(rule, Stack(rows, f=limit, reference=case.normal(5))), run(rule, Stack(rows, f=limit)), "with a reference"
    )
