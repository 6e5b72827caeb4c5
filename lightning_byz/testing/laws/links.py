"""What every link keeps to: two ends that agree, elementwise arithmetic, and rows that are the messages where nothing is lost."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_byz.compressors import Compressor, Coordinates, Identity, Quantize, RandomK, ScaledSign, TopK
from lightning_byz.inside_torch import version
from lightning_byz.links import Link
from lightning_byz.random import Streams, generator
from lightning_byz.testing.case import Broken, Case, NothingToCheck, gap, require, require_bits, shown
from lightning_byz.testing.law import law
from lightning_byz.testing.rows import DTYPES
from lightning_byz.testing.running import Watch

Change = Callable[[Tensor], Tensor]
_LENGTHS = [70, 1, 7, 1003, 64]
_COMPRESSORS = [Identity(), TopK(0.3), RandomK(0.5), RandomK(0.3, scaled=False), ScaledSign(), Quantize(4)]


class Step(NamedTuple):
    """What one message becomes.

    Args:
        states: What both ends remembered before: the worker's, the rules'.
        message: What is to be sent; ``outgoing`` is compressed of it, ``decoded`` read.
        row: What the rules see.
        left: What both ends remember next.

    """

    states: tuple[Tensor | None, Tensor | None]
    message: Tensor
    outgoing: Tensor
    decoded: Tensor
    row: Tensor
    left: tuple[Tensor | None, Tensor | None]


def _dtype(case: Case) -> torch.dtype:
    return DTYPES[case.seed % len(DTYPES)]


def _drawn(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """A few messages of one worker."""
    d, steps = _LENGTHS[case.seed % len(_LENGTHS)], case.whole(1, 5)
    case.note(d=d, dtype=dtype, steps=steps)
    return [case.normal(d).to(dtype) for _ in range(steps)]


def _suited(link: Link, case: Case, d: int) -> tuple[Link, Compressor]:
    """The link as it is behind a compressor that suits it: the caller's, or one of the library's."""
    own, where = case.settings.get("compressor"), Coordinates([(d,)])
    choices = [own] if own is not None else [_COMPRESSORS[place] for place in case.order(len(_COMPRESSORS)).tolist()]
    for compressor in choices:
        try:
            compressor.check(where)
            fitted = link.fitted(compressor, where)
        except ValueError:
            continue
        case.note(compressor=compressor)
        return fitted, compressor
    if own is None:
        raise ValueError("none of the library's compressors suits it: give one that does, compressor=")
    raise NothingToCheck


def _read(compressor: Compressor, outgoing: Tensor, dtype: torch.dtype, step: int) -> Tensor:
    """What comes of it through bytes."""
    where, narrow = Coordinates([(outgoing.numel(),)]), outgoing.to(dtype)
    part = compressor.encode(narrow, where, generator=generator(step)).part(0, where.total)
    out = torch.empty_like(narrow)
    compressor.decode(part, where, generator=generator(step), out=out)
    return out


def _followed(link: Link, compressor: Compressor, messages: Sequence[Tensor]) -> list[Step]:
    """Each message's way, accepted each time."""
    like = messages[0]
    blank = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
    worker, rules = blank if link.at_worker else None, blank.clone() if link.at_rules else None
    steps = []
    for place, message in enumerate(messages):
        outgoing = link.outgoing(worker, message.clone())
        decoded = _read(compressor, outgoing, message.dtype, place)
        after = link.after(worker, outgoing.clone(), decoded.clone())
        row, state = link.receive(rules, decoded.clone())
        steps.append(Step((worker, rules), message, outgoing, decoded, row, (after, state)))
        worker, rules = after, state
    return steps


def _made(link: Link, step: Step, change: Change = torch.clone) -> dict[str, Tensor | None]:
    """What the link makes of a step's arguments, each of them changed."""
    given = (*step.states, step.message, step.outgoing, step.decoded)
    worker, rules, *arguments = (None if values is None else change(values) for values in given)
    message, outgoing, decoded = (values for values in arguments if values is not None)
    row, state = link.receive(rules, decoded.clone())
    after = link.after(worker, outgoing.clone(), decoded.clone())
    return {
        "outgoing": link.outgoing(worker, message.clone()),
        "after": after,
        "the row": row,
        "the rules' state": state,
    }


def _known(step: Step) -> dict[str, Tensor | None]:
    return {"outgoing": step.outgoing, "after": step.left[0], "the row": step.row, "the rules' state": step.left[1]}


def _require_same(seen: Mapping[str, Tensor | None], wanted: Mapping[str, Tensor | None], what: str) -> None:
    for name, values in wanted.items():
        one = seen[name]
        require((one is None) == (values is None), f"{name} is {'no tensor' if one is None else 'a tensor'} {what}")
        if one is not None and values is not None:
            require_bits(one, values, f"{name} {what}")


def _each(made: Mapping[str, Tensor | None], change: Change) -> dict[str, Tensor | None]:
    return {name: None if values is None else change(values) for name, values in made.items()}


@law(
    "an end remembers a vector where the class says so, of the dtype that it starts with, and rows are vectors",
    part=0.3,
)
def link_types(link: Link, case: Case) -> None:
    """Of the message's shape and device; states start in float32, or wider for wider messages."""
    messages = _drawn(case, _dtype(case))
    like = messages[0]
    link, compressor = _suited(link, case, like.numel())
    for step in _followed(link, compressor, messages[:2]):
        ends = [("after returns", link.at_worker), ("receive leaves the rules' end", link.at_rules)]
        for (what, here), state in zip(ends, step.left, strict=True):
            told = "a vector" if isinstance(state, Tensor) else repr(state)
            require(isinstance(state, Tensor) == here, f"{what} {told}, and at_worker or at_rules is {here}")
        vectors = {"outgoing": step.outgoing, "the row": step.row, "after": step.left[0], "the state": step.left[1]}
        for name, values in vectors.items():
            alike = values is None or (values.shape == like.shape and values.device == like.device)
            require(alike, f"{name} is {None if values is None else shown(values)}, and the message {shown(like)}")
        wide = torch.promote_types(like.dtype, torch.float32)
        for state in step.left:
            require(
                state is None or state.dtype == wide,
                f"a state of {wide} became {None if state is None else shown(state)}",
            )


@law("states are not written to", part=0.3)
def link_inputs(link: Link, case: Case) -> None:
    """A step that is not taken goes on from the states that were passed in."""
    messages = _drawn(case, _dtype(case))
    link, compressor = _suited(link, case, messages[0].numel())
    *_, step = _followed(link, compressor, messages)
    given = dict(zip(("the worker's state", "the rules' state"), step.states, strict=True))
    given = {name: values.clone() for name, values in given.items() if values is not None}
    before = {name: (values.clone(), version(values)) for name, values in given.items()}
    states = given.get("the worker's state"), given.get("the rules' state")
    _made(link, Step(states, *step[1:]), lambda values: values)
    for name, (kept, written) in before.items():
        require_bits(given[name], kept, f"{name} after the call")
        require(version(given[name]) == written, f"{name} was written to, perhaps the numbers that were there")


@law("what a link makes follows from its arguments alone", part=0.3)
def link_purity(link: Link, case: Case) -> None:
    """Beside other messages, in another random state; global random state is left alone."""
    messages, watch = _drawn(case, _dtype(case)), Watch()
    link, compressor = _suited(link, case, messages[0].numel())
    steps = _followed(link, compressor, messages)
    watch.require_untouched()
    with Streams(torch.device("cpu")).inside(case.seed):
        for step in steps:
            _made(link, step, lambda values: -3 * values)
            _require_same(_made(link, step), _known(step), "a second time")


@law(
    "coordinates are treated alike: slices, several rows at once and another order give the bits of the whole", part=0.5
)
def link_elementwise(link: Link, case: Case) -> None:
    """At both ends."""
    messages = _drawn(case, _dtype(case))
    d = messages[0].numel()
    cut, order = case.whole(0, d), case.order(d)
    case.note(cut=cut)
    link, compressor = _suited(link, case, d)
    changes: dict[str, Change] = {
        f"of the first {cut} coordinates": lambda values: values[:cut].clone(),
        f"of all but the first {cut} coordinates": lambda values: values[cut:].clone(),
        "in another order of the coordinates": lambda values: values[order],
    }
    for step in _followed(link, compressor, messages):
        whole, opposite = _known(step), _made(link, step, torch.neg)
        for what, change in changes.items():
            _require_same(_made(link, step, change), _each(whole, change), what)
        both = _made(link, step, lambda values: torch.stack([values, -values]))
        for place, alone in enumerate((whole, opposite)):
            own = _each(both, lambda values, place=place: values[place].contiguous())
            _require_same(own, alone, f"of row {place} of two at once")


@law("both ends remember the same bits", where=lambda link: link.at_worker and link.at_rules, part=0.5)
def link_mirrors(link: Link, case: Case) -> None:
    """So that what one end adds is what the other one expects."""
    messages = _drawn(case, _dtype(case))
    link, compressor = _suited(link, case, messages[0].numel())
    for place, (*_, (worker, rules)) in enumerate(_followed(link, compressor, messages)):
        if worker is None or rules is None:
            raise Broken("an end remembers nothing")
        what = f"what the worker's end remembers after message {place}, and the rules' end beside it"
        require_bits(worker, rules, what)


@law("finite numbers stay finite", part=0.5)
def link_finite(link: Link, case: Case) -> None:
    """Of messages whose squares are finite, at any size, that grow and shrink from step to step; zeros among them."""
    dtype = _dtype(case)
    messages = _drawn(case, dtype)
    link, compressor = _suited(link, case, messages[0].numel())
    most = float(torch.finfo(dtype).max) ** 0.5 / 64
    for message in messages:
        size = case.one_of([most, 1.0, float(torch.finfo(dtype).tiny), 0.0])
        message.copy_((message.double().clamp(-4, 4) * size / 4).to(dtype))
    for place, step in enumerate(_followed(link, compressor, messages)):
        for name, values in _known(step).items():
            finite = values is None or bool(values.isfinite().all())
            require(finite, f"{name} of message {place} is not finite: {None if values is None else shown(values)}")


@law("where nothing is lost on the way, the rules see the message, to rounding", exception="message", part=0.5)
def link_message(link: Link, case: Case) -> None:
    """Through ``Identity``, whatever came before."""
    messages = _drawn(case, _dtype(case))
    d = messages[0].numel()
    try:
        link = link.fitted(Identity(), Coordinates([(d,)]))
    except ValueError:
        raise NothingToCheck from None
    steps = _followed(link, Identity(), messages)
    tolerance = 4 * len(messages) * torch.finfo(messages[0].dtype).eps
    size = max(1.0, *(float(step.message.double().abs().max()) for step in steps))
    for place, step in enumerate(steps):
        apart = gap(step.row.double() / size, step.message.double() / size)
        require(apart <= tolerance, f"of message {place}, {shown(step.message)}, the rules see {shown(step.row)}")
