"""What a pre-aggregator hands on: a stack of the same shape that says truly what it is."""

import torch

from lightning_byz.preaggregators import PreAggregator
from lightning_byz.stack import Stack
from lightning_byz.testing.case import Case, require, require_close, require_equal
from lightning_byz.testing.law import law
from lightning_byz.testing.rows import DTYPES
from lightning_byz.testing.running import draw, reference
from lightning_byz.testing.sizes import size


def _example(rule: PreAggregator, case: Case, dtype: torch.dtype) -> tuple[Stack, Stack]:
    """A stack with one row without weight and perhaps one that is not finite; and what is made of it."""
    n, limit = size(case, rule)
    rows, weights = case.normal(n + 1, 70).to(dtype), torch.ones(n + 1, dtype=torch.float64)
    weights[case.whole(0, n)] = 0.0
    if limit >= 1 and case.chance(0.5):
        rows[int(weights.argmax())] = float("nan")
    case.note(n=n + 1, f=limit, d=70, dtype=dtype)
    stack = Stack(rows, weights, limit, reference(case, rule, 70, dtype))
    return stack, rule(stack, **draw(rule))


@law("the stack handed on has the shape, dtype, device and absent rows of the one that came in", part=0.2)
def stack_out(rule: PreAggregator, case: Case) -> None:
    """And its own storage; ``f`` is what ``hands_on`` tells."""
    stack, out = _example(rule, case, DTYPES[case.seed % len(DTYPES)])
    require(isinstance(out, Stack), f"the result is no Stack but {type(out).__name__}")
    require(out.vectors.shape == stack.vectors.shape, f"the rows handed on have shape {tuple(out.vectors.shape)}")
    require(out.vectors.dtype == stack.vectors.dtype, f"the rows handed on are {out.vectors.dtype}")
    require(out.vectors.device == stack.vectors.device, f"the rows handed on are on {out.vectors.device}")
    require(not bool(out.weights[stack.weights == 0].any()), "a row without weight got some")
    require(bool(out.vectors.isfinite().all()), "the rows handed on are not finite")
    left = stack.f - float(bool(stack.vectors.isnan().any()))
    require(
        abs(out.f - rule.hands_on(left)) < 1e-9,
        f"f = {out.f:g} was handed on, and hands_on({left:g}) is {rule.hands_on(left):g}",
    )
    if stack.reference is not None:
        require(out.reference is not None, "the reference was not handed on")


@law("inputs are not written to, also where the rows handed on are", part=0.1)
def own_rows(rule: PreAggregator, case: Case) -> None:
    """A second call gives the same."""
    stack, out = _example(rule, case, DTYPES[case.seed % len(DTYPES)])
    kept = out.vectors.clone()
    again = rule(stack, **draw(rule))
    require_equal(again.vectors, kept, "a second time")


@law("the mixing that is handed on gives the rows that are handed on", part=0.2)
def mixing(rule: PreAggregator, case: Case) -> None:
    """And squared distances that are handed on are those between them."""
    stack, out = _example(rule, case, torch.float64)
    if out.mixing is not None:
        require_close(out.mixing @ stack.vectors.nan_to_num(), out.vectors, "mixing times the rows")
    fresh = Stack(out.vectors, out.weights, out.f).squared_distances()
    present = out.weights > 0
    require_close(
        out.squared_distances()[present][:, present], fresh[present][:, present], "squared distances handed on"
    )
    require(not bool(out.nonfinite().any()), "rows handed on are called unusable")
