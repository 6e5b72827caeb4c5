"""What attackers see, and attacks that expect to see it otherwise."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from lightning_byz.aggregators import CoordinateMedian
from lightning_byz.attacks import Attack, LabelFlip, Optimized, Replay, Sight, SignFlip
from lightning_byz.attacks.attack import check_signature
from lightning_byz.memory import Memory
from lightning_byz.stack import Stack
from lightning_byz.testing import check_attack
from tests.rounds import robust, take

ROWS = torch.arange(10.0).reshape(5, 2)


@dataclass(frozen=True)
class Before(Attack):
    """The interface of version 0.1."""

    strength = "size"
    size: float = 1.0

    def replace(self, stack, attackers, *, generator, defence=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        return -stack.vectors[list(attackers)]


class AsksForMore(Attack):
    def replace(self, sight, *, strength):  # pyright: ignore[reportIncompatibleMethodOverride]
        return strength * sight.own


class SeesNothing(Attack):
    def replace(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.zeros(1, 2)


class HasDefaults(Attack):
    def replace(self, sight, *, size=3.0, **rest):
        return size * sight.own


def test_own_rows_are_a_copy_in_the_order_of_the_attackers() -> None:
    sight = Sight(Stack(ROWS.clone()), [3, 0], torch.Generator())
    assert torch.equal(sight.own, ROWS[[3, 0]])
    sight.own.zero_()
    assert torch.equal(sight.stack.vectors, ROWS)
    assert Sight(Stack(ROWS), [], torch.Generator()).own.shape == (0, 2)


def test_honest_weights_are_parts_of_their_sum() -> None:
    stack = Stack(ROWS, [2, 5, 0, 1, 1])
    sight = Sight(stack, [1], torch.Generator())
    assert sight.honest_weights.tolist() == [0.5, 0.0, 0.0, 0.25, 0.25]
    assert stack.weights.tolist() == [2, 5, 0, 1, 1]
    assert replace(sight, attackers=[0, 1, 3, 4]).honest_weights.tolist() == [0.0] * 5
    assert replace(sight, attackers=[]).honest_weights.sum() == 1.0


def test_what_nobody_said() -> None:
    sight = Sight(Stack(ROWS), [1], torch.Generator())
    assert (sight.defence, sight.past, sight.ages, sight.step) == (None, {}, (), 0)


@pytest.mark.parametrize("remembers", [0, 2])
def test_a_step_shows_itself_to_the_attackers(remembers: int) -> None:
    seen: list[Sight] = []

    class Watches(Replay):
        @property
        def remembers(self) -> int:
            return remembers

        def replace(self, sight: Sight) -> torch.Tensor:
            seen.append(sight)
            return sight.own

    round, memory = robust(4, 1, CoordinateMedian(), attackers=[3, 1], attack=Watches()), Memory()
    for step in range(4):
        _, memory, _ = take(round, memory, torch.full((4, 2), float(step)), absent=[1] if step == 2 else [])
    assert [sight.step for sight in seen] == [0, 1, 2, 3]
    assert [list(sight.ages) for sight in seen] == [[0] * 4] * 4
    assert [list(sight.attackers) for sight in seen] == [[3, 1], [3, 1], [3], [3, 1]]
    past = [{worker: [float(row[0]) for row in rows] for worker, rows in sight.past.items()} for sight in seen]
    remembered = [{3: [], 1: []}, {3: [0], 1: [0]}, {3: [0, 1], 1: [0, 1]}, {3: [1, 2], 1: [0, 1]}]
    assert past == (remembered if remembers else [{}] * 4)


@pytest.mark.parametrize(
    "attack", [SignFlip(), LabelFlip(10), Replay(), HasDefaults(), Attack()], ids=lambda a: type(a).__name__
)
def test_an_attack_that_takes_a_sight_is_taken(attack: Attack) -> None:
    check_signature(attack)


@pytest.mark.parametrize(
    ("attack", "asked"),
    [
        (Before(), "stack, attackers, generator, defence"),
        (AsksForMore(), "sight, strength"),
        (SeesNothing(), ""),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize("refuse", [check_signature, check_attack])
def test_another_signature_is_refused_with_what_to_write(refuse: Any, attack: Attack, asked: str) -> None:
    with pytest.raises(TypeError) as caught:
        refuse(attack)
    assert str(caught.value) == (
        f"{type(attack).__name__}.replace takes ({asked}), but it is given one argument, a Sight: write replace(self, sight), and read"
        " sight.stack, sight.attackers, sight.generator, sight.defence, sight.past, sight.ages, sight.step, sight.mirrors"
    )


def test_an_attack_inside_another_is_looked_at_too() -> None:
    with pytest.raises(TypeError, match=r"Before\.replace takes \(stack, attackers, generator, defence\), but"):
        Optimized(Before())
