"""Law 3: integer weights are repeated rows, no weight is absence, and only proportions count."""

import pytest
import torch

from lightning_byz.aggregators import Aggregator
from lightning_byz.stack import Stack
from tests.contracts.subjects import RULES, WEIGHTED, label

pytestmark = pytest.mark.filterwarnings("ignore:Mean tolerates")
CASES = [(n, f) for n in (1, 3, 5, 8, 12) for f in (0.0, 0.5, 1.0, 1.7, 2.0, 4.0)]


def example(n: int, seed: int) -> torch.Tensor:
    rows = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 10
    rows[0] *= 1e3
    return rows


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rule", [rule for rule in WEIGHTED if "repetition" not in rule.exceptions], ids=label)
def test_integer_weight_is_repetition(rule: Aggregator) -> None:
    for seed, (n, f) in enumerate(CASES * 2):
        weights = torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(seed))
        total, present = int(weights.sum()), int((weights > 0).sum())
        # two rows are equally far from any rule between them: a tie, broken by rounding
        if present in (0, 2) or not rule.tolerates(total, f):
            continue
        rows = example(n, seed)
        close(rule(Stack(rows, weights, f)), rule(Stack(rows.repeat_interleave(weights, 0), f=f)))


@pytest.mark.parametrize("rule", RULES, ids=label)
def test_no_weight_is_absence(rule: Aggregator) -> None:
    for seed, (n, f) in enumerate(CASES):
        absent = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.4
        if bool(absent.all()) or not rule.tolerates(int((~absent).sum()), f):
            continue
        rows = example(n, seed)
        rows[absent] = torch.tensor([1e200, float("nan"), 3.0, 0.0, -7.0, float("inf")], dtype=torch.float64)
        result, shares = rule.explain(Stack(rows, (~absent).double(), f))
        close(result, rule(Stack(rows[~absent], f=f)))
        assert shares is None or not bool(shares[absent].any())


@pytest.mark.parametrize("rule", WEIGHTED, ids=label)
@pytest.mark.parametrize("scale", [0.1, 1 / 7, 1e-3, 3.0, 1e12])
def test_only_proportions_count(rule: Aggregator, scale: float) -> None:
    for seed, (n, f) in enumerate(CASES):
        rows, generator = example(n, seed), torch.Generator().manual_seed(seed)
        for weights in (torch.ones(n).double(), torch.randint(1, 4, (n,), generator=generator).double()):
            if rule.tolerates(float(weights.sum()), f):
                close(rule(Stack(rows, weights * scale, f * scale)), rule(Stack(rows, weights, f)))


@pytest.mark.parametrize("rule", WEIGHTED, ids=label)
def test_slivers_of_huge_rows_do_not_count(rule: Aggregator) -> None:
    """Weights whose sums are off by rounding leave nothing of a row that is trimmed."""
    if rule.kappa(10, 3) is None:
        return
    for weight in (0.1, 1 / 7, 1e-3, 0.7):
        rows = torch.cat([example(10, 3)[3:].float(), torch.full((3, 6), 3e38)])
        result = rule(Stack(rows, [weight] * 10, f=weight + weight + weight))
        assert float(result.abs().max()) < 20
        result = rule(Stack(rows, [weight] * 9 + [weight * (1 + 1e-12)], f=3 * weight))
        assert float(result.abs().max()) < 20
