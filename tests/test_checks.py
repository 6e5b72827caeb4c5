"""What checks types and shapes in the package while tests run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jaxtyping
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.kernels import blocks
from tests import jaxtyped


def scaled(rows: Float[Tensor, "n d"], factors: Float[Tensor, " n"], gone: int = 0) -> Float[Tensor, "n d"]:
    return (rows * factors[:, None])[gone:]


def adder(amount: Any, kind: type = int) -> Callable:
    @jaxtyped(typechecker=None)
    def add(number: kind, *, more: float = amount) -> kind:
        return number + more + amount

    return add


@dataclass
class Pair:
    first: Float[Tensor, " n"]
    second: Float[Tensor, " n"]


def refused(call: Callable, *args: Any, **keywords: Any) -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        call(*args, **keywords)


def test_one_name_is_one_size_in_a_call():
    checked = jaxtyped(scaled, typechecker=None)
    assert checked(torch.ones(3, 2), torch.ones(3)).shape == (3, 2)
    assert checked(torch.ones(4, 2), torch.ones(4)).shape == (4, 2)
    refused(checked, torch.ones(3, 2), torch.ones(2))
    refused(checked, torch.ones(3, 2), torch.ones(3), 1)  # the result has fewer rows
    refused(checked, torch.ones(3, 2, dtype=torch.int64), torch.ones(3))


def test_each_closure_is_itself_and_checked():
    first, second = adder(1), adder(20)
    assert [first(1), second(1), second(1, more=2), first(1)] == [3, 41, 23, 3]
    for one in (first, second, adder(0)):
        refused(one, "1")
        refused(one, 1, more="2")
    refused(second, 1, more=0.5)  # the result is no int


def test_closures_with_other_annotations_are_checked_by_their_own():
    adder(1)
    text = adder("b", str)
    refused(text, 1)


def test_dataclasses_are_checked():
    checked = jaxtyped(Pair, typechecker=None)
    assert checked(torch.ones(2), torch.ones(2)).first.shape == (2,)
    refused(checked, torch.ones(2), torch.ones(3))


def test_it_is_on_in_the_package():
    refused(blocks.saturate, torch.ones(3), torch.float32)  # float64 is asked for
    assert blocks.saturate(torch.ones(3, dtype=torch.float64), torch.float32).dtype == torch.float32


def test_it_can_be_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert adder(1.5)(1) == 4.0
