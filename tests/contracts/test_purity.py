"""Law 6: dtype and device come out as they went in, inputs are not written to, and no global randomness is used."""

import pytest
import torch

from lightning_byz.aggregators import Aggregator
from lightning_byz.attacks import Attack
from lightning_byz.stack import Stack
from tests.contracts.subjects import ATTACKS, RULES, label

pytestmark = pytest.mark.filterwarnings("ignore:Mean tolerates")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def example(dtype: torch.dtype) -> torch.Tensor:
    rows = torch.randn(9, 300, generator=torch.Generator().manual_seed(5)).to(dtype)
    rows[2] = float("nan")
    return rows


@pytest.mark.parametrize("rule", RULES, ids=label)
def test_rules_are_pure(rule: Aggregator) -> None:
    for dtype in DTYPES:
        rows, weights = example(dtype), torch.ones(9, dtype=torch.float64)
        weights[7] = 0.0
        rows_before, weights_before, state = rows.clone(), weights.clone(), torch.get_rng_state()
        first, second = rule(Stack(rows, weights, 2)), rule(Stack(rows, weights, 2))
        assert first.dtype == dtype
        assert first.device == rows.device
        assert first.shape == (300,)
        assert torch.equal(first, second)
        assert torch.equal(rows.nan_to_num(), rows_before.nan_to_num())
        assert bool(rows[2].isnan().all())
        assert torch.equal(weights, weights_before)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("rule", RULES, ids=label)
def test_results_are_the_callers_own(rule: Aggregator) -> None:
    """Writing into a result changes neither the rows nor the next result."""
    stack = Stack(example(torch.float32).nan_to_num(), f=2)
    before = stack.vectors.clone()
    result = rule(stack)
    kept = result.clone()
    result.fill_(7.0)
    assert torch.equal(rule(stack), kept)
    assert torch.equal(stack.vectors, before)


@pytest.mark.parametrize("rule", RULES, ids=label)
def test_memory_layout_and_autograd_do_not_matter(rule: Aggregator) -> None:
    rows = example(torch.float64).nan_to_num()
    expected = rule(Stack(rows, f=2))
    transposed = rows.T.contiguous().T
    assert not transposed.is_contiguous()
    torch.testing.assert_close(rule(Stack(transposed, f=2)), expected, rtol=1e-12, atol=1e-12)
    assert not rule(Stack(rows.clone().requires_grad_(), f=2)).requires_grad
    with torch.inference_mode():
        assert torch.equal(rule(Stack(rows, f=2)), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rule(Stack(rows, f=2)), expected)


@pytest.mark.parametrize("attack", ATTACKS, ids=label)
def test_attacks_are_pure(attack: Attack) -> None:
    for dtype in DTYPES:
        rows = example(dtype).nan_to_num()
        before, state = rows.clone(), torch.get_rng_state()
        for attackers in ([8], [0, 5, 8], []):
            sent = attack.replace(Stack(rows), attackers, generator=torch.Generator().manual_seed(3))
            assert sent.dtype == dtype
            assert sent.shape == (len(attackers), 300)
            sent.fill_(3.0)
            assert torch.equal(rows, before)
            batch = [torch.ones(2)]
            assert attack.poison(batch, generator=torch.Generator()) is not None
        assert torch.equal(torch.get_rng_state(), state)
