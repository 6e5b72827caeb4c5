"""The search for the strength that hurts most."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian, GeometricMedian, Krum, TrimmedMean
from lightning_byz.attacks import (
    ALIE,
    IPM,
    Attack,
    Constant,
    Gaussian,
    LabelFlip,
    MinMax,
    Optimized,
    Replay,
    ReverseGradient,
    Sight,
    SignFlip,
)
from lightning_byz.errors import TooManyFaults
from lightning_byz.preaggregators import NNM
from lightning_byz.stack import Stack
from lightning_byz.testing.cutting import on_slices

ATTACKERS = [1, 6]
GRID = [0.1 * 100 ** (power / 9) for power in range(10)]


@dataclass(frozen=True)
class Behind(Aggregator):
    """CTMA behind NNM."""

    def __call__(self, stack: Stack, *, generator: torch.Generator | None = None) -> Tensor:
        return CTMA(CoordinateMedian())(NNM()(stack))


@dataclass(frozen=True)
class Along(Attack):
    """Sends its strength at every coordinate, and records what it was given."""

    size: float = 1.0

    strength = "size"

    @property
    def remembers(self) -> int:
        return 2

    def poison(self, batch: Any, *, generator: torch.Generator) -> Any:
        return [batch]

    def replace(self, sight: Sight) -> Tensor:
        assert (sight.past, sight.ages, sight.step) == ({1: ()}, [3] * 9, 7)
        return torch.full_like(sight.own, float(self.size))


def example(dtype: torch.dtype = torch.float64) -> Stack:
    rows = torch.randn(9, 300, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 0.5
    return Stack(rows.to(dtype), [1, 1, 1.5, 1, 1, 0.5, 1, 0, 1], f=2)


def sent(attack: Attack, stack: Stack, defence: Any) -> Tensor:
    return attack.replace(Sight(stack, ATTACKERS, torch.Generator().manual_seed(7), defence))


def distance(stack: Stack, rows: Tensor, defence: Any) -> float:
    """Of the defence's result from the mean of the honest rows."""
    vectors, weights = stack.vectors.clone(), stack.weights.clone()
    weights[ATTACKERS] = 0.0
    mean = weights @ vectors.double() / weights.sum()
    vectors[ATTACKERS] = rows
    return float((defence(Stack(vectors, stack.weights, stack.f)).double() - mean).norm())


def hurt(attack: Attack, defence: Any, stack: Stack | None = None) -> float:
    stack = stack or example()
    return distance(stack, sent(attack, stack, defence), defence)


@pytest.mark.parametrize("defence", [CoordinateMedian(), TrimmedMean(), GeometricMedian(), Behind()], ids=str)
@pytest.mark.parametrize("attack", [ALIE(), IPM(), ReverseGradient(), Gaussian()], ids=str)
def test_no_fixed_strength_hurts_more(attack: Any, defence: Any) -> None:
    best = hurt(Optimized(attack), defence)
    field = attack.strength
    fixed = {strength: hurt(replace(attack, **{field: strength}), defence) for strength in GRID}
    fine = [hurt(replace(attack, **{field: 0.1 * 100 ** (power / 150)}), defence) for power in range(151)]
    assert best >= max(fixed.values()) * (1 - 1e-12)
    assert best >= max(fine) * 0.97
    assert best >= hurt(attack, defence) * (1 - 1e-12)
    assert max(fixed.values()) > 1.0001 * min(fixed.values()), "otherwise nothing was searched"


def test_it_hurts_more_than_the_default() -> None:
    for attack, defence, factor in (
        (ALIE(), CoordinateMedian(), 1.2),
        (ALIE(), Behind(), 1.2),
        (IPM(), CoordinateMedian(), 1.2),
        (IPM(), Behind(), 1.05),
    ):
        assert hurt(Optimized(attack), defence) > factor * hurt(attack, defence)


def test_a_maximum_inside_the_bounds_is_found() -> None:
    """The damage of a constant row grows up to the strength at which the defence stops taking it, here 3.7, and is zero beyond."""
    stack, tried = example(), []

    def defence(stack: Stack) -> Tensor:
        size = float(stack.vectors[1, 0])
        tried.append(size)
        return (
            stack.vectors[1]
            if size < 3.7
            else stack.vectors[[0, 2, 3, 4, 5, 8]].T @ (stack.weights[[0, 2, 3, 4, 5, 8]] / 6)
        )

    for evaluations, within in ((3, 4.0), (6, 2.0), (20, 0.15), (40, 0.005)):
        tried.clear()
        size = float(sent(Optimized(Constant(1.0), evaluations=evaluations), stack, defence)[0, 0])
        assert 3.7 - within < size < 3.7
        assert evaluations // 2 < len(tried) <= evaluations
        assert size == max(number for number in tried if number < 3.7)
    tried.clear()
    size = float(sent(Optimized(Constant(1.0), low=2.0, high=3.0), stack, defence)[0, 0])
    assert size == 3.0
    assert all(number == 1.0 or 2.0 <= number <= 3.0 for number in tried)


def test_the_attack_as_given_is_sent_where_no_other_hurts_more() -> None:
    stack = example()

    def refusing(stack: Stack) -> Tensor:
        raise TooManyFaults("all of them")

    assert torch.equal(sent(Optimized(ReverseGradient(0.37)), stack, refusing), -0.37 * stack.vectors[ATTACKERS])
    assert torch.equal(
        sent(Optimized(Constant(1000.0)), stack, lambda stack: stack.vectors[1]), torch.full((2, 300), 1000.0).double()
    )


def test_what_a_refusing_defence_takes_is_all_that_counts() -> None:
    def careful(stack: Stack) -> Tensor:
        if float(stack.vectors[1].abs().max()) > 5:
            raise TooManyFaults("too long")
        return stack.vectors[1]

    assert 3.0 < float(sent(Optimized(Constant(50.0)), example(), careful).max()) <= 5.0


def test_not_a_number_is_the_greatest_damage() -> None:
    def broken(stack: Stack) -> Tensor:
        return stack.vectors[1] * (math.nan if 2 < float(stack.vectors[1, 0]) < 9 else 1)

    assert 2 < float(sent(Optimized(Constant(1.0)), example(), broken).max()) < 9


def test_the_sign_of_the_attack_is_kept() -> None:
    assert float(sent(Optimized(Constant(-1.0)), example(), lambda stack: stack.vectors[1]).max()) == -10.0
    above = sent(Optimized(ALIE(z=-1.0)), example(), CoordinateMedian())
    assert bool((above >= sent(ALIE(z=-0.1), example(), CoordinateMedian())).all())


def test_every_strength_sees_the_same_draws() -> None:
    stack, generator = example(), torch.Generator().manual_seed(7)
    before = generator.get_state()
    noise = Optimized(Gaussian(1.0)).replace(Sight(stack, ATTACKERS, generator, lambda stack: stack.vectors[1]))
    torch.testing.assert_close(noise / 10, sent(Gaussian(1.0), stack, None))
    assert torch.equal(generator.get_state(), before)


def test_all_that_attackers_see_and_batches_are_handed_on() -> None:
    attack = Optimized(Along())
    assert attack.remembers == 2
    assert Optimized(ALIE()).remembers == 0
    assert attack.poison(3, generator=torch.Generator()) == [3]
    sight = Sight(example(), ATTACKERS, torch.Generator(), lambda stack: stack.vectors[1], {1: ()}, [3] * 9, 7)
    rows = attack.replace(sight)
    assert float(rows.max()) == 10.0


@pytest.mark.parametrize("defence", [CoordinateMedian(), Behind(), Krum()], ids=str)
def test_slices_send_the_bits_of_the_whole(defence) -> None:
    for attack in (Optimized(ALIE()), Optimized(Gaussian())):
        for dtype in (torch.float64, torch.bfloat16):
            stack = replace(example(dtype), weights=torch.ones(9).double())
            pieces = on_slices(lambda part, attack=attack: sent(attack, part, defence), stack, [0, 64, 64, 256, 300])
            assert torch.equal(torch.cat(pieces, dim=1), sent(attack, stack, defence))


def test_nobody_to_hurt() -> None:
    stack = example()
    alone = Optimized(ALIE()).replace(Sight(stack, list(range(9)), torch.Generator(), CoordinateMedian()))
    assert torch.equal(alone, stack.vectors)
    assert sent(Optimized(ALIE()), Stack(torch.ones(9, 0), f=2), CoordinateMedian()).shape == (2, 0)


@pytest.mark.parametrize(
    "attack",
    [SignFlip(), Replay(), MinMax(), LabelFlip(10), Optimized(ALIE()), Attack()],
    ids=lambda attack: type(attack).__name__,
)
def test_only_attacks_with_a_strength_are_taken(attack: Attack) -> None:
    with pytest.raises(TypeError, match="attack must be one whose class names a field as its strength"):
        Optimized(attack)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"needs to know it: Sight\(..., defence=rule\)"):
        sent(Optimized(ALIE()), example(), None)
    for low, high in ((0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (1.0, math.inf)):
        with pytest.raises(ValueError, match=rf"low and high must be finite with 0 < low < high, not {low} and {high}"):
            Optimized(ALIE(), low=low, high=high)
    with pytest.raises(ValueError, match="evaluations must be a whole number >= 3, not 2"):
        Optimized(ALIE(), evaluations=2)
