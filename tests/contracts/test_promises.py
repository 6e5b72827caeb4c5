"""What rules say of themselves is true: conditions, refusals, coefficients."""

import dataclasses

import pytest
import torch

from lightning_byz.aggregators import Aggregator, Mean
from lightning_byz.errors import ToleranceError
from lightning_byz.stack import Stack
from tests.contracts.subjects import ATTACKS, RULES, Behind, label

pytestmark = pytest.mark.filterwarnings("ignore:Mean tolerates")
LAWS = {"repetition", "permutation", "translation", "scaling"}


@pytest.mark.parametrize("rule", RULES, ids=label)
def test_class_data(rule: Aggregator) -> None:
    assert rule.exceptions <= LAWS
    parts = [rule.first, rule.then] if isinstance(rule, Behind) else [rule]
    for part in parts:
        assert isinstance(part.condition, str)
        assert part.condition
        assert (part.condition == "no guarantee") == part.tolerates(10, 9)


@pytest.mark.parametrize("rule", [*RULES, *ATTACKS], ids=label)
def test_rules_are_frozen_values(rule: object) -> None:
    assert dataclasses.is_dataclass(rule)
    assert hash(rule) == hash(dataclasses.replace(rule))  # pyright: ignore[reportArgumentType]
    for name in [field.name for field in dataclasses.fields(rule)][:1]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(rule, name, None)


@pytest.mark.parametrize("rule", RULES, ids=label)
def test_what_is_not_tolerated_is_refused(rule: Aggregator) -> None:
    for n in range(1, 14):
        for f in [half / 2 for half in range(2 * n)]:
            rows = torch.randn(n, 2, generator=torch.Generator().manual_seed(n))
            if rule.tolerates(n, f):
                assert f < n / 2 or isinstance(rule, Mean)
                assert rule(Stack(rows, f=f)).shape == (2,)
            else:
                with pytest.raises(ToleranceError, match=rf"f = {f:g} of the total weight W = {n}; it needs .*: lower f"):
                    rule(Stack(rows, f=f))


@pytest.mark.parametrize("rule", RULES, ids=label)
def test_a_stack_without_weight_is_refused(rule: Aggregator) -> None:
    for stack in (Stack(torch.ones(3, 2), [0, 0, 0]), Stack(torch.ones(0, 2))):
        with pytest.raises(ToleranceError, match="at least one row of positive weight"):
            rule(stack)


@pytest.mark.parametrize("rule", RULES, ids=label)
def test_no_coordinates_are_no_problem(rule: Aggregator) -> None:
    assert rule(Stack(torch.ones(6, 0), f=1)).shape == (0,)


@pytest.mark.parametrize("rule", RULES, ids=label)
def test_coefficients_explain_the_result(rule: Aggregator) -> None:
    rows = torch.randn(10, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows[3] = float("inf")
    rows[4] = 1e6
    stack = Stack(rows, [1, 1, 1, 1, 1, 1, 0, 1, 1, 1], f=2)
    result, shares = rule.explain(stack)
    assert torch.equal(result, rule(stack))
    if shares is None:
        return
    torch.testing.assert_close(float(shares.sum()), 1.0)
    assert not bool(shares[[3, 6]].any())
    torch.testing.assert_close(shares @ rows.nan_to_num(posinf=0.0), result, rtol=1e-9, atol=1e-9)
    if rule.kappa(10, 2) is not None:
        assert float(shares[4]) < 1e-3
