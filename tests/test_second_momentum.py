"""The warning of two averages over time, one behind the other."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, Optimizer

from lightning_byz.estimators import Estimator, Gradient, Storm, WorkerMomentum
from lightning_byz.memory import Vectors
from lightning_byz.rounds.second_momentum import second_momentum


class Own(Estimator):
    def init(self, like: Tensor) -> Vectors:
        return {"last": torch.zeros_like(like)}

    def update(self, memory: Vectors, gradients: Sequence[Tensor], *, count: int) -> tuple[Tensor, Vectors]:
        return gradients[0] + memory["last"], {"last": gradients[0].clone()}


def optimizer(kind: type[Optimizer], **options: Any) -> Optimizer:
    return kind([torch.nn.Parameter(torch.zeros(1))], **options)  # type: ignore[call-arg]


def without_a_number() -> Optimizer:
    """Some optimizers say None for no momentum."""
    made = optimizer(SGD, lr=0.1)
    made.param_groups[0]["momentum"] = None
    return made


@pytest.mark.parametrize("estimator", [WorkerMomentum(0.9), Storm(), Storm(0.25), Own()])
@pytest.mark.parametrize(
    ("behind", "said"),
    [
        (optimizer(SGD, lr=0.1, momentum=0.9), "SGD(momentum=0.9) averages over about 10 steps"),
        (optimizer(Adam, betas=(0.95, 0.99)), "Adam(betas=(0.95, 0.99)) averages over about 20 steps"),
    ],
)
def test_both_numbers_are_said(estimator: Estimator, behind: Optimizer, said: str) -> None:
    text = second_momentum(estimator, [optimizer(SGD, lr=0.1), behind])
    assert text is not None
    assert text.startswith(said)
    assert repr(estimator) in text
    assert ("momentum=0" if isinstance(behind, SGD) else "betas=(0.0, 0.99)") in text


@pytest.mark.parametrize(
    ("estimator", "behind"),
    [
        (Gradient(), optimizer(SGD, lr=0.1, momentum=0.9)),
        (WorkerMomentum(0.0), optimizer(SGD, lr=0.1, momentum=0.9)),
        (Storm(1.0), optimizer(Adam)),
        (WorkerMomentum(0.9), optimizer(SGD, lr=0.1, momentum=0.5)),
        (WorkerMomentum(0.9), optimizer(Adam, betas=(0.0, 0.999))),
        (WorkerMomentum(0.9), optimizer(Adagrad)),
        (WorkerMomentum(0.9), without_a_number()),
    ],
)
def test_one_average_is_nobodys_business(estimator: Estimator, behind: Optimizer) -> None:
    assert second_momentum(estimator, [behind]) is None
