"""A GradScaler around a plain loop: the scale is heard, and gradients are there when the scaler looks."""

import pytest
import torch
from torch import nn

from lightning_byz.aggregators import CTMA, CoordinateMedian
from lightning_byz.estimators import Gradient, Storm, WorkerMomentum
from lightning_byz.optimizers import Anytime
from tests.plain import Loop, linear, same

RULE = {"aggregator": CTMA(CoordinateMedian())}


def adam(module: nn.Module, *, fused: bool = False) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=0.05, betas=(0.0, 0.999), fused=fused)


def fused_adam(module: nn.Module) -> torch.optim.Optimizer:
    return adam(module, fused=True)


class Scaled(Loop):
    """A loop with a gradient scaler, which may find a loss too large for its scale."""

    def __init__(self, scale: float = 1024.0, **arguments) -> None:
        super().__init__(**arguments)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        self.too_large: tuple[int, ...] = ()

    def loss(self, inputs, labels):
        loss = super().loss(inputs, labels)
        factor = float("inf") if self.calls in self.too_large else 1.0
        return self.scaler.scale(loss * factor)

    def train(self, steps: int, *, clip: float | None = None, by_hand: bool = False) -> "Scaled":
        for step in range(steps):
            self.robust.zero_grad()
            self.backward(*divmod(step, 6))
            if by_hand:
                self.robust.aggregate()
                self.scaler.unscale_(self.robust)
                if clip is not None:
                    nn.utils.clip_grad_norm_(self.module.parameters(), clip)
            self.scaler.step(self.robust)
            self.scaler.update()
        return self


@pytest.mark.parametrize("estimator", [Gradient(), WorkerMomentum(0.9), Storm(0.3)], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("optimizer", [adam, fused_adam])
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_scaler_changes_nothing_but_its_scale(estimator, optimizer, by_hand) -> None:
    arguments = {**RULE, "estimator": estimator, "optimizer": optimizer}
    scaled = Scaled(**arguments).train(8, by_hand=by_hand)
    assert same(scaled.left(), Loop(**arguments).run(0, 8).left()), "a power of two costs no bit"


@pytest.mark.parametrize(
    "estimator", [WorkerMomentum(0.9, clip=0.5), Storm(0.3, clip=0.5)], ids=lambda one: type(one).__name__
)
def test_estimators_see_gradients_without_the_scale(estimator) -> None:
    scaled = Scaled(3000.0, **RULE, estimator=estimator).train(4)
    for name, value in Loop(**RULE, estimator=estimator).run(0, 4).left().items():
        torch.testing.assert_close(scaled.left()[name], value, rtol=1e-3, atol=1e-5)


def test_a_scaled_gradient_is_clipped_at_its_own_size() -> None:
    module, robust = linear(workers=2, f=0, aggregator=CoordinateMedian())
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for worker in robust.local:
        robust.backward(worker, lambda: scaler.scale(module(torch.ones(5)).sum()))
    robust.aggregate()
    assert torch.equal(module.weight.grad, torch.full((2, 5), 64.0))
    scaler.unscale_(robust)
    assert torch.equal(module.weight.grad, torch.ones(2, 5))


@pytest.mark.parametrize("optimizer", [adam, fused_adam])
@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("anytime", [None, Anytime(0.3)])
def test_a_step_that_overflows_is_skipped_and_shrinks_the_scale(optimizer, by_hand, anytime) -> None:
    arguments = {**RULE, "estimator": Storm(0.3), "optimizer": optimizer, "anytime": anytime}
    scaled = Scaled(**arguments)
    scaled.train(3, by_hand=by_hand)
    before, memory = scaled.left(), scaled.robust._run.aggregation.memory
    scaled.too_large = tuple(range(scaled.calls + 1, scaled.calls + 9))
    scaled.train(1, by_hand=by_hand)
    assert not scaled.robust.report.taken
    assert scaled.scaler.get_scale() == 512.0
    parameters = [name for name, _ in scaled.module.named_parameters()]
    assert all(torch.equal(scaled.module.state_dict()[name], before[name]) for name in parameters)
    assert scaled.robust._run.aggregation.memory.workers is memory.workers
    scaled.train(1, by_hand=by_hand)
    assert scaled.robust.report.taken
    assert scaled.scaler.get_scale() == 512.0


def test_one_overflow_is_that_workers_alone() -> None:
    scaled = Scaled(**RULE)
    scaled.too_large = (2,)
    scaled.train(1)
    assert scaled.robust.report.status.count("broken") == 1
    assert scaled.robust.report.taken
    assert scaled.scaler.get_scale() == 1024.0


@pytest.mark.parametrize("optimizer", [adam, fused_adam])
def test_an_aggregate_that_the_scaler_skips_leaves_no_trace(optimizer) -> None:
    scaled = Scaled(**RULE, estimator=WorkerMomentum(0.9), optimizer=optimizer).train(2)
    before = scaled.robust._run.aggregation.memory
    scaled.backward(0, 2)
    assert scaled.robust.aggregate().taken
    scaled.scaler.unscale_(scaled.robust)
    scaled.module.layers[0].weight.grad.fill_(float("nan"))
    # what the user has done to the gradients after the scaler looked is the user's; looked at again, the scaler skips
    scaled.scaler._per_optimizer_states.clear()
    scaled.scaler.step(scaled.robust)
    scaled.scaler.update()
    scaled.robust.zero_grad()
    scaled.robust.state_dict()
    after = scaled.robust._run.aggregation.memory
    assert after.step == before.step + 1
    assert after.workers is before.workers


@pytest.mark.parametrize("optimizer", [adam, fused_adam])
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_step_without_workers_neither_moves_nor_shrinks(optimizer, by_hand) -> None:
    scaled = Scaled(**RULE, optimizer=optimizer).train(1)
    before = scaled.left()
    scaled.backward = lambda *_: None
    scaled.train(1, by_hand=by_hand)
    assert scaled.robust.report.without_gradients
    assert same(scaled.left(), before)
    assert scaled.scaler.get_scale() == 1024.0


def test_a_scaler_that_is_off_is_not_heard() -> None:
    module, robust = linear(workers=2, f=0, aggregator=CoordinateMedian())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    start = module.weight.detach().clone()
    for worker in robust.local:
        robust.backward(worker, lambda: scaler.scale(module(torch.ones(5)).sum()))
    assert scaler.step(robust).taken
    scaler.update()
    torch.testing.assert_close(module.weight.data, start - 0.1)


def test_losses_of_a_step_have_one_scaler() -> None:
    module, robust = linear(workers=2, f=0, aggregator=CoordinateMedian())
    scalers = [torch.amp.GradScaler("cpu"), torch.amp.GradScaler("cpu")]
    robust.backward(0, lambda: scalers[0].scale(module(torch.ones(5)).sum()))
    for other in (lambda loss: scalers[1].scale(loss), lambda loss: loss):
        with pytest.raises(ValueError, match="scaled by another GradScaler"):
            robust.backward(1, lambda other=other: other(module(torch.ones(5)).sum()))


def test_a_backward_pass_that_scales_is_heard() -> None:
    module, robust = linear(workers=2, f=0, aggregator=CoordinateMedian())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    start = module.weight.detach().clone()
    for worker in robust.local:
        robust.backward(
            worker, lambda: module(torch.ones(5)).sum(), backward=lambda loss: scaler.scale(loss).backward()
        )
    scaler.step(robust)
    torch.testing.assert_close(module.weight.data, start - 0.1)


def test_a_first_step_without_losses_passes_the_scaler() -> None:
    module, robust = linear(workers=2, f=0, aggregator=CoordinateMedian())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for worker in robust.local:
        robust.backward(worker, lambda: None if scaler.scale(module(torch.ones(5)).sum()) > -1e9 else 0)
    assert scaler.step(robust).without_gradients
    scaler.update()
    assert scaler.get_scale() == 8.0
