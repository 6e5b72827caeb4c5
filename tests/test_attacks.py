"""Attacks against their formulas, also in the corners where the formulas end."""

import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from lightning_byz.attacks import ALIE, IPM, Attack, NonFinite, ReverseGradient, SignFlip
from lightning_byz.stack import Stack

TOP = torch.finfo(torch.float32).max


def sent(attack: Attack, stack: Stack, attackers: list[int]) -> Tensor:
    return attack.replace(stack, attackers, generator=torch.Generator().manual_seed(0))


def example(n: int = 9, d: int = 300) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 2


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


def test_inner_product_manipulation() -> None:
    rows = example()
    expected = -0.5 * rows[[0, 1, 3, 4, 5, 6]].mean(0)
    torch.testing.assert_close(sent(IPM(epsilon=0.5), Stack(rows), [2, 7, 8]), expected.expand(3, -1))
    weights = [1, 2, 5, 0, 0, 0, 1, 7, 7]
    expected = -0.1 * (rows[0] + 2 * rows[1] + rows[6]) / 4
    torch.testing.assert_close(sent(IPM(), Stack(rows, weights), [2, 7, 8]), expected.expand(3, -1))


def test_a_little_is_enough() -> None:
    rows = example()
    honest = rows[[0, 1, 3, 4, 5, 6]]
    expected = honest.mean(0) - 1.5 * honest.std(0)
    torch.testing.assert_close(sent(ALIE(z=1.5), Stack(rows), [2, 7, 8]), expected.expand(3, -1))
    for scale in (0.1, 3.0):
        torch.testing.assert_close(sent(ALIE(z=1.5), Stack(rows, [scale] * 9), [2, 7, 8]), expected.expand(3, -1))
    torch.testing.assert_close(sent(ALIE(z=1.5), Stack(rows.float() + 1e4), [2, 7, 8]), expected.float().expand(3, -1) + 1e4, rtol=1e-6, atol=0)


def test_a_little_is_enough_by_weight() -> None:
    rows, weights = example(5), torch.tensor([1.0, 2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    parts = weights[:4] / 3.5
    mean = parts @ rows[:4]
    variance = parts @ (rows[:4] - mean).square() / (1 - parts.square().sum())
    torch.testing.assert_close(sent(ALIE(z=1.0), Stack(rows, weights), [4])[0], mean - variance.sqrt())


@pytest.mark.parametrize(
    ("n", "attackers", "expected"),
    [(17, 8, 1.2206), (20, 9, 0.9085), (9, 4, 0.8416), (17, 3, 0.1800), (20, 5, 0.2533), (25, 5, 0.2533), (15, 3, 0.2104), (5, 1, 0.0)],
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
    torch.testing.assert_close(sent(ALIE(), Stack(example(9)), list(range(3, 9)))[0], honest.mean(0) - z * honest.std(0))


@pytest.mark.parametrize("attack", [ALIE(), IPM()])
def test_without_honest_rows_there_is_nothing_to_imitate(attack: Attack) -> None:
    rows = example(3)
    assert torch.equal(sent(attack, Stack(rows), [0, 1, 2]), rows)
    assert torch.equal(sent(attack, Stack(rows, [0, 0, 1]), [2]), rows[[2]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReverseGradient(factor=0.0), "factor must be finite and positive, not 0"),
        (lambda: ReverseGradient(factor=math.inf), "factor must be finite and positive, not inf"),
        (lambda: IPM(epsilon=-1.0), "epsilon must be finite and positive, not -1"),
        (lambda: ALIE(z=math.inf), "z must be None or a finite number, not inf"),
        (lambda: ALIE(z=math.nan), "z must be None or a finite number, not nan"),
        (lambda: NonFinite(3.0), "value must be nan, inf or -inf, not 3"),
    ],
)
def test_parameters_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
