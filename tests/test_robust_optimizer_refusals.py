"""What a plain loop cannot do is refused in one sentence."""

import logging
import re

import jaxtyping
import pytest
import torch
from torch import nn

from lightning_byz.aggregators import CoordinateMedian
from lightning_byz.attacks import LabelFlip, SignFlip
from lightning_byz.errors import ToleranceError
from lightning_byz.estimators import WorkerMomentum
from lightning_byz.optimizers import Anytime, RobustOptimizer
from tests.plain import linear, sgd


@pytest.fixture(autouse=True)
def unchecked(monkeypatch) -> None:
    """As for users, whose mistakes in types no checker finds before we do."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


MEDIAN = {"aggregator": CoordinateMedian()}


def made(**arguments):
    return linear(**{"workers": 3, "f": 1, **MEDIAN, **arguments})


class Wrapped(nn.DataParallel):
    """As DistributedDataParallel, without a process group."""


def frozen() -> nn.Linear:
    return nn.Linear(2, 2).requires_grad_(False)


@pytest.mark.parametrize(
    ("optimizer", "module", "sentence"),
    [
        (
            lambda one: sgd,
            nn.Linear(2, 2),
            "RobustOptimizer got function: give an instance of a torch.optim.Optimizer.",
        ),
        (lambda one: torch.optim.SGD, nn.Linear(2, 2), "RobustOptimizer got the class SGD"),
        (lambda one: torch.optim.LBFGS(one.parameters()), nn.Linear(2, 2), "LBFGS evaluates the loss several times"),
        (sgd, frozen(), "SGD trains nothing, so that there is no gradient to aggregate"),
        (sgd, Wrapped(nn.Linear(2, 2)), "The module is wrapped in Wrapped, which mixes the workers' gradients"),
        (sgd, nn.EmbeddingBag(4, 2, sparse=True), "'' has sparse gradients"),
        (
            lambda one: RobustOptimizer(sgd(one), one, workers=3, f=1, **MEDIAN),
            nn.Linear(2, 2),
            "RobustOptimizer got a RobustOptimizer: give it the optimizer that steps, .optimizer of it.",
        ),
    ],
)
def test_what_is_wrapped(optimizer, module, sentence) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(sentence)}"):
        RobustOptimizer(optimizer(module), module, workers=3, f=1, **MEDIAN)


def test_the_module_is_one() -> None:
    with pytest.raises(TypeError, match="RobustOptimizer got function as module"):
        RobustOptimizer(sgd(nn.Linear(2, 2)), lambda: None, workers=3, f=1, **MEDIAN)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"f": 2}, "CoordinateMedian"),
        ({"f": -1}, "f=-1: the number of Byzantine workers"),
        ({"workers": 0}, "workers=0: give 1 or more"),
        (
            {"attackers": [3], "attack": SignFlip()},
            r"attackers=\[3\]: \[3\] are no worker ids; the 3 workers are 0 to 2.",
        ),
        ({"attackers": [1]}, "without an attack would behave honestly"),
        ({"aggregator": CoordinateMedian}, "aggregator=the class CoordinateMedian: give an instance"),
        ({"estimator": CoordinateMedian()}, r"estimator=CoordinateMedian\(\): give an instance of an Estimator"),
        ({"anytime": 0.1}, r"anytime=0.1: give an instance of an Anytime, e.g. Anytime\(0.1\)."),
        ({"weights": "samples"}, "weights='samples': a plain loop has loaders of its own"),
        ({"weights": [1, 2]}, "2 numbers for 3 workers"),
        ({"max_share": 0.5}, "caps unequal weights"),
        ({"buffers": "mode"}, "buffers='mode': give one of"),
        ({"seed": 0.5}, "seed=0.5: give a whole number"),
        ({"digest_every": 0}, "digest_every=0: give the number of steps"),
    ],
)
def test_arguments(arguments, sentence) -> None:
    with pytest.raises((TypeError, ValueError, ToleranceError), match=sentence):
        made(**arguments)


def test_an_attack_that_is_never_used_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="is never used, as nobody attacks"):
        made(attack=SignFlip())


def test_an_optimizer_averages_once() -> None:
    module = nn.Linear(2, 2)
    optimizer = sgd(module)
    robust = RobustOptimizer(optimizer, module, workers=3, f=1, anytime=Anytime(0.1), **MEDIAN)
    with pytest.raises(ValueError, match="has an Anytime already"):
        RobustOptimizer(optimizer, module, workers=3, f=1, anytime=Anytime(0.1), **MEDIAN)
    with pytest.raises(ValueError, match=r"give Anytime\.attach its \.optimizer instead"):
        Anytime(0.1).attach(robust)


def test_a_worker_of_another_process() -> None:
    module, robust = made()
    for call in (robust.poisoned, lambda worker, _: robust.backward(worker, lambda: module(torch.ones(5)).sum())):
        with pytest.raises(ValueError, match=r"worker 3 is not one of this process, which has \[0, 1, 2\]"):
            call(3, None)


@pytest.mark.parametrize(
    ("loss", "given"),
    [
        (lambda module: 1.0, "float"),
        (lambda module: module(torch.ones(5)), r"a tensor of shape \(2,\)"),
        (lambda module: module(torch.ones(5)).sum().detach(), r"a tensor of shape \(\) without a graph"),
    ],
)
def test_what_is_no_loss(loss, given) -> None:
    module, robust = made()
    with pytest.raises(TypeError, match=f"The closure returned {given}: return the loss"):
        robust.backward(0, lambda: loss(module))
    assert robust.step().status == ("absent",) * 3


def test_a_closure_that_runs_the_backward_pass_itself() -> None:
    module, robust = made()

    def closure():
        loss = module(torch.ones(5)).sum()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="The closure has run a backward pass"):
        robust.backward(0, closure)
    assert module.weight.grad is None


def test_a_turn_between_an_aggregate_and_its_step() -> None:
    module, robust = made(estimator=WorkerMomentum())
    for worker in robust.local:
        robust.backward(worker, lambda: module(torch.ones(5)).sum())
    robust.aggregate()
    with pytest.raises(RuntimeError, match=r"before the step on that aggregate: call robust\.step"):
        robust.backward(0, lambda: module(torch.ones(5)).sum())
    robust.zero_grad()
    robust.backward(0, lambda: module(torch.ones(5)).sum())


def test_a_closure_for_the_step() -> None:
    _, robust = made()
    with pytest.raises(ValueError, match="takes no closure"):
        robust.step(lambda: torch.ones(()))


def test_positions_are_numbers() -> None:
    module, robust = made()
    with pytest.raises(TypeError, match=r"position=0\.5: give whole numbers"):
        robust.backward(0, lambda: module(torch.ones(5)).sum(), position=0.5)


def test_gradients_are_dense() -> None:
    table = nn.Embedding(4, 2)
    robust = RobustOptimizer(sgd(table), table, workers=1, f=0, **MEDIAN)
    with pytest.raises(ValueError, match="The gradient of 'weight' is sparse"):
        robust.backward(0, lambda: nn.functional.embedding(torch.tensor([1]), table.weight, sparse=True).sum())


def test_an_optimizer_that_trains_nothing_any_more() -> None:
    module, robust = made()
    module.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="SGD trains nothing any more"):
        robust.backward(0, lambda: module(torch.ones(5)).sum())


def test_the_start_up_line_is_logged(caplog) -> None:
    with caplog.at_level(logging.INFO, logger="lightning_byz"):
        made(anytime=Anytime(0.1), seed=None)
    assert caplog.messages[0].startswith("lightning_byz: 3 workers on 1 rank, f = 1; Gradient() -> CoordinateMedian()")
    assert "-> Anytime(gamma=0.1, alpha=None); no attack; exchange Local" in caplog.messages[0]


def test_the_seed_is_the_environments(monkeypatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    assert made()[1].state_dict()["lightning_byz"]["seed"] == 11
    assert made(seed=3)[1].state_dict()["lightning_byz"]["seed"] == 3
    assert made(f="max")[1].f == 1


def test_a_second_momentum_is_warned_of() -> None:
    module = nn.Linear(2, 2)
    heavy = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    with pytest.warns(UserWarning, match="momentum"):
        RobustOptimizer(heavy, module, workers=3, f=1, estimator=WorkerMomentum(0.9), **MEDIAN)


def test_attackers_whose_batches_nobody_changes() -> None:
    module, robust = made(attackers=[2], attack=LabelFlip(2))
    for worker in range(2):
        robust.backward(worker, lambda: module.weight.sum())
    with pytest.warns(UserWarning, match=r"^worker 2 attacks with LabelFlip.*let the closure use robust\.poisoned"):
        robust.backward(2, lambda: module.weight.sum())
    robust.step()
    robust.backward(2, lambda: module.weight.sum())  # said once


def test_attackers_whose_batches_are_changed() -> None:
    module, robust = made(attackers=[2], attack=LabelFlip(2))
    _, labels = robust.poisoned(2, (torch.zeros(2, 2), torch.tensor([0, 1])))
    assert labels.tolist() == [1, 0]
    robust.backward(2, lambda: module.weight.sum())
