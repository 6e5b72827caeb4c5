"""A plain PyTorch loop trains what Lightning does, and is a torch optimizer to everything around it."""

import copy
import inspect
import pickle
import warnings
from functools import partial

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lightning_byz.aggregators import CTMA, CoordinateMedian
from lightning_byz.attacks import LabelFlip, NonFinite, SignFlip
from lightning_byz.estimators import Gradient, Storm, WorkerMomentum
from lightning_byz.optimizers import Anytime, RobustOptimizer
from lightning_byz.strategies import RobustStrategy
from tests.plain import Loop, Network, fitted, linear, same, sgd

RULE = {"aggregator": CTMA(CoordinateMedian())}


def test_it_takes_every_argument_that_is_not_lightnings() -> None:
    strategy = inspect.signature(RobustStrategy.__init__).parameters
    plain = inspect.signature(RobustOptimizer.__init__).parameters
    ddp = {*inspect.signature(DDPStrategy.__init__).parameters, "find_unused_parameters", "static_graph"}
    others = {*ddp, "gradient_as_bucket_view", "data", "partition", "split_batches", "code"}
    assert set(plain) - {"self", "optimizer", "module"} == set(strategy) - others
    for name in set(plain) & set(strategy) - {"self", "f", "aggregator"}:  # these two may be left out under a code
        assert plain[name].default == strategy[name].default, name
        assert plain[name].kind == inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("estimator", [Gradient(), WorkerMomentum(0.9), Storm(0.3)], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("attack", [SignFlip(), LabelFlip(classes=3)], ids=lambda one: type(one).__name__)
def test_it_trains_what_the_strategy_trains(estimator, attack) -> None:
    arguments = {**RULE, "estimator": estimator, "attackers": [2], "attack": attack}
    loop = Loop(**arguments).run()
    assert same(loop.left(), fitted(**arguments))
    assert loop.calls == 12 * 4 * estimator.points
    assert not same(loop.left(), Loop(**arguments, seed=1).run().left()), "dropout is keyed"


def test_buffers_of_who_was_refused_are_not_adopted() -> None:
    arguments = {**RULE, "attackers": [2], "attack": NonFinite()}
    assert same(Loop(**arguments).run(0, 6).left(), fitted(1, **arguments))


def test_averaging_trains_what_the_strategy_trains() -> None:
    arguments = {**RULE, "estimator": Storm(0.3), "anytime": Anytime(0.2)}
    assert same(Loop(**arguments).run().left(), fitted(**arguments))


# ---------------------------------------------------------------------- turns


def test_several_calls_of_a_worker_add_up() -> None:
    batches = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    module, robust = linear(workers=4, f=1, aggregator=CoordinateMedian())
    gradients = []
    for size in (3, 1):
        for worker, batch in enumerate(batches):
            for part in batch.split(size):
                robust.backward(worker, lambda part=part: module(part).sum())
        robust.aggregate()
        gradients.append(module.weight.grad.clone())
        robust.zero_grad()
    torch.testing.assert_close(*gradients)


def test_each_call_has_draws_of_its_own_that_an_absent_worker_does_not_change() -> None:
    module, robust = linear(workers=2, f=0, aggregator=CoordinateMedian())
    drawn = {}
    for step, worker, call in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 1, 0)]:
        if step and robust.report is None:
            robust.step()

        def closure(key=(step, worker, call)):
            drawn[key] = float(torch.rand(()))
            return module(torch.ones(5)).sum()

        before = torch.get_rng_state()
        robust.backward(worker, closure)
        assert torch.equal(torch.get_rng_state(), before), "the global stream is untouched"
    assert len(set(drawn.values())) == 4


@pytest.mark.parametrize(("estimator", "times"), [(Gradient(), 1), (Storm(0.5), 2)])
def test_a_closure_runs_once_or_twice_and_its_last_loss_is_returned(estimator, times) -> None:
    module, robust = linear(workers=1, f=0, aggregator=CoordinateMedian(), estimator=estimator)
    calls = []

    def closure():
        calls.append(module(torch.ones(5)).sum() * (len(calls) + 1))
        return calls[-1]

    loss = robust.backward(0, closure)
    assert len(calls) == times
    assert torch.equal(loss, calls[-1])
    assert not loss.requires_grad
    assert robust.step().taken


def test_who_sends_nothing_is_absent() -> None:
    module, robust = linear(workers=4, f=1, aggregator=CoordinateMedian())
    for worker in (0, 1, 3):
        loss = robust.backward(worker, lambda worker=worker: None if worker == 1 else module(torch.ones(5)).sum())
        assert (loss is None) == (worker == 1)
    assert robust.step().status == ("arrived", "absent", "absent", "arrived")


def test_a_pass_without_a_loss_beside_one_with_sends_nothing() -> None:
    module, robust = linear(workers=2, f=0, aggregator=CoordinateMedian(), estimator=Storm(0.5))
    calls = []

    def closure():
        calls.append(None)
        return None if len(calls) == 1 else module(torch.ones(5)).sum()

    robust.backward(0, closure)
    robust.backward(1, lambda: module(torch.ones(5)).sum())
    assert robust.step().status == ("absent", "arrived")


def test_an_absent_worker_keeps_its_memory_and_its_point() -> None:
    arguments = {**RULE, "estimator": Storm(0.3)}
    some = Loop(**arguments).run(absent=[(4, 1), (5, 1)]).left()
    assert not same(some, Loop(**arguments).run().left())
    assert all(bool(value.isfinite().all()) for value in some.values())


def test_gradients_of_others_stay_as_they_were() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    robust = RobustOptimizer(sgd(module[0]), module, workers=2, f=0, aggregator=CoordinateMedian())
    module[1].weight.grad = marked = torch.full((1, 3), 5.0)
    for worker in robust.local:
        robust.backward(worker, lambda: module(torch.ones(2, 3)).sum())
    robust.aggregate()
    assert module[1].weight.grad is marked
    assert module[1].bias.grad is None
    assert module[0].weight.grad is not None


def test_what_the_optimizer_trains_may_change_and_lie_elsewhere() -> None:
    module, head = nn.Linear(4, 3), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([*module.parameters(), head], lr=0.1)
    robust = RobustOptimizer(
        optimizer, module, workers=3, f=0, aggregator=CoordinateMedian(), estimator=WorkerMomentum(0.5)
    )
    for frozen in (False, True, False):
        module.bias.requires_grad_(not frozen)
        before = [one.detach().clone() for one in (module.weight, module.bias, head)]
        for worker in robust.local:
            robust.backward(worker, lambda: (module(torch.ones(4)) * head).sum())
        robust.step()
        moved = [not torch.equal(one, old) for one, old in zip((module.weight, module.bias, head), before, strict=True)]
        assert moved == [True, not frozen, True]


# ---------------------------------------------------------------------- steps


def test_the_aggregate_may_be_clipped_before_the_step() -> None:
    loop, free = Loop(**RULE), Loop(**RULE)
    for one in (loop, free):
        one.backward(0, 0)
    report = loop.robust.aggregate(diagnose=True)
    assert report.norms is not None
    assert loop.robust.aggregate() is report, "once a step"
    norm = nn.utils.clip_grad_norm_(loop.module.parameters(), 1e-3)
    assert norm > 1e-3
    assert loop.robust.step() is report
    free.robust.step()
    start = Network().state_dict()["layers.0.weight"]
    moved = [(one.module.layers[0].weight - start).norm() for one in (loop, free)]
    assert moved[0] < moved[1] / 10


def test_zero_grad_drops_what_was_sent_and_an_aggregate_without_a_step() -> None:
    arguments = {**RULE, "estimator": Storm(0.3)}
    loop, plain = Loop(**arguments), Loop(**arguments)
    loop.run(0, 3)
    plain.run(0, 3)
    loop.backward(0, 5)
    loop.robust.zero_grad()
    assert loop.robust.aggregate().status == ("absent",) * 4, "all was dropped"
    loop.robust.zero_grad()
    loop.backward(0, 4)
    loop.robust.aggregate()
    kept = loop.robust._run.aggregation.memory
    loop.robust.zero_grad()
    assert all(parameter.grad is None for parameter in loop.module.parameters())
    loop.robust.state_dict()
    known, before = loop.robust._run.aggregation.memory, plain.robust._run.aggregation.memory
    assert not torch.equal(kept.workers[0]["estimator"]["estimate"], before.workers[0]["estimator"]["estimate"])
    for worker in loop.robust.local:
        own, other = (one.workers[worker]["estimator"] for one in (known, before))
        assert all(torch.equal(torch.as_tensor(own[name]), torch.as_tensor(other[name])) for name in own)


def test_an_aggregate_that_was_dropped_is_not_remembered_by_the_next() -> None:
    left = []
    for drops in (False, True):
        module, robust = linear(workers=2, f=0, aggregator=CoordinateMedian(), estimator=WorkerMomentum(0.9))
        for factor, dropped in [(1.0, False), (50.0, True), (2.0, False)]:
            if drops or not dropped:
                for worker in robust.local:
                    robust.backward(
                        worker, partial(lambda module, factor: module(torch.ones(5)).sum() * factor, module, factor)
                    )
                robust.aggregate()
                robust.zero_grad() if dropped else robust.step()
        left.append(module.weight.detach())
    assert torch.equal(*left)


def test_a_step_that_cannot_be_taken_changes_nothing_and_a_third_stops() -> None:
    module, robust = linear(workers=3, f=0, aggregator=CoordinateMedian())
    before = module.weight.detach().clone()
    for step in range(3):
        for worker in robust.local:
            factor = float("nan") if worker == 1 else 1.0
            robust.backward(worker, lambda factor=factor: module(torch.ones(5)).sum() * factor)
        if step < 2:
            assert not robust.step().taken
            assert module.weight.grad is None
        else:
            with pytest.raises(RuntimeError, match="3 steps in a row"):
                robust.step()
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize("attack", [NonFinite()])
def test_what_an_attacker_breaks_is_left_out(attack) -> None:
    loop = Loop(**RULE, attackers=[1], attack=attack).run(0, 4)
    assert loop.robust.report.status[1] == "broken"
    assert all(bool(value.isfinite().all()) for value in loop.left().values())


# ---------------------------------------------------------------------- buffers and files


def test_evaluation_sees_what_workers_have_in_common() -> None:
    loop = Loop(**RULE).run(0, 2)
    mean = loop.module.layers[1].running_mean
    loop.backward(0, 2)
    last = mean.clone()
    with loop.robust.evaluation():
        common = mean.clone()
        assert not torch.equal(common, last)
    loop.robust.step()
    with loop.robust.evaluation():
        assert torch.equal(mean, common), "showing it has changed nobody's"


@pytest.mark.parametrize("first", ["module", "robust"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"estimator": Storm(0.3), "anytime": Anytime(0.2)},
        {"estimator": WorkerMomentum(0.9), "attackers": [3], "attack": SignFlip()},
    ],
    ids=["storm and averaging", "momentum under attack"],
)
def test_a_resumed_loop_equals_one_without_interruption(arguments, first, tmp_path) -> None:
    whole = Loop(**RULE, **arguments, seed=5).run().left()
    loop = Loop(**RULE, **arguments, seed=5).run(0, 7)
    torch.save({"module": loop.module.state_dict(), "robust": loop.robust.state_dict()}, tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    later = Loop(**RULE, **arguments)
    for part in (first, *({"module", "robust"} - {first})):
        getattr(later, part).load_state_dict(saved[part])
    assert same(later.run(7).left(), whole)


def adagrad(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(module.parameters())


def test_a_plain_optimizer_loads_the_state_and_gives_its_own() -> None:
    loop = Loop(**RULE, optimizer=adagrad).run(0, 3)
    plain = adagrad(loop.module)
    plain.load_state_dict(loop.robust.state_dict())
    assert list(plain.state_dict()) == ["state", "param_groups"]
    assert torch.equal(plain.state_dict()["state"][0]["sum"], loop.robust.state_dict()["state"][0]["sum"])
    with pytest.warns(UserWarning, match="saved without lightning_byz"):
        loop.robust.load_state_dict(plain.state_dict())
    assert loop.robust._run.aggregation.memory.step == 0


def test_a_state_of_other_workers_or_estimators_is_refused() -> None:
    saved = Loop(**RULE, estimator=WorkerMomentum(0.9)).run(0, 2).robust.state_dict()
    with pytest.raises(ValueError, match="memories of 4 workers and this run has 5"):
        Loop(**RULE, workers=5).robust.load_state_dict(saved)
    with pytest.raises(ValueError, match="resume with the same estimator"):
        Loop(**RULE).robust.load_state_dict(saved)


# ---------------------------------------------------------------------- as a torch optimizer


def test_it_is_the_wrapped_optimizer_to_others() -> None:
    module, robust = linear(workers=1, f=0, aggregator=CoordinateMedian())
    optimizer = robust.optimizer
    assert isinstance(robust, torch.optim.Optimizer)
    assert robust.param_groups is optimizer.param_groups
    assert robust.state is optimizer.state
    assert robust.defaults is optimizer.defaults
    assert repr(robust).startswith("RobustOptimizer(SGD (")
    seen = []
    robust.register_step_pre_hook(lambda one, *_: seen.append(("before", one)))
    robust.register_step_post_hook(lambda one, *_: seen.append(("after", one)))
    spare = nn.Parameter(torch.ones(2))
    robust.add_param_group({"params": [spare], "lr": 1.0})
    robust.backward(0, lambda: module(torch.ones(5)).sum() + spare.sum())
    robust.step()
    assert seen == [("before", optimizer), ("after", optimizer)]
    assert torch.equal(spare.data, torch.zeros(2))
    for copies in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="save its state_dict"):
            copies(robust)


@pytest.mark.parametrize(
    "make",
    [
        lambda one: torch.optim.lr_scheduler.StepLR(one, 2, 0.5),
        lambda one: torch.optim.lr_scheduler.OneCycleLR(one, 0.3, total_steps=10),
        lambda one: torch.optim.lr_scheduler.CosineAnnealingLR(one, 10),
        lambda one: torch.optim.lr_scheduler.ReduceLROnPlateau(one, patience=0, threshold=10.0),
    ],
    ids=["StepLR", "OneCycleLR", "CosineAnnealingLR", "ReduceLROnPlateau"],
)
@pytest.mark.parametrize("inner", [False, True], ids=["around it", "around what it wraps"])
def test_schedulers(make, inner) -> None:
    loop = Loop(**RULE)
    optimizer = loop.robust.optimizer if inner else loop.robust
    plain = sgd(Network())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedulers = make(optimizer), make(plain)
        for step in range(6):
            loop.backward(0, step)
            loop.robust.step()
            plain.step()
            for scheduler in schedulers:
                plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                scheduler.step(1.0) if plateau else scheduler.step()
            assert loop.robust.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
    assert plain.param_groups[0]["lr"] != 0.1


def test_fabric_may_wrap_it() -> None:
    loop, expected = Loop(**RULE, estimator=Storm(0.3)), Loop(**RULE, estimator=Storm(0.3)).run(0, 4).left()
    fabric = Fabric(accelerator="cpu", devices=1)
    wrapped = fabric.setup_optimizers(loop.robust)
    assert wrapped.local == range(4)
    for step in range(4):
        loop.backward(0, step)
        wrapped.aggregate()
        assert wrapped.step().taken
    assert wrapped.report.step == 3
    assert same(loop.left(), expected)
    assert "lightning_byz" in wrapped.state_dict()
