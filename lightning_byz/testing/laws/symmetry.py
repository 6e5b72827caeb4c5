"""The order of the workers does not matter, translation and scaling carry over, and where all agree they are followed."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_byz.aggregators import Aggregator
from lightning_byz.stack import Stack
from lightning_byz.testing.case import Case, require, require_equal, shown
from lightning_byz.testing.law import law
from lightning_byz.testing.rows import DTYPES, HONEST
from lightning_byz.testing.running import explain, reference, run
from lightning_byz.testing.sizes import generic, size, tolerated
from lightning_byz.testing.ties import agree


def _stack(rule: Aggregator, case: Case) -> Stack:
    """Rows of which one is far away, and weights none equal to another where the rule takes them."""
    n, f = generic(case, rule)
    rows = case.normal(n, 7)
    rows[0] *= 1e4
    weights = torch.ones(n, dtype=torch.float64)
    if rule.unequal_weights:
        uneven = torch.rand(n, generator=case.generator, dtype=torch.float64) + 0.5
        uneven *= n / uneven.sum()
        weights = uneven if tolerated(rule, uneven, f) else weights
    case.note(n=n, f=f, d=7, dtype=rows.dtype, weights="all different" if bool((weights != 1).any()) else 1)
    return Stack(rows, weights, f, reference(case, rule, 7))


def _changed(stack: Stack, change: Callable[[Tensor], Tensor]) -> Stack:
    return Stack(
        change(stack.vectors), stack.weights, stack.f, None if stack.reference is None else change(stack.reference)
    )


@law("the order of the workers does not matter", exception="permutation", part=0.3)
def permutation(rule: Aggregator, case: Case) -> None:
    """Coefficients move with their rows."""
    stack = _stack(rule, case)
    order = case.order(len(stack.weights))
    result, shares = explain(rule, stack)
    moved, moved_shares = explain(rule, Stack(stack.vectors[order], stack.weights[order], stack.f, stack.reference))
    agree(rule, stack, moved, result, "in another order")
    if shares is not None and moved_shares is not None:
        agree(rule, stack, moved_shares, shares[order], "coefficients in another order")


@law("rows moved by the same vector move the result by it", exception="translation", part=0.2)
def translation(rule: Aggregator, case: Case) -> None:
    """And the reference with them."""
    stack, shift = _stack(rule, case), case.normal(7) * 10 ** case.real(-1, 3)
    moved = run(rule, _changed(stack, lambda rows: rows + shift))
    agree(rule, stack, moved - shift, run(rule, stack), "moved, and moved back")


@law("rows times a factor, also a negative one, give the result times the factor", exception="scaling", part=0.3)
def scaling(rule: Aggregator, case: Case) -> None:
    """Factors from 2**-90 to 2**90."""
    stack, factor = _stack(rule, case), case.one_of([-1.0, 2.0**-90, 2.0**30, 2.0**90, -3.0])
    case.note(factor=factor)
    scaled = run(rule, _changed(stack, lambda rows: rows * factor))
    agree(rule, stack, scaled / factor, run(rule, stack), "multiplied, and divided again")


@law(
    "where all rows are equal the result is that row, to the bit; in float64, where sums cannot be wider, to rounding",
    exception="agreement",
    part=0.3,
)
def agreement(rule: Aggregator, case: Case) -> None:
    """Of any size; weights equal or not."""
    dtype, (n, limit) = DTYPES[case.seed % len(DTYPES)], size(case, rule)
    row: Tensor = torch.tensor([0.1, -3e4, 1e-7, 0.0, 7.0], dtype=dtype)
    if case.chance(0.5):
        row = HONEST[case.one_of(["huge", "subnormal", "scales", "normal"])](case, 1, 5, dtype)[0]
    f = case.whole(0, limit)
    weights = torch.randint(0, 3, (n,), generator=case.generator).double() + 0.1
    weights *= n / weights.sum()
    uneven = rule.unequal_weights and case.chance(0.4) and tolerated(rule, weights, f)
    case.note(n=n, f=f, d=5, dtype=dtype, weights=weights.tolist() if uneven else 1)
    result = run(rule, Stack(row.repeat(n, 1), weights if uneven else None, f))
    require(result.dtype == dtype, f"dtype {result.dtype}")
    if dtype == torch.float64:
        limit = 16 * row.abs() * torch.finfo(dtype).eps + 64 * torch.finfo(dtype).tiny * torch.finfo(dtype).eps
        require(bool(((result - row).abs() <= limit).all()), f"of equal rows: {shown(result)} instead of {shown(row)}")
    else:
        require_equal(result, row, "of equal rows")
