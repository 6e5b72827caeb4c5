"""What every compressor keeps to: bytes made of its arguments alone, wherever coordinates lie, and a decoder that nothing can surprise."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_byz.compressors import Compressor, Coordinates
from lightning_byz.inside_torch import version
from lightning_byz.random import Streams, generator
from lightning_byz.stack import Stack
from lightning_byz.testing.case import Case, NothingToCheck, require, require_bits, shown
from lightning_byz.testing.cutting import cuts_of, on_slices
from lightning_byz.testing.law import law
from lightning_byz.testing.mutations import mutated
from lightning_byz.testing.rows import DTYPES
from lightning_byz.testing.running import Watch

Shapes = Sequence[tuple[int, ...]]
_SHAPES: Sequence[Shapes] = [
    [(20, 30), (7,), (0,), (), (600,)],
    [(130, 127)],
    [(1003,)],
    [(10, 4, 5), (16, 16), (3,), (64, 5)],
    [(64,), (64,), (128,)],
    [(7,)],
    [(1,)],
]
_TRIALS = 200
_SURE = 6.0  # standard errors
_DRAW = 12345


def _drawn(rule: Compressor, case: Case, dtype: torch.dtype, *, size: float = 1.0) -> tuple[Tensor, Coordinates]:
    """A vector of some kind, and where its coordinates lie."""
    shapes = case.one_of(_SHAPES)
    whole = Coordinates(shapes)
    try:
        rule.check(whole)
    except ValueError:
        raise NothingToCheck from None
    kind, d = case.one_of(["normal", "constant", "few values", "mostly zero", "layered", "one", "zero"]), whole.total
    case.note(shapes=[*shapes], dtype=dtype, kind=kind)
    normal = case.normal(d)
    vector = {
        "normal": normal,
        "constant": torch.ones_like(normal),
        "few values": normal.round(),
        "mostly zero": torch.where(torch.rand(d, generator=case.generator) < 0.02, normal, 0.0),
        "layered": normal * torch.logspace(-4, 0, d, dtype=torch.float64),
        "one": torch.nn.functional.one_hot(torch.tensor(case.whole(0, d - 1)), d).double(),
        "zero": torch.zeros_like(normal),
    }[kind]
    return (vector * size).to(dtype), whole


def _dtype(case: Case) -> torch.dtype:
    return DTYPES[case.seed % len(DTYPES)]


def _draws(key: int = 0) -> torch.Generator:
    return generator(_DRAW, key)


def _part(rule: Compressor, vector: Tensor, where: Coordinates, key: int = 0) -> Tensor:
    return rule.encode(vector, where, generator=_draws(key)).part(where.start, where.stop)


def _decoded(
    rule: Compressor, part: Tensor, where: Coordinates, dtype: torch.dtype, key: int = 0
) -> tuple[Tensor, Tensor]:
    """The vector that the bytes say, in a place that held something else, and whether they are a message."""
    out = torch.full((where.stop - where.start,), float("nan"), dtype=dtype)
    valid = rule.decode(part, where, generator=_draws(key), out=out)
    return out, valid


@law("a part is bytes, as many as stated, and comes back as a message of finite numbers")
def compressor_size(rule: Compressor, case: Case) -> None:
    """Of all coordinates; as many as stated also where that varies."""
    vector, where = _drawn(rule, case, _dtype(case), size=case.one_of([1.0, 1e-3, 100.0]))
    part = _part(rule, vector, where)
    kind = f"{part.dtype} of shape {tuple(part.shape)}"
    require(part.dtype == torch.uint8 and part.dim() == 1, f"a vector of bytes is expected, not {kind}")
    stated = rule.size(where, vector.dtype)
    require(len(part) == stated, f"the part has {len(part)} bytes, and size states {stated}")
    out, valid = _decoded(rule, part, where, vector.dtype)
    told = isinstance(valid, Tensor) and valid.dtype == torch.bool and valid.shape == ()
    require(told, f"decode returns {valid!r}, which is no tensor of one bool")
    require(bool(valid), "decode takes its own part for no message")
    require(bool(out.isfinite().all()), f"what comes back is not finite: {shown(out)}")


@law("what is stated of alpha and omega can be: alpha in (0, 1] or None, omega not negative or None")
def compressor_constants(rule: Compressor, case: Case) -> None:
    """And one of them is a number."""
    _, where = _drawn(rule, case, torch.float32)
    alpha, omega = rule.alpha(where), rule.omega(where)
    require(alpha is None or 0.0 < alpha <= 1.0, f"alpha is {alpha}")
    require(omega is None or 0.0 <= omega < float("inf"), f"omega is {omega}")
    require(alpha is not None or omega is not None, "it is neither contractive nor unbiased")


@law(
    "slices of whole blocks, however they are cut, make the bytes of the whole, which come back as the whole, cut",
    where=lambda rule: rule.splits,
)
def compressor_slices(rule: Compressor, case: Case) -> None:
    """1 to 4 slices, some of them empty."""
    vector, where = _drawn(rule, case, _dtype(case))
    ends = cuts_of(where.total, case.one_of([1, 2, 3, 4]), case.generator)
    case.note(cuts=ends)
    entries, dtype = rule.encode(vector, where, generator=_draws()), vector.dtype
    whole, _ = _decoded(rule, entries.part(0, where.total), where, dtype)

    def both(stack: Stack) -> tuple[Tensor, Tensor, Tensor, int]:
        here = Coordinates(where.shapes, stack.slice)
        part = _part(rule, stack.vectors[0], here)
        return (part, *_decoded(rule, part, here, dtype), rule.size(here, dtype))

    pieces = on_slices(both, Stack(vector[None]), ends)
    for start, stop, (part, out, valid, size) in zip(ends, ends[1:], pieces, strict=False):
        require_bits(part, entries.part(start, stop), f"the part of the slice from {start} to {stop}")
        require_bits(out, whole[start:stop], f"what the part from {start} to {stop} says")
        require(bool(valid), f"decode takes the part from {start} to {stop} for no message")
        fits = len(part) <= size if rule.varies else len(part) == size
        require(fits, f"the part from {start} to {stop} has {len(part)} bytes, and size states {size}")


@law("equal arguments give equal bytes, and these equal bits, in any random state, which is left alone", part=0.3)
def compressor_purity(rule: Compressor, case: Case) -> None:
    """At both ends."""
    vector, where = _drawn(rule, case, _dtype(case))
    watch = Watch()
    part = _part(rule, vector, where)
    out, _ = _decoded(rule, part, where, vector.dtype)
    watch.require_untouched()
    with Streams(torch.device("cpu")).inside(case.seed):
        _part(rule, vector + 1, where, key=1)
        require_bits(_part(rule, vector.clone(), where), part, "the part, a second time")
        require_bits(_decoded(rule, part.clone(), where, vector.dtype)[0], out, "what it says, a second time")
    if not rule.draws:
        idle, before = _draws(), _draws().get_state()
        rule.encode(vector, where, generator=idle)
        rule.decode(part, where, generator=idle, out=out)
        require(torch.equal(idle.get_state(), before), "draws is False, and the generator was asked")


@law("vectors and bytes are not written to", part=0.2)
def compressor_inputs(rule: Compressor, case: Case) -> None:
    """Entries may show the vector itself."""
    vector, where = _drawn(rule, case, _dtype(case))
    own, written = vector.clone(), version(vector)
    part = _part(rule, vector, where)
    sent, parts_written = part.clone(), version(part)
    _decoded(rule, part, where, vector.dtype)
    require_bits(vector, own, "the vector afterwards")
    require_bits(part, sent, "the part afterwards")
    same = version(vector) == written and version(part) == parts_written
    require(same, "the vector or the part was written to, perhaps the numbers that were there")


def _errors(
    rule: Compressor, case: Case, stated: Callable[[Coordinates], float | None]
) -> tuple[Tensor, Tensor, float]:
    """A vector, what is added to it in many trials, and what is stated of that."""
    vector, where = _drawn(rule, case, torch.float64, size=case.one_of([1.0, 1e-2, 30.0]))
    constant = stated(where)
    if constant is None or not bool(vector.any()) or where.total > 5000:
        raise NothingToCheck
    seeds = range(case.seed * _TRIALS, (case.seed + 1) * _TRIALS)
    decoded = [_decoded(rule, _part(rule, vector, where, key), where, vector.dtype, key)[0] for key in seeds]
    return vector, torch.stack(decoded) - vector, constant


def _require_at_most(seen: Tensor, bound: float, what: str) -> None:
    """The mean of what was seen is below a bound, or above it by chance."""
    allowed = bound * (1 + 1e-9) + 1e-12 + _SURE * float(seen.std()) / len(seen) ** 0.5
    require(
        float(seen.mean()) <= allowed, f"{what} is {float(seen.mean()):.6g} on average, and {bound:.6g} at most stated"
    )


@law("the squared error is at most 1 - alpha times the squared length, on average", exception="contraction", part=0.2)
def compressor_contraction(rule: Compressor, case: Case) -> None:
    """Of float64 vectors, so that no rounding of theirs counts."""
    vector, errors, alpha = _errors(rule, case, rule.alpha)
    _require_at_most(errors.square().sum(1) / vector.square().sum(), 1 - alpha, "the squared error")


@law(
    "what is stated to be unbiased is right on average, with a squared error of at most omega times the squared length",
    part=0.2,
)
def compressor_unbiased(rule: Compressor, case: Case) -> None:
    """Along the vector itself and some other directions."""
    vector, errors, omega = _errors(rule, case, rule.omega)
    if omega + 1 > _TRIALS / 10:
        raise NothingToCheck
    _require_at_most(errors.square().sum(1) / vector.square().sum(), omega, "the squared error")
    for direction in (vector, vector.sign(), case.normal(len(vector)), torch.ones_like(vector)):
        seen = errors @ direction / (direction.norm() * vector.norm()).clamp(min=1e-300)
        gap, allowed = abs(float(seen.mean())), 1e-7 + _SURE * float(seen.std()) / len(seen) ** 0.5
        require(
            gap <= allowed, f"the mean of {_TRIALS} trials is off by {gap:.3g} of the length, {allowed:.3g} by chance"
        )


@law(
    "whatever the bytes are, decode writes finite numbers for a message and zeros for none, and nothing elsewhere",
    part=2.0,
)
def compressor_totality(rule: Compressor, case: Case) -> None:
    """Bytes that are changed, cut, lengthened, or random."""
    vector, where = _drawn(rule, case, _dtype(case))
    if where.total > 5000:
        raise NothingToCheck
    require_total(rule, mutated(_part(rule, vector, where), case.generator), where, vector.dtype)


def require_total(rule: Compressor, part: Tensor, where: Coordinates, dtype: torch.dtype) -> bool:
    """Raise ``Broken`` unless bytes become finite numbers, or zeros where they are no message; return whether they are."""
    count = where.stop - where.start
    sent, around = part.clone(), torch.full((count + 16,), 7.0, dtype=dtype)
    out = around[8:-8].fill_(float("nan"))
    valid = bool(rule.decode(part, where, generator=_draws(), out=out))
    require_bits(part, sent, "the bytes afterwards")
    require(bool((around[:8] == 7).all() and (around[-8:] == 7).all()), "numbers around out were written to")
    require(bool(out.isfinite().all()), f"what was written is not finite: {shown(out)}")
    require(valid or not bool(out.any()), f"what is no message became {shown(out)}")
    stated = rule.size(where, dtype)
    fits = len(part) <= stated if rule.varies else len(part) == stated
    require(fits or not valid, f"{len(part)} bytes are taken for a message, and size states {stated}")
    return valid
