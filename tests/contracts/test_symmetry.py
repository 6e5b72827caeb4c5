"""Law 5: the order of the workers does not matter, and translation and scaling carry over; also what follows where all agree."""

import pytest
import torch

from lightning_byz.aggregators import Aggregator
from lightning_byz.preaggregators import NNM
from lightning_byz.stack import Stack
from tests.contracts.subjects import RULES, WEIGHTED, label

pytestmark = pytest.mark.filterwarnings("ignore:Mean tolerates")
CASES = [(1, 0.0), (2, 0.0), (5, 1.0), (6, 1.5), (9, 3.0), (12, 2.0), (17, 7.0), (33, 8.0)]


def example(n: int) -> torch.Tensor:
    rows = torch.randn(n, 7, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    rows[0] *= 1e4
    return rows


def cases(rule: Aggregator) -> list[tuple[int, float]]:
    return [(n, f) for n, f in CASES if rule.tolerates(n, f)]


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rule", [rule for rule in RULES if "permutation" not in rule.exceptions], ids=label)
def test_permutation(rule: Aggregator) -> None:
    for n, f in cases(rule):
        place = torch.randperm(n, generator=torch.Generator().manual_seed(n))
        weights = torch.rand(n, generator=torch.Generator().manual_seed(n)) + 0.5 if rule in WEIGHTED else torch.ones(n)
        if not rule.tolerates(float(weights.sum()), f):
            continue
        result, shares = rule.explain(Stack(example(n), weights, f))
        moved, moved_shares = rule.explain(Stack(example(n)[place], weights[place], f))
        close(moved, result)
        if shares is not None and moved_shares is not None:
            close(moved_shares, shares[place])


@pytest.mark.parametrize("rule", [rule for rule in RULES if "translation" not in rule.exceptions], ids=label)
def test_translation(rule: Aggregator) -> None:
    shift = torch.linspace(-1e3, 1e3, 7, dtype=torch.float64)
    for n, f in cases(rule):
        close(rule(Stack(example(n) + shift, f=f)) - shift, rule(Stack(example(n), f=f)))


@pytest.mark.parametrize("rule", [rule for rule in RULES if "scaling" not in rule.exceptions], ids=label)
@pytest.mark.parametrize("factor", [-1.0, 2.0**-90, 2.0**30])
def test_scaling(rule: Aggregator, factor: float) -> None:
    for n, f in cases(rule):
        close(rule(Stack(example(n) * factor, f=f)) / factor, rule(Stack(example(n), f=f)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", RULES, ids=label)
def test_agreement_is_kept_to_the_bit(rule: Aggregator, dtype: torch.dtype) -> None:
    row = torch.tensor([0.1, -3e4, 1e-7, 0.0, 7.0], dtype=dtype)
    for n in (1, 2, 3, 7, 10):
        for f in {0, (n - 1) // 4, (n - 1) // 2}:
            if rule.tolerates(n, f):
                assert torch.equal(rule(Stack(row.repeat(n, 1), f=f)), row)


@pytest.mark.parametrize("name", ["TrimmedMean", "CTMA(CoordinateMedian)", "Behind(first=NNM, then=CoordinateMedian)"])
def test_nothing_to_tolerate_is_the_mean(name: str) -> None:
    (rule,) = [rule for rule in RULES if label(rule) == name]
    rows = example(9).float()
    torch.testing.assert_close(rule(Stack(rows)), rows.double().mean(0).float(), rtol=2e-7, atol=0)
    assert NNM().exceptions == frozenset()
