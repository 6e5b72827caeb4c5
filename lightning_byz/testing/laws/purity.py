"""dtype and device come out as they went in, inputs are not written to, and nothing outside the arguments matters."""

import contextlib

import torch
from torch import Tensor

from lightning_byz.aggregators import Aggregator
from lightning_byz.inside_torch import version
from lightning_byz.random import Streams
from lightning_byz.stack import Stack
from lightning_byz.testing.case import Broken, Case, require, require_close, require_equal
from lightning_byz.testing.law import law
from lightning_byz.testing.rows import DTYPES
from lightning_byz.testing.running import Watch, draw, reference, run
from lightning_byz.testing.sizes import size


def _example(rule: Aggregator, case: Case, dtype: torch.dtype, *, broken: bool = True) -> Stack:
    """One row without weight and, where ``f`` allows it, one that is not finite."""
    n, limit = size(case, rule)
    rows, weights = case.normal(n + 1, 70).to(dtype), torch.ones(n + 1, dtype=torch.float64)
    weights[case.whole(0, n)] = 0.0
    if limit >= 1 and broken:
        rows[int(weights.argmax())] = float("nan")
    case.note(n=n + 1, f=limit, d=70, dtype=dtype)
    return Stack(rows, weights, limit, reference(case, rule, 70, dtype))


@law("dtype, device and length come out as they went in", part=0.1)
def types(rule: Aggregator, case: Case) -> None:
    """Also while another default dtype is set."""
    stack = _example(rule, case, DTYPES[case.seed % len(DTYPES)])
    default = torch.get_default_dtype()
    torch.set_default_dtype(case.one_of([default, torch.float64]))
    try:
        result = run(rule, stack)
    finally:
        torch.set_default_dtype(default)
    rows = stack.vectors
    require(isinstance(result, Tensor), f"the result is no tensor but {type(result).__name__}")
    require(result.dtype == rows.dtype, f"the result is {result.dtype}, the rows are {rows.dtype}")
    require(result.device == rows.device, f"the result is on {result.device}, the rows are on {rows.device}")
    require(result.shape == rows.shape[1:], f"the result has shape {tuple(result.shape)}")


@law("inputs are not written to", part=0.1)
def inputs(rule: Aggregator, case: Case) -> None:
    """Rows, weights and reference, to the bit."""
    stack = _example(rule, case, DTYPES[case.seed % len(DTYPES)])
    before = [None if kept is None else kept.clone() for kept in (stack.vectors, stack.weights, stack.reference)]
    written = version(stack.vectors)
    run(rule, stack)
    require(version(stack.vectors) == written, "the rule wrote to stack.vectors, perhaps the numbers that were there")
    for name, kept, now in zip(
        ("rows", "weights", "reference"), before, (stack.vectors, stack.weights, stack.reference), strict=True
    ):
        if kept is not None and now is not None:
            require_equal(now, kept, f"{name} after the call")


@law("results do not depend on global random state, and do not change it", part=0.1)
def randomness(rule: Aggregator, case: Case) -> None:
    """The same stack gives the same bits again; a rule that draws needs a generator."""
    stack = _example(rule, case, torch.float32)
    watch = Watch()
    first = run(rule, stack)
    watch.require_untouched()
    with Streams(torch.device("cpu")).inside(case.seed):
        require_equal(run(rule, Stack(stack.vectors, stack.weights, stack.f, stack.reference)), first, "a second time")
    if rule.random:
        with contextlib.suppress(ValueError):
            rule(stack)
            raise Broken("a rule that draws took no generator and no ValueError was raised")


@law("results are the caller's own", part=0.1)
def ownership(rule: Aggregator, case: Case) -> None:
    """Writing into a result changes neither the rows nor the next result."""
    stack = _example(rule, case, DTYPES[case.seed % len(DTYPES)], broken=False)
    kept = [None if tensor is None else tensor.clone() for tensor in (stack.vectors, stack.reference)]
    result = run(rule, stack)
    expected = result.clone()
    result.fill_(7.0)
    require_equal(run(rule, stack), expected, "after the first result was written to")
    for tensor, before in zip((stack.vectors, stack.reference), kept, strict=True):
        if tensor is not None and before is not None:
            require_equal(tensor, before, "inputs after the result was written to")


@law("autograd, inference mode and autocast do not matter", part=0.08)
def modes(rule: Aggregator, case: Case) -> None:
    """The same bits, and no gradient."""
    stack = _example(rule, case, case.one_of([torch.float32, torch.float64]))
    expected = run(rule, stack)
    rest = stack.weights, stack.f, stack.reference
    require(
        not run(rule, Stack(stack.vectors.clone().requires_grad_(), *rest)).requires_grad,
        "the result asks for a gradient",
    )
    with torch.inference_mode():
        require_equal(run(rule, Stack(stack.vectors, *rest)), expected, "in inference mode")
        require_equal(run(rule, Stack(stack.vectors.clone(), *rest)), expected, "with rows made in inference mode")
    with torch.autocast("cpu", torch.bfloat16):
        require_equal(run(rule, Stack(stack.vectors, *rest)), expected, "under autocast")


@law("how rows lie in memory does not matter", part=0.08)
def memory_layout(rule: Aggregator, case: Case) -> None:
    """Transposed storage, and every second number of a longer one."""
    stack = _example(rule, case, torch.float64)
    expected, rest = run(rule, stack), (stack.weights, stack.f, stack.reference)
    require_close(run(rule, Stack(stack.vectors.T.contiguous().T, *rest)), expected, "from transposed storage", 1e-12)
    wide = stack.vectors.repeat_interleave(2, 1)[:, ::2]
    require_close(run(rule, Stack(wide, *rest)), expected, "from strided storage", 1e-12)


@law("a rule that draws follows its generator", where=lambda rule: rule.random, part=0.1)
def generators(rule: Aggregator, case: Case) -> None:
    """Equal seeds give equal bits, and the draws do not depend on who drew before from elsewhere."""
    stack = _example(rule, case, torch.float32)
    torch.rand(3, generator=case.generator)
    require_equal(rule(stack, **draw(rule)), rule(stack, **draw(rule)), "with a generator of the same seed")
