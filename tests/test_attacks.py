"""Attacks against their formulas, also in the corners where the formulas end."""

import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from lightning_byz.attacks import (
    ALIE,
    IPM,
    Attack,
    BitFlip,
    Constant,
    Gaussian,
    Mimic,
    MinMax,
    MinSum,
    NonFinite,
    Replay,
    ReverseGradient,
    Sight,
    SignFlip,
)
from lightning_byz.stack import Stack
from tests import attack_reference as reference

TOP = torch.finfo(torch.float32).max


def sent(attack: Attack, stack: Stack, attackers: list[int]) -> Tensor:
    return attack.replace(Sight(stack, attackers, torch.Generator().manual_seed(0)))


def example(n: int = 9, d: int = 300) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 2


REFERENCES = {
    SignFlip(): reference.turned(1.0),
    ReverseGradient(3.0): reference.turned(3.0),
    IPM(0.7): reference.ipm(0.7),
    Constant(2.5): reference.constant(2.5),
    ALIE(): reference.alie(None),
    ALIE(1.5): reference.alie(1.5),
    ALIE(-0.5): reference.alie(-0.5),
    Mimic(): reference.mimic,
    MinMax(): reference.min_max("std"),
    MinMax("unit"): reference.min_max("unit"),
    MinMax("sign"): reference.min_max("sign"),
    MinSum(): reference.min_sum("std"),
    MinSum("unit"): reference.min_sum("unit"),
    MinSum("sign"): reference.min_sum("sign"),
}
OMNISCIENT = [
    ALIE(),
    ALIE(1.0),
    IPM(),
    Mimic(),
    Mimic(worker=1),
    MinMax(),
    MinMax("unit"),
    MinMax("sign"),
    MinSum(),
    MinSum("unit"),
    MinSum("sign"),
]
FINITE = [*OMNISCIENT, SignFlip(), ReverseGradient(), Constant(), Gaussian(), Replay()]
ABSENT = [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0]
WEIGHTS = [
    [1.0] * 9,
    [0.25] * 9,
    ABSENT,
    [1.0, 2.0, 0.5, 3.0, 1.5, 0.1, 2.5, 1.0, 4.0],
    [2.0, 0.0, 1.0, 1.0, 0.0, 3.0, 1.0, 0.0, 2.0],
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("attack", REFERENCES, ids=str)
def test_what_is_sent_is_what_the_definition_says(attack: Attack, dtype: torch.dtype) -> None:
    for seed, weights in enumerate(WEIGHTS):
        for attackers in ([8], [3, 0], [1, 2, 4, 6], [0, 1, 3, 4, 5, 6, 7, 8]):
            generator = torch.Generator().manual_seed(seed)
            rows = (torch.randn(9, 5, generator=generator, dtype=torch.float64) + torch.linspace(-2, 2, 5)).to(dtype)
            expected = torch.tensor(REFERENCES[attack](rows.tolist(), weights, attackers), dtype=torch.float64)
            got = sent(attack, Stack(rows, weights), attackers)
            assert got.dtype == dtype
            torch.testing.assert_close(got.double(), expected, rtol=max(torch.finfo(dtype).eps, 1e-9), atol=1e-9)


def test_an_attack_does_nothing_until_it_is_written() -> None:
    rows, batch = example(), [1, 2]
    assert torch.equal(sent(Attack(), Stack(rows), [3, 0]), rows[[3, 0]])
    assert Attack().poison(batch, generator=torch.Generator()) is batch


def test_own_rows_are_turned_around() -> None:
    rows = example()
    assert torch.equal(sent(SignFlip(), Stack(rows), [8, 2]), -rows[[8, 2]])
    assert torch.equal(sent(ReverseGradient(), Stack(rows), [8, 2]), -100 * rows[[8, 2]])
    assert torch.equal(sent(ReverseGradient(factor=3), Stack(rows), [8, 2]), -3 * rows[[8, 2]])


def test_what_would_overflow_is_sent_as_the_largest_number() -> None:
    rows = torch.tensor([[TOP, -1e38], [1.0, 1.0]])
    assert sent(ReverseGradient(), Stack(rows), [0]).tolist() == [[-TOP, TOP]]
    assert sent(IPM(epsilon=50.0), Stack(rows), [1]).tolist() == [[-TOP, TOP]]
    assert bool(sent(ALIE(z=40.0), Stack(torch.tensor([[TOP], [-TOP], [0.0]])), [2]).isfinite().all())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_a_number(value: float) -> None:
    rows = sent(NonFinite(value), Stack(example()), [1, 2])
    assert rows.shape == (2, 300)
    assert bool((rows.isnan() if math.isnan(value) else rows == value).all())


def test_a_little_is_enough() -> None:
    rows = example()
    honest = rows[[0, 1, 3, 4, 5, 6]]
    expected = honest.mean(0) - 1.5 * honest.std(0)
    torch.testing.assert_close(sent(ALIE(z=1.5), Stack(rows), [2, 7, 8]), expected.expand(3, -1))
    for scale in (0.1, 3.0):
        torch.testing.assert_close(sent(ALIE(z=1.5), Stack(rows, [scale] * 9), [2, 7, 8]), expected.expand(3, -1))
    torch.testing.assert_close(
        sent(ALIE(z=1.5), Stack(rows.float() + 1e4), [2, 7, 8]), expected.float().expand(3, -1) + 1e4, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(
    ("n", "attackers", "expected"),
    [
        (17, 8, 1.2206),
        (20, 9, 0.9085),
        (9, 4, 0.8416),
        (17, 3, 0.1800),
        (20, 5, 0.2533),
        (25, 5, 0.2533),
        (15, 3, 0.2104),
        (5, 1, 0.0),
    ],
)
def test_the_default_z(n: int, attackers: int, expected: float) -> None:
    """Honest rows of mean 0 and deviation 1 at each coordinate, so that what is sent is -z."""
    honest = n - attackers
    rows = torch.randn(n, 50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows[:honest] -= rows[:honest].mean(0)
    rows[:honest] /= rows[:honest].std(0)
    got = sent(ALIE(), Stack(rows), list(range(honest, n)))
    torch.testing.assert_close(got, torch.full_like(got, -expected), atol=6e-5, rtol=0)


def test_the_default_z_where_its_formula_ends() -> None:
    for n in range(2, 12):
        for attackers in range(1, n):
            got = sent(ALIE(), Stack(example(n)), list(range(n - attackers, n)))
            mean = example(n)[: n - attackers].mean(0)
            assert bool(got.isfinite().all())
            assert bool((got <= mean + 1e-9).all()), "z is never negative"
            if n - attackers == 1:
                torch.testing.assert_close(got, mean.expand(attackers, -1))
    # two thirds attack and need one supporter among the honest
    honest = example(9)[:3]
    z = NormalDist().inv_cdf(2 / 3)
    torch.testing.assert_close(
        sent(ALIE(), Stack(example(9)), list(range(3, 9)))[0], honest.mean(0) - z * honest.std(0)
    )


@pytest.mark.parametrize("attack", OMNISCIENT, ids=str)
def test_without_honest_rows_there_is_nothing_to_imitate(attack: Attack) -> None:
    rows = example(3)
    assert torch.equal(sent(attack, Stack(rows, [1, 0, 1]), [0, 2]), rows[[0, 2]])
    assert torch.equal(sent(attack, Stack(rows, [0, 0, 1]), [2]), rows[[2]])
    if attack != Mimic(worker=1):
        assert torch.equal(sent(attack, Stack(rows), [0, 1, 2]), rows)


@pytest.mark.parametrize("attack", [ALIE(), Mimic(), MinMax(), MinMax("unit"), MinMax("sign")], ids=str)
def test_one_honest_row_or_several_that_agree_are_repeated(attack: Attack) -> None:
    rows = example(4)
    rows[2] = rows[1]
    torch.testing.assert_close(sent(attack, Stack(rows), [0, 3]), rows[[1, 1]])
    torch.testing.assert_close(sent(attack, Stack(rows, [1, 0, 1, 1]), [0, 3]), rows[[1, 1]])


@pytest.mark.parametrize("attack", [attack for attack in OMNISCIENT if attack != ALIE()], ids=str)
def test_absent_rows_do_not_count(attack: Attack) -> None:
    rows, weights = example().float(), [1, 1, 1, 0, 1, 1, 0, 1, 1]
    present = rows[[0, 1, 2, 4, 5, 7, 8]]
    expected = sent(attack, Stack(present), [5, 6])
    rows[[3, 6]] = 3e38
    torch.testing.assert_close(sent(attack, Stack(rows, weights), [7, 8]), expected)


@pytest.mark.parametrize(
    "attack",
    [ALIE(), ALIE(2.0), IPM(), Mimic(), MinMax(), MinMax("unit"), MinSum(), MinSum("unit"), ReverseGradient(3.0)],
    ids=str,
)
@pytest.mark.parametrize("scale", [2.0**470, 2.0**100, 2.0**-400])
def test_scale_carries_over(attack: Attack, scale: float) -> None:
    torch.testing.assert_close(
        sent(attack, Stack(example() * scale), [2, 7]) / scale,
        sent(attack, Stack(example()), [2, 7]),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("attack", FINITE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_huge_rows_give_finite_ones(attack: Attack, dtype: torch.dtype) -> None:
    top = min(torch.finfo(dtype).max, 2.0**480)
    rows = (example().sign() * top).to(dtype)
    rows[1], rows[4] = top, -top
    for attackers in ([0, 3], [0, 2, 3, 5, 6, 7, 8], [3], []):
        got = sent(attack, Stack(rows), attackers)
        assert got.shape == (len(attackers), 300)
        assert got.dtype == dtype
        assert bool(got.isfinite().all())


@pytest.mark.parametrize("attack", [*FINITE, BitFlip(), NonFinite()], ids=str)
def test_no_coordinates_are_no_problem(attack: Attack) -> None:
    assert sent(attack, Stack(torch.ones(5, 0)), [2, 3]).shape == (2, 0)


@pytest.mark.parametrize("kind", ["std", "unit", "sign"])
def test_as_far_as_the_bound_and_no_further(kind) -> None:
    """The bound holds with equality, also where the honest rows have a large part in common."""
    for shift in (0.0, 1e6):
        rows = example() + shift
        honest = rows[:7]
        apart = torch.cdist(honest, honest, compute_mode="donot_use_mm_for_euclid_dist")
        reach = (honest - sent(MinMax(kind), Stack(rows), [7, 8])[0]).norm(dim=1)
        torch.testing.assert_close(reach.max(), apart.max(), rtol=1e-7, atol=0)
        reach = (honest - sent(MinSum(kind), Stack(rows), [7, 8])[0]).norm(dim=1)
        torch.testing.assert_close(reach.square().sum(), apart.square().sum(1).max(), rtol=1e-7, atol=0)


def test_equals_are_told_apart_by_their_ids() -> None:
    """Two honest rows are equally far from their mean, whatever rounding says."""
    for seed in range(30):
        rows = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(sent(Mimic(), Stack(rows), [2])[0], rows[0])
