"""What every estimator keeps to: an estimate of the gradient, out of its arguments alone, with a memory that can be saved and moved."""

import io
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_byz.estimators import Estimator
from lightning_byz.inside_torch import version
from lightning_byz.memory import Vectors
from lightning_byz.random import Streams
from lightning_byz.testing.case import Case, require, require_bits, shown
from lightning_byz.testing.law import law
from lightning_byz.testing.rows import DTYPES, largest
from lightning_byz.testing.running import Watch

Gradients = Sequence[Sequence[Tensor]]
"""For each step, one gradient per point."""

_LENGTHS = [70, 1, 7, 1003, 64]
_PATIENCE = 1000  # steps of one gradient; an estimator is nearer to it after twice as many


def _drawn(estimator: Estimator, case: Case, dtype: torch.dtype, *, d: int | None = None) -> list[list[Tensor]]:
    """A few steps of normal gradients, at as many points as the estimator asks for."""
    d, steps = _LENGTHS[case.seed % len(_LENGTHS)] if d is None else d, case.whole(1, 5)
    case.note(d=d, dtype=dtype, steps=steps)
    return [[case.normal(d).to(dtype) for _ in range(estimator.points)] for _ in range(steps)]


def _dtype(case: Case) -> torch.dtype:
    return DTYPES[case.seed % len(DTYPES)]


def _followed(
    estimator: Estimator, gradients: Gradients, memory: Vectors | None = None, count: int = 0
) -> tuple[list[Tensor], Vectors]:
    """The estimates of some steps in a row, each adopted, and the memory after them."""
    memory, estimates = estimator.init(gradients[0][0]) if memory is None else memory, []
    for step, (first, *others) in enumerate(gradients):
        estimate, memory = estimator.update(memory, [first, *(one.clone() for one in others)], count=count + step)
        estimates.append(estimate.clone())
    return estimates, memory


def _require_alike(left: Sequence[Tensor], right: Sequence[Tensor], what: str) -> None:
    for step, (one, other) in enumerate(zip(left, right, strict=True)):
        require_bits(one, other, f"the estimate of step {step} {what}")


def _kind(value: object) -> str:
    return (
        f"{tuple(value.shape)} of {value.dtype} on {value.device}"
        if isinstance(value, Tensor)
        else type(value).__name__
    )


def _kinds(memory: Vectors) -> dict[str, str]:
    return {name: _kind(memory[name]) for name in sorted(memory)}


@law("a memory is of vectors of length d and numbers, and stays what init declares", part=0.2)
def estimator_memory(estimator: Estimator, case: Case) -> None:
    """The same names, shapes, dtypes and devices after every step; init reads no values."""
    gradients = _drawn(estimator, case, _dtype(case))
    like = gradients[0][0]
    declared = estimator.init(like)
    for name, value in declared.items():
        kept = value.shape in (like.shape, ()) if isinstance(value, Tensor) else type(value) in (int, float, bool)
        require(
            kept, f"init remembers {name!r}, {_kind(value)}, which is no vector of length {len(like)} and no number"
        )
    other = estimator.init(torch.full_like(like, float("nan")))
    for name, value in declared.items():
        twice = [torch.as_tensor(values) for values in (value, other[name])]
        require_bits(twice[1], twice[0], f"{name!r} of init where the vector it is like holds other values")
    for step in range(len(gradients)):
        left = _kinds(_followed(estimator, gradients[: step + 1])[1])
        require(left == _kinds(declared), f"init declares {_kinds(declared)}, and update returned {left}")


@law("the estimate has the dtype, device and length of the gradient", part=0.2)
def estimator_types(estimator: Estimator, case: Case) -> None:
    """Also while another default dtype is set."""
    gradients, default = _drawn(estimator, case, _dtype(case)), torch.get_default_dtype()
    torch.set_default_dtype(case.one_of([default, torch.float64]))
    try:
        estimate = estimator.update(estimator.init(gradients[0][0]), gradients[0], count=0)[0]
    finally:
        torch.set_default_dtype(default)
    require(isinstance(estimate, Tensor), f"the estimate is no tensor but {type(estimate).__name__}")
    require(
        _kind(estimate) == _kind(gradients[0][0]),
        f"the estimate is {_kind(estimate)}, the gradient {_kind(gradients[0][0])}",
    )


@law("memory and the gradient are not written to", part=0.2)
def estimator_inputs(estimator: Estimator, case: Case) -> None:
    """The memory that was passed in is still the one to go on from if the step is not taken; a second gradient is given away."""
    gradients = _drawn(estimator, case, _dtype(case))
    memory = dict(_followed(estimator, gradients)[1])
    own = [gradient.clone() for gradient in gradients[-1]]
    held = {**memory, "gradient 0": own[0]}
    vectors = {name: value for name, value in held.items() if isinstance(value, Tensor)}
    before = {name: (vector.clone(), version(vector)) for name, vector in vectors.items()}
    passed = dict(memory)
    estimator.update(passed, own, count=len(gradients))
    for name, (kept, written) in before.items():
        require_bits(vectors[name], kept, f"{name} after the call")
        require(
            version(vectors[name]) == written, f"the estimator wrote to {name}, perhaps the numbers that were there"
        )
    same = passed.keys() == memory.keys() and all(passed[name] is memory[name] for name in memory)
    require(same, f"the memory that was passed in names {sorted(passed)} afterwards, or holds other values")


@law("estimates follow from memory, gradients and count alone", part=0.3)
def estimator_purity(estimator: Estimator, case: Case) -> None:
    """A worker's estimates are the same bits beside another worker's, in another random state; global random state is left alone."""
    dtype, watch = _dtype(case), Watch()
    own = _drawn(estimator, case, dtype)
    others = [[-3 * gradient for gradient in step] for step in own]
    alone, _ = _followed(estimator, own)
    watch.require_untouched()
    memory, beside = estimator.init(own[0][0]), estimator.init(own[0][0])
    together = []
    with Streams(torch.device("cpu")).inside(case.seed):
        for step, (mine, theirs) in enumerate(zip(own, others, strict=True)):
            beside = estimator.update(beside, theirs, count=step)[1]
            estimate, memory = estimator.update(memory, mine, count=step)
            together.append(estimate.clone())
    _require_alike(together, alone, "beside another worker's")


@law("coordinates are treated alike: parts of the vector give the bits of the whole", exception="coordinates", part=0.4)
def estimator_coordinates(estimator: Estimator, case: Case) -> None:
    """Cut in two, or in another order, so that a memory may follow its parameters when others are trained."""
    gradients = _drawn(estimator, case, _dtype(case))
    d = len(gradients[0][0])
    cut, order = case.whole(0, d), case.order(d)
    case.note(cut=cut)
    whole, _ = _followed(estimator, gradients)
    left, right = (
        _followed(estimator, [[gradient[part].clone() for gradient in step] for step in gradients])[0]
        for part in (slice(0, cut), slice(cut, d))
    )
    _require_alike([torch.cat(parts) for parts in zip(left, right, strict=True)], whole, "of the two parts")
    moved, _ = _followed(estimator, [[gradient[order] for gradient in step] for step in gradients])
    _require_alike(moved, [estimate[order] for estimate in whole], "in another order of the coordinates")


@law("coordinates that join later get a finite estimate and leave the others alone", part=0.2)
def estimator_growth(estimator: Estimator, case: Case) -> None:
    """As when parameters are trained that were frozen before, with the memory that ``realigned`` makes."""
    gradients, more = _drawn(estimator, case, _dtype(case)), case.whole(1, 9)
    (*first, last), d = gradients, len(gradients[0][0])
    case.note(joining=more)
    memory = _followed(estimator, first)[1] if first else estimator.init(last[0])
    longer = [torch.cat([gradient, case.normal(more).to(gradient.dtype)]) for gradient in last]
    grown = estimator.realigned(memory, lambda vector, fill: torch.cat([vector, vector.new_full((more,), fill)]))
    estimate = estimator.update(grown, longer, count=len(first))[0]
    require(
        bool(estimate.isfinite().all()), f"the estimate is not finite: {shown(estimate[d:])} where coordinates join"
    )
    if "coordinates" not in estimator.exceptions:
        known = estimator.update(memory, last, count=len(first))[0]
        require_bits(estimate[:d], known, "the estimate of coordinates that were there")


@law("gradients times a power of two give the estimates times it", exception="scaling", part=0.2)
def estimator_scaling(estimator: Estimator, case: Case) -> None:
    """Or a negative one, to the bit."""
    gradients = _drawn(estimator, case, case.one_of([torch.float32, torch.float64, torch.bfloat16]))
    factor = case.one_of([-1.0, 1.0]) * 2.0 ** case.whole(-12, 12)
    case.note(factor=factor)
    scaled, _ = _followed(estimator, [[gradient * factor for gradient in step] for step in gradients])
    plain, _ = _followed(estimator, gradients)
    _require_alike(scaled, [estimate * factor for estimate in plain], "of the multiplied gradients")


@law("a memory that was saved and loaded again goes on as if it had not been", part=0.2)
def estimator_saving(estimator: Estimator, case: Case) -> None:
    """With ``torch.save``, and ``torch.load`` with ``weights_only=True``."""
    gradients = _drawn(estimator, case, _dtype(case))
    memory, file = _followed(estimator, gradients)[1], io.BytesIO()
    torch.save(dict(memory), file)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    further = [[-2 * gradient for gradient in step] for step in gradients]
    kept, restored = (_followed(estimator, further, known, len(gradients))[0] for known in (memory, loaded))
    _require_alike(restored, kept, "after loading")


@law("finite gradients give a finite estimate and a finite memory, however large or small they are", part=0.3)
def estimator_finite(estimator: Estimator, case: Case) -> None:
    """Up to a 64th of the largest number, so that a few may be added up; subnormal numbers and zeros among them."""
    dtype = _dtype(case)
    sizes = torch.tensor([largest(dtype) / 64, torch.finfo(dtype).tiny / 4, 0.0, 1.0], dtype=torch.float64)
    mixed = case.chance(0.5)
    gradients = _drawn(estimator, case, dtype)
    case.note(sizes="of all kinds" if mixed else f"{float(sizes[case.seed // 4 % 4]):g}")
    for gradient in (gradient for step in gradients for gradient in step):
        kinds = torch.randint(4, gradient.shape, generator=case.generator) if mixed else case.seed // 4 % 4
        gradient.copy_(gradient.double().sign() * sizes[kinds])
    estimates, memory = _followed(estimator, gradients)
    for step, estimate in enumerate(estimates):
        require(bool(estimate.isfinite().all()), f"the estimate of step {step} is not finite: {shown(estimate)}")
    for name, value in memory.items():
        require(bool(torch.as_tensor(value).isfinite().all()), f"{name!r} is not finite in the memory")


@law("where the gradient stays the same, the estimate becomes that gradient", exception="convergence", part=0.1)
def estimator_convergence(estimator: Estimator, case: Case) -> None:
    """At all points, after other gradients at first: it comes nearer, until the difference is small."""
    dtype = _dtype(case)
    first = _drawn(estimator, case, dtype, d=5)
    gradient = case.normal(5).to(dtype)
    enough = max(1e-3, 4 * torch.finfo(dtype).eps) * float(gradient.abs().max())
    (*_, estimate), memory = _followed(estimator, first)
    count, gaps = len(first), []
    for _ in range(2):
        (*_, estimate), memory = _followed(estimator, [[gradient] * estimator.points] * _PATIENCE, memory, count)
        count += _PATIENCE
        gaps.append(float((estimate.double() - gradient.double()).abs().max()))
        if gaps[-1] <= enough:
            return
    require(
        gaps[1] < 0.995 * gaps[0],
        f"after {_PATIENCE} and {2 * _PATIENCE} steps of {shown(gradient)} the estimate is {shown(estimate)},"
        f" {gaps[0]:g} and {gaps[1]:g} away",
    )
