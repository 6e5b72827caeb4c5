"""Links: what each makes of three messages, the laws, links that are wrong on purpose, and what a mistaken argument is told."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from lightning_byz import links
from lightning_byz.compressors import Coordinates, Identity, Quantize, RandomK, ScaledSign, TopK
from lightning_byz.links import EF21, Diana, Direct, ErrorFeedback, HeavyBall, Link, Received
from lightning_byz.testing import check_link
from lightning_byz.testing.check import require_kind
from lightning_byz.testing.laws import LINK_LAWS, Law
from tests.contracts.subjects import label, seed_of


@dataclass(frozen=True)
class Forgetful(Link):
    """A user's own: error feedback that forgets a tenth of what waits."""

    at_worker = True

    def outgoing(self, state: Any, message):
        return message + 0.9 * state

    def after(self, state: Any, outgoing, decoded):
        return outgoing - decoded

    def receive(self, state: Any, decoded):
        return Received(decoded, None)


SUBJECTS: list[Link] = [
    Direct(),
    ErrorFeedback(),
    EF21(),
    Diana(),
    Diana(alpha=0.25),
    Diana(alpha=1),
    HeavyBall(),
    HeavyBall(beta=0.0),
    Forgetful(),
]
MESSAGES = torch.tensor([[3.0, -2.0, 1.0, 0.5], [2.0, -2.0, 2.0, 0.0], [-1.0, 0.0, 2.0, 3.0]])
RECORDED: dict[Link, tuple[list[list[float]], list[float] | None, list[float] | None]] = {
    Direct(): ([[3, 0, 0, 0], [2, 0, 0, 0], [0, 0, 0, 3]], None, None),
    ErrorFeedback(): ([[3, 0, 0, 0], [0, -4, 0, 0], [0, 0, 5, 0]], [1, 0, 0, 3.5], None),
    EF21(): ([[3, 0, 0, 0], [3, -2, 0, 0], [-1, -2, 0, 0]], [-1, -2, 0, 0], [-1, -2, 0, 0]),
    Diana(0.5): ([[3, 0, 0, 0], [1.5, -2, 0, 0], [1.5, -1, 0, 3]], [1.5, -1, 0, 1.5], [1.5, -1, 0, 1.5]),
    HeavyBall(0.5): ([[1.5, 0, 0, 0], [1.75, 0, 0, 0], [0.875, 0, 0, 1.5]], None, [0.875, 0, 0, 1.5]),
}
"""Behind ``TopK(k=1)``: the three rows that the rules see, and what each end remembers at last, worked out by hand."""


@pytest.mark.parametrize("link", RECORDED, ids=label)
def test_three_messages_by_hand(link: Link) -> None:
    rows, worker, rules = RECORDED[link]
    states = torch.zeros(4) if link.at_worker else None, torch.zeros(4) if link.at_rules else None
    for message, row in zip(MESSAGES, rows, strict=True):
        outgoing = link.outgoing(states[0], message.clone())
        entries = TopK(k=1).encode(outgoing, Coordinates([(4,)]), generator=torch.Generator())
        TopK(k=1).decode(
            entries.part(0, 4), Coordinates([(4,)]), generator=torch.Generator(), out=(decoded := torch.empty(4))
        )
        received = link.receive(states[1], decoded.clone())
        assert received.row.tolist() == row
        states = link.after(states[0], outgoing, decoded), received.state
    assert [None if state is None else state.tolist() for state in states] == [worker, rules]


def test_recorded_are_all_links() -> None:
    exported = {getattr(links, name) for name in links.__all__} - {Link, Received, links.Downlink}
    assert {type(link) for link in RECORDED} == exported
    assert exported <= {type(link) for link in SUBJECTS}


@pytest.mark.parametrize("law", LINK_LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("link", SUBJECTS, ids=label)
def test_links_keep_the_laws(link: Link, law: Law) -> None:
    law.hold(link, cases=40, seed=seed_of(link), settings={})


@pytest.mark.parametrize("compressor", [TopK(0.1), RandomK(0.5), ScaledSign(), Identity(), Quantize(4)], ids=label)
def test_links_keep_the_laws_behind_a_compressor(compressor) -> None:
    for link in SUBJECTS:
        try:
            link.fitted(compressor, Coordinates([(70,)]))
        except ValueError:
            continue
        check_link(link, compressor, cases=8)


class KeepsOneEnd(EF21):
    def after(self, state: Any, outgoing, decoded):
        return state + outgoing


class RemembersSilently(Direct):
    def receive(self, state: Any, decoded):
        return Received(decoded, decoded)


class NarrowsItsState(EF21):
    def receive(self, state: Any, decoded):
        return Received(state + decoded, (state + decoded).to(torch.float16))


class DropsTheLast(Direct):
    def receive(self, state: Any, decoded):
        return Received(decoded[:-1], None)


class WritesToTheMirror(EF21):
    def after(self, state: Any, outgoing, decoded):
        return state.add_(decoded).clone()


class WritesToTheAverage(HeavyBall):
    def receive(self, state: Any, decoded):
        return super().receive(state.mul_(1.0), decoded)


class Counts(Direct):
    def outgoing(self, state: Any, message):
        object.__setattr__(self, "calls", calls := getattr(self, "calls", 0) + 1)
        return message * calls


class Draws(Direct):
    def outgoing(self, state: Any, message):
        return message * (1 + torch.rand(())).to(message.dtype)


class Normalises(Direct):
    exceptions = frozenset({"message"})

    def outgoing(self, state: Any, message):
        return message / message.double().norm().clamp(min=1e-300).to(message.dtype)


class MixesRows(Direct):
    def receive(self, state: Any, decoded):
        return Received(decoded.mean(0, keepdim=True).expand_as(decoded).clone() if decoded.ndim > 1 else decoded, None)


class Follows(EF21):
    """Adds at the rules' end what the worker's end subtracts."""

    def receive(self, state: Any, decoded):
        return Received(state + decoded, state - decoded)


class Divides(Direct):
    exceptions = frozenset({"message"})

    def receive(self, state: Any, decoded):
        return Received(decoded / decoded.abs(), None)


class Halves(Direct):
    def receive(self, state: Any, decoded):
        return Received(decoded / 2, None)


class SendsTheMessage(EF21):
    """Compresses the message, and has the rules add it to the mirror."""

    def outgoing(self, state: Any, message):
        return message


WRONG: list[tuple[Any, str]] = [
    (RemembersSilently(), "link_types"),
    (NarrowsItsState(), "link_types"),
    (DropsTheLast(), "link_types"),
    (WritesToTheMirror(), "link_inputs"),
    (WritesToTheAverage(), "link_inputs"),
    (Counts(), "link_purity"),
    (Draws(), "link_purity"),
    (Normalises(), "link_elementwise"),
    (MixesRows(), "link_elementwise"),
    (KeepsOneEnd(), "link_mirrors"),
    (Follows(), "link_mirrors"),
    (Divides(), "link_finite"),
    (Halves(), "link_message"),
    (SendsTheMessage(), "link_message"),
]


@pytest.mark.parametrize(("link", "law"), WRONG, ids=lambda value: value if isinstance(value, str) else label(value))
def test_wrong_links_are_caught(link: Any, law: str) -> None:
    with pytest.raises(AssertionError, match=rf"^{type(link).__name__}\b.* breaks the law '{law}'"):
        check_link(link, laws=[law])


def test_every_law_has_a_wrong_link() -> None:
    assert {law for _, law in WRONG} == {law.name for law in LINK_LAWS}


def test_exceptions_are_data() -> None:
    assert HeavyBall.exceptions == {"message"}

    class Silent(HeavyBall):
        exceptions = frozenset()

    with pytest.raises(AssertionError, match=r"Silent\(beta=0.9\) breaks the law 'link_message'"):
        check_link(Silent())
    for link in SUBJECTS:
        assert not link.exceptions or isinstance(link, HeavyBall)


def test_what_is_no_link_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Link expected, not .*EF21.*; give an instance, EF21\(\.\.\.\)"):
        require_kind(EF21, Link, 1)
    with pytest.raises(ValueError, match="there is no law"):
        check_link(EF21(), laws=["compressor_slices"])
    with pytest.raises(ValueError, match="cases must be at least 1"):
        check_link(EF21(), cases=0)


@pytest.mark.parametrize("alpha", [0, -0.1, 1.5, True, float("nan")])
def test_a_shift_goes_a_part_of_the_way(alpha) -> None:
    with pytest.raises(ValueError, match=r"^Diana\(alpha=.*\): alpha is the part of the way"):
        Diana(alpha=alpha)


@pytest.mark.parametrize("beta", [1, -0.1, True, float("nan")])
def test_a_heavy_ball_forgets(beta) -> None:
    with pytest.raises(ValueError, match=r"^HeavyBall\(beta=.*\): beta must be in \[0, 1\)"):
        HeavyBall(beta=beta)


def test_links_take_what_they_need_of_a_compressor() -> None:
    where = Coordinates([(100,)])
    assert Diana().fitted(RandomK(0.25), where) == Diana(alpha=0.25)
    assert Diana(0.7).fitted(RandomK(0.2), where) == Diana(0.7)
    assert Diana().fitted(Identity(), where) == Diana(1.0)
    assert EF21().fitted(Identity(), where) == EF21()
    assert EF21().fitted(RandomK(0.2, scaled=False), where) == EF21()
    for compressor in (TopK(0.1), ScaledSign(), RandomK(0.2, scaled=False)):
        with pytest.raises(ValueError, match=r"link=Diana\(\) with compressor=.*this one is biased"):
            Diana().fitted(compressor, where)
    with pytest.raises(ValueError, match=r"link=EF21\(\) with compressor=.*contractive compressor: use"):
        EF21().fitted(RandomK(0.2), where)


def test_links_are_values() -> None:
    for link in SUBJECTS:
        assert link == replace(link)  # pyright: ignore[reportArgumentType]
        assert hash(link) == hash(replace(link))  # pyright: ignore[reportArgumentType]
