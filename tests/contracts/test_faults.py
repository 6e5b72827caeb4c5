"""Law 4: whatever the rows of f workers hold, the result is finite, and near the honest mean where a bound is known."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from lightning_byz.aggregators import Aggregator, Mean
from lightning_byz.errors import TooManyFaults
from lightning_byz.stack import Stack
from tests.contracts.inputs import COALITIONS, HONEST, coalition, normal, sizes
from tests.contracts.subjects import RULES, WEIGHTED, label

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
pytestmark = pytest.mark.filterwarnings("ignore:Mean tolerates")


def seeded(*key: object) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(repr(key).encode()[-7:], "big"))


def check(rule: Aggregator, result: Tensor, rows: Tensor, shares: Tensor, f: float) -> None:
    """``result`` is finite, and within the bound for the rows counted by ``shares``, which sum to ``W - f``."""
    assert bool(result.isfinite().all()), "not finite"
    kappa = rule.kappa(float(shares.sum()) + f, f)
    if kappa is None:
        return
    wide, shares = rows.double(), shares / shares.sum()
    centre = shares @ wide
    variance = float((shares @ (wide - centre).square()).sum())
    error, limits = float((result.double() - centre).norm()), torch.finfo(rows.dtype)
    rounding = 4 * limits.eps * float(wide.abs().max()) + limits.smallest_normal * limits.eps
    # in float64, what is smaller than the root of the smallest number is zero once squared
    unseen = 1e-150 if rows.dtype == torch.float64 else 0.0
    assert error <= math.sqrt(kappa * variance) * (1 + 1e-9) + (rounding + unseen) * math.sqrt(rows.shape[1]), (error, kappa, variance)


def filled(weights: Tensor, order: Tensor, budget: float) -> Tensor:
    """Weights in the given order up to a sum of ``budget``."""
    ordered = weights[order]
    kept = torch.minimum(ordered, budget - (ordered.cumsum(0) - ordered)).clamp(min=0)
    return torch.zeros_like(weights).scatter(0, order, kept)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=label)
def test_attackers_within_f(rule: Aggregator, dtype: torch.dtype) -> None:
    generator = seeded("faults", label(rule), dtype)
    for (family, honest_rows), (n, attackers) in zip(list(HONEST.items()) * 8, sizes(generator), strict=False):
        d = int(torch.randint(1, 9, (1,), generator=generator))
        honest = honest_rows(n - attackers, d, dtype, generator)
        bad = coalition(honest, attackers, generator)
        f = attackers + float(torch.rand(1, generator=generator)) * ((n - 1) / 2 - attackers) * float(torch.randint(2, (1,), generator=generator))
        place = torch.randperm(n, generator=generator)
        rows = torch.cat([honest, bad])[place.argsort()]
        if not rule.tolerates(n, f):
            continue
        result = rule(Stack(rows, f=f))
        shares = filled(torch.ones(n - attackers).double(), torch.randperm(n - attackers, generator=generator), n - f)
        try:
            check(rule, result, honest, shares, f)
        except AssertionError as error:
            raise AssertionError(f"{family}, n={n}, f={f}, attackers {attackers}, d={d}: {error}") from error


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.kappa(5, 1) is not None], ids=label)
def test_bound_for_every_choice_of_honest_rows(rule: Aggregator) -> None:
    generator = seeded("choices", label(rule))
    for n, f in [(count, bad) for count in range(1, 8) for bad in range((count + 1) // 2)] * 2:
        if not rule.tolerates(n, f):
            continue
        honest = normal(n - f, 3, generator)
        rows = torch.cat([honest, coalition(honest, f, generator)])
        usable = [row for row in range(n) if bool((rows[row].abs() <= 2.0**480).all())]
        result = rule(Stack(rows, f=f))
        for chosen in itertools.combinations(usable, n - f):
            check(rule, result, rows[list(chosen)], torch.ones(n - f).double(), float(f))


@pytest.mark.parametrize("rule", WEIGHTED, ids=label)
def test_attackers_within_f_by_weight(rule: Aggregator) -> None:
    generator = seeded("weights", label(rule))
    choices = torch.tensor([0.1, 1 / 7, 1e-3, 1.0, 3.0, 0.0], dtype=torch.float64)
    for honest_rows, (n, attackers) in zip(list(HONEST.values()) * 8, sizes(generator, 17), strict=False):
        weights = choices[torch.randint(len(choices), (n,), generator=generator)]
        honest = honest_rows(n - attackers, 4, torch.float32, generator)
        rows = torch.cat([honest, coalition(honest, attackers, generator)])
        f, total = float(weights[n - attackers :].sum()), float(weights.sum())
        if total == 0 or not rule.tolerates(total, f):
            continue
        result = rule(Stack(rows, weights, f))
        shares = filled(weights[: n - attackers], torch.randperm(n - attackers, generator=generator), total - f)
        check(rule, result, honest, shares, f)


@pytest.mark.parametrize("name", COALITIONS)
@pytest.mark.parametrize("rule", RULES, ids=label)
def test_each_coalition_alone(rule: Aggregator, name: str) -> None:
    generator = seeded("alone", label(rule), name)
    honest = normal(11, 5, generator).float()
    rows = torch.cat([COALITIONS[name](honest, 3, generator), honest])
    check(rule, rule(Stack(rows, f=3)), honest, torch.ones(11).double(), 3.0)


@pytest.mark.parametrize("rule", RULES, ids=label)
def test_one_attacker_too_many_is_noticed_or_breaks_it(rule: Aggregator) -> None:
    """The bound has teeth: broken rows beyond f are refused, and a huge coalition beyond f moves every rule that has a bound."""
    rows = torch.randn(9, 3, generator=seeded("sharp")).double()
    rows[:3] = float("nan")
    with pytest.raises(TooManyFaults, match=r"rows \[0, 1, 2\].* weigh 3 together.*f = 2"):
        rule(Stack(rows, f=2))
    if rule.kappa(9, 2) is not None:
        rows[:5] = 1e9
        rows[5:] = rows[5]
        with pytest.raises(AssertionError):
            check(rule, rule(Stack(rows, f=2)), rows[5:], torch.tensor([1.75] * 4).double(), 2.0)


def test_the_mean_breaks() -> None:
    """One huge row moves the mean, so the bound that the others keep is not empty."""
    honest = normal(8, 3, seeded("mean"))
    rows = torch.cat([honest, torch.full((1, 3), 1e9, dtype=torch.float64)])
    result = Mean()(Stack(rows, f=1))
    assert float((result - honest.mean(0)).norm()) > 1e8


def test_rows_of_very_different_size() -> None:
    """Rows of 3e38, 1e10 and 1: the choice among the small ones is that of the small ones alone."""
    generator = seeded("magnitudes")
    honest = normal(8, 6, generator).float()
    rows = torch.cat([torch.full((1, 6), 3e38), torch.full((2, 6), 1e10), honest])
    for rule in RULES:
        if rule.kappa(11, 3) is not None:
            check(rule, rule(Stack(rows, f=3)), honest, torch.ones(8).double(), 3.0)
