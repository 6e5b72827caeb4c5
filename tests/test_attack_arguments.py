"""Arguments of attacks: what they choose, and what is refused."""

import math

import pytest
import torch
from torch import Tensor

from lightning_byz.attacks import (
    ALIE,
    IPM,
    BitFlip,
    Constant,
    Gaussian,
    LabelFlip,
    Mimic,
    NonFinite,
    Replay,
    ReverseGradient,
    Sight,
    SignFlip,
)
from lightning_byz.attacks.away import check
from lightning_byz.stack import Stack
from tests.test_attacks import example, sent


def test_a_fixed_worker_is_copied() -> None:
    rows = example()
    assert torch.equal(sent(Mimic(worker=5), Stack(rows), [2, 7]), rows[[5, 5]])
    assert torch.equal(sent(Mimic(worker=5), Stack(rows, [1, 1, 1, 1, 1, 0, 1, 1, 1]), [2, 7]), rows[[2, 7]])
    with pytest.raises(ValueError, match=r"Mimic\(worker=7\) names one of the attackers \[2, 7\]"):
        sent(Mimic(worker=7), Stack(rows), [2, 7])
    with pytest.raises(ValueError, match=r"Mimic\(worker=9\): there is no such worker; the 9 workers are 0 to 8"):
        sent(Mimic(worker=9), Stack(rows), [2, 7])


def test_old_rows_are_sent_again() -> None:
    stack, old = Stack(example()), [example(d=300)[0] + step for step in range(5)]
    generator = torch.Generator()

    def again(delay: int, past: dict) -> Tensor:
        return Replay(delay).replace(Sight(stack, [2, 7], generator, past=past))

    assert (Replay(3).remembers, SignFlip().remembers) == (3, 0)
    assert torch.equal(again(3, {}), stack.vectors[[2, 7]])
    assert torch.equal(again(3, {2: old[:3]}), torch.stack([old[0], stack.vectors[7]]))
    assert torch.equal(again(3, {2: old[:2], 7: []}), torch.stack([old[0], stack.vectors[7]]))
    assert torch.equal(again(3, {7: old, 2: old[1:]}), torch.stack([old[2], old[2]]))
    assert torch.equal(again(1, {7: old, 2: old[:2]}), torch.stack([old[1], old[4]]))
    kept = old[0].clone()
    again(3, {2: old[:1]}).fill_(0.0)
    assert torch.equal(old[0], kept)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReverseGradient(factor=0.0), "factor must be finite and positive, not 0"),
        (lambda: ReverseGradient(factor=math.inf), "factor must be finite and positive, not inf"),
        (lambda: IPM(epsilon=-1.0), "epsilon must be finite and positive, not -1"),
        (lambda: ALIE(z=math.inf), "z must be None or a finite number, not inf"),
        (lambda: ALIE(z=math.nan), "z must be None or a finite number, not nan"),
        (lambda: NonFinite(3.0), "value must be nan, inf or -inf, not 3"),
        (lambda: Constant(math.inf), "value must be finite, not inf"),
        (lambda: Gaussian(0.0), "deviation must be finite and positive, not 0"),
        (lambda: Mimic(worker=-1), "worker must be None or a worker id >= 0, not -1"),
        (lambda: check("mean"), "deviation must be one of unit, std, sign, not 'mean'"),
        (lambda: Replay(0), "delay must be a whole number of steps >= 1, not 0"),
        (lambda: BitFlip(0), "flips must be a whole number >= 1, not 0"),
        (lambda: BitFlip(coordinates=-3), "coordinates must be a whole number >= 1, not -3"),
        (lambda: LabelFlip(1), "classes must be None or a whole number >= 2, not 1"),
    ],
)
def test_parameters_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
