"""Whatever fails or is dropped in a plain loop leaves nothing behind that later steps would train on."""

import pytest
import torch
from torch import nn

from lightning_byz import TooManyFaults
from lightning_byz.aggregators import CTMA, CoordinateMedian
from lightning_byz.estimators import Gradient, Storm, WorkerMomentum
from lightning_byz.optimizers import RobustOptimizer
from tests.plain import Loop, same

RULE = {"aggregator": CTMA(CoordinateMedian())}
ESTIMATORS = pytest.mark.parametrize(
    "estimator", [Gradient(), WorkerMomentum(0.5), Storm(0.3)], ids=lambda one: type(one).__name__
)
INPUTS = torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(1))


class Slopes:
    """Three workers on a linear module, with one batch per step and worker."""

    def __init__(self, estimator, *, fused=False) -> None:
        torch.manual_seed(0)
        self.module = nn.Linear(5, 2, bias=False)
        optimizer = torch.optim.SGD(self.module.parameters(), lr=0.01, fused=fused)
        self.robust = RobustOptimizer(
            optimizer, self.module, workers=3, f=1, aggregator=CoordinateMedian(), estimator=estimator
        )

    def loss(self, step, worker):
        return (self.module(INPUTS[step, worker]) - 1).square().sum()

    def backward(self, step):
        for worker in self.robust.local:
            self.robust.backward(worker, lambda worker=worker: self.loss(step, worker))

    def train(self, *steps):
        for step in steps:
            self.backward(step)
            assert self.robust.step().taken
        return self.module.weight.detach().clone()


@ESTIMATORS
@pytest.mark.parametrize("accumulated", [False, True])
def test_a_closure_that_raises_may_be_tried_again(estimator, accumulated) -> None:
    run, calls = Slopes(estimator), []
    run.train(0, 1)
    if accumulated:
        run.robust.backward(0, lambda: run.loss(5, 0))

    def raising():
        calls.append(None)
        if len(calls) == estimator.points:
            raise MemoryError
        return run.loss(2, 0)

    with pytest.raises(MemoryError):
        run.robust.backward(0, raising)
    assert torch.equal(run.train(2, 3), Slopes(estimator).train(0, 1, 2, 3))


@ESTIMATORS
def test_a_worker_whose_turn_failed_has_sent_nothing_then_or_later(estimator) -> None:
    run, absent = Slopes(estimator), Slopes(estimator)
    run.train(0)
    absent.train(0)
    run.backward(1)
    with pytest.raises(ZeroDivisionError):
        run.robust.backward(0, lambda: 1 / 0)
    for worker in (1, 2):
        absent.robust.backward(worker, lambda worker=worker: absent.loss(1, worker))
    for one in (run, absent):
        assert one.robust.step().status == ("absent", "arrived", "arrived")
    assert torch.equal(run.train(2, 3), absent.train(2, 3))


@ESTIMATORS
def test_a_step_after_a_dropped_aggregate_starts_from_what_was_adopted(estimator) -> None:
    run = Slopes(estimator)
    run.train(0, 1)
    run.backward(5)
    run.robust.aggregate()
    run.robust.zero_grad()
    assert torch.equal(run.train(2, 3), Slopes(estimator).train(0, 1, 2, 3))


def test_a_step_that_a_fused_optimizer_skips_is_dropped() -> None:
    trained = []
    for skips in (False, True):
        run = Slopes(Storm(0.3), fused=True)
        run.train(0, 1)
        if skips:
            run.backward(5)
            run.robust.grad_scale, run.robust.found_inf = torch.tensor(1.0), torch.tensor(1.0)
            run.robust.step()
            del run.robust.grad_scale, run.robust.found_inf
        trained.append(run.train(2, 3))
    assert torch.equal(*trained)


@ESTIMATORS
def test_a_state_between_the_aggregate_and_the_step_changes_nothing(estimator) -> None:
    run = Slopes(estimator)
    for step in range(4):
        run.backward(step)
        run.robust.aggregate()
        run.robust.state_dict()
        run.robust.step()
    assert torch.equal(run.module.weight, Slopes(estimator).train(0, 1, 2, 3))


def test_dropped_turns_leave_no_buffers() -> None:
    loop = Loop(**RULE)
    loop.backward(0, 5)
    loop.robust.zero_grad()
    assert same(loop.run(0, 2).left(), Loop(**RULE).run(0, 2).left())


@ESTIMATORS
def test_training_may_go_on_after_too_many_faults(estimator) -> None:
    run = Slopes(estimator)
    run.train(0, 1)
    for step in range(3):
        for worker in run.robust.local:
            run.robust.backward(worker, lambda worker=worker: run.loss(5, worker) * float("nan"))
        if step < 2:
            run.robust.step()
    with pytest.raises(TooManyFaults):
        run.robust.step()
    assert torch.equal(run.train(2, 3), Slopes(estimator).train(0, 1, 2, 3))


def test_a_refused_state_leaves_the_memories_as_they_are() -> None:
    saved = Loop(**RULE, estimator=Storm(0.3), seed=7).run(0, 2).robust.state_dict()
    loop = Loop(**RULE, estimator=WorkerMomentum(0.9)).run(0, 3)
    with pytest.raises(ValueError, match="resume with the same estimator"):
        loop.robust.load_state_dict(saved)
    assert same(loop.run(3, 6).left(), Loop(**RULE, estimator=WorkerMomentum(0.9)).run(0, 6).left())


def test_a_state_of_another_rank_than_0_is_refused() -> None:
    saved = Loop(**RULE).run(0, 2).robust.state_dict()
    saved["lightning_byz"]["buffers"] = {}
    with pytest.raises(ValueError, match="save rank 0's"):
        Loop(**RULE).robust.load_state_dict(saved)
