"""Stale workers in a plain loop: what the strategy trains, in any number of processes, interrupted or not; turns are neither lost nor doubled."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightning_byz.aggregators import CTMA, CoordinateMedian
from lightning_byz.arrivals import FixedDelays, RandomArrivals, Synchronous
from lightning_byz.attacks import LabelFlip, SignFlip
from lightning_byz.estimators import Storm, WorkerMomentum
from lightning_byz.optimizers import Anytime
from tests.plain import in_a_world, linear, same
from tests.stale import Stale, alike, fitted

RULE: dict[str, Any] = {"aggregator": CTMA(CoordinateMedian()), "attackers": [2]}
DELAYS = FixedDelays([0, 1, 3, 2], byzantine_share=0.3)
SHARED = RandomArrivals("squared", byzantine_share=0.4)
CASES: dict[str, dict[str, Any]] = {
    "storm and averaging": {
        **RULE,
        "estimator": Storm(0.25),
        "anytime": Anytime(0.1),
        "attack": SignFlip(),
        "arrivals": SHARED,
        "weights": "counts",
    },
    "momentum, labels flipped": {
        **RULE,
        "estimator": WorkerMomentum(0.9),
        "attack": LabelFlip(classes=3),
        "arrivals": DELAYS,
        "weights": "counts",
        "age_decay": 0.9,
    },
}
EACH = pytest.mark.parametrize("name", CASES)


@EACH
def test_it_trains_what_the_strategy_trains(name) -> None:
    parameters, memory, batches = fitted(**CASES[name])
    loop = Stale(**CASES[name]).replay(batches)
    assert len(batches) >= 6
    assert same(loop.left(), parameters)
    assert alike(loop.memory, memory)
    assert len(loop.called) == 0


# ---------------------------------------------------------------------- layouts and files


def trained(arguments: dict[str, Any], absent: list[tuple[int, int]]) -> tuple[dict, list[tuple[int, int]]]:
    loop = Stale(**arguments).run(absent=absent)
    return loop.left(), loop.called


@EACH
def test_two_processes_train_what_one_does(ranks, name) -> None:
    absent = [(0, 3), (5, 0), (5, 1), (5, 2), (5, 3)]
    alone, called = trained(CASES[name], absent)
    both = ranks(2).run(in_a_world, trained, CASES[name], absent)
    assert all(same(left, alone) for left, _ in both)
    assert sorted(call for _, calls in both for call in calls) == sorted(called)
    assert not same(trained(CASES[name], [])[0], alone), "who is absent matters"


def begun(arguments: dict[str, Any], stop: int, path: str) -> None:
    loop = Stale(**arguments, seed=5).run(0, stop)
    state = {"robust": loop.robust.state_dict(), "module": loop.left()}
    if not dist.is_initialized() or dist.get_rank() == 0:
        torch.save(state, path)


def ended(arguments: dict[str, Any], start: int, path: str) -> dict:
    saved, loop = torch.load(path, weights_only=True), Stale(**arguments)
    loop.module.load_state_dict(saved["module"])
    loop.robust.load_state_dict(saved["robust"])
    return loop.run(start).left()


@EACH
def test_a_resumed_loop_equals_one_without_interruption(name, tmp_path) -> None:
    path, whole = str(tmp_path / "saved.pt"), Stale(**CASES[name], seed=5).run().left()
    for stop in range(1, 12, 3):
        begun(CASES[name], stop, path)
        assert same(ended(CASES[name], stop, path), whole), stop


@EACH
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_state_goes_on_in_another_layout(ranks, tmp_path, name, before, after) -> None:
    path, whole = str(tmp_path / "saved.pt"), Stale(**CASES[name], seed=5).run().left()
    ranks(2).run(in_a_world, begun, CASES[name], 5, path) if before == 2 else begun(CASES[name], 5, path)
    results = ranks(2).run(in_a_world, ended, CASES[name], 5, path) if after == 2 else [ended(CASES[name], 5, path)]
    assert all(same(left, whole) for left in results)


# ---------------------------------------------------------------------- turns


def test_only_who_computes_is_asked() -> None:
    loop, schedule = Stale(**RULE, attack=SignFlip(), arrivals=DELAYS), DELAYS.schedule(4, [2], 0)
    for step in range(12):
        computing = schedule.due(step - 1) if step else range(4)
        assert list(loop.robust.computing) == list(computing)
        loop.run(step, step + 1)
        assert [worker for at, worker in loop.called if at == step] == list(computing)
        assert [word != "not due" for word in loop.robust.report.status] == [
            one in schedule.due(step) for one in range(4)
        ]
    module, robust = linear(workers=2, f=0, aggregator=CoordinateMedian(), arrivals=FixedDelays([0, 3]))
    for step in range(4):
        losses = [robust.backward(worker, lambda: module(torch.ones(5)).sum()) for worker in robust.local]
        assert [loss is not None for loss in losses] == [True, step < 2]
        robust.step()


def test_a_worker_makes_one_message_at_a_time() -> None:
    loop, plain = Stale(**CASES["storm and averaging"]), Stale(**CASES["storm and averaging"]).run(0, 4)
    loop.run(0, 3).backward(0, 3)
    (worker,) = loop.robust.computing
    sentence = f"worker {worker} has made its message of step 3, and under arrivals= a worker sends one batch"
    with pytest.raises(ValueError, match=sentence):
        loop.robust.backward(worker, lambda: 1 / 0)
    loop.robust.step()
    assert same(loop.left(), plain.left()), "a refused call changes nothing"


def test_who_sends_nothing_may_be_asked_again() -> None:
    module, robust = linear(workers=2, f=0, aggregator=CoordinateMedian(), arrivals=FixedDelays([0, 1]))
    assert robust.backward(0, lambda: None) is None
    for worker in robust.local:
        assert robust.backward(worker, lambda: module(torch.ones(5)).sum()) is not None
    assert robust.step().status == ("arrived", "arrived")


def test_a_turn_that_nobody_takes_is_over() -> None:
    """Worker 3 delivers at steps 0, 3, 5, ...; without the turn of step 1 its row of step 0 counts until it delivers that of step 4."""
    loop, table = Stale(**RULE, attack=SignFlip(), arrivals=DELAYS), []
    due = [step for step in range(12) if 3 in DELAYS.schedule(4, [2], 0).due(step)]
    for step in range(12):
        loop.run(step, step + 1, absent=[(1, 3)])
        table.append(loop.memory.rules["arrivals"].values["rows"][3].clone())
        assert loop.robust.report.status[3] == (
            "not due" if step not in due else "absent" if step == due[1] else "arrived"
        )
        assert loop.memory.counts["turns"][3] == 1 + sum(one < step for one in due), "counted as if it had been taken"
    assert loop.called.count((1, 3)) == 0
    assert due[1] > 2
    for step in range(1, 12):
        assert torch.equal(table[step], table[step - 1]) == (step not in due[2:])


# ---------------------------------------------------------------------- what is dropped


@EACH
def test_what_is_dropped_before_the_step_is_made_again(name) -> None:
    loop, plain = Stale(**CASES[name]), Stale(**CASES[name]).run(0, 9)
    for step in range(9):
        loop.backward(1, step)  # on other batches
        loop.robust.zero_grad()
        loop.run(step, step + 1)
    assert alike(loop.memory, plain.memory)
    assert same(loop.left(), plain.left())


@EACH
def test_an_aggregate_that_is_dropped_keeps_what_has_arrived(name) -> None:
    """Only the update is missing: the step is over, and whoever delivered at it computes next, at the parameters that are there."""
    loop = Stale(**CASES[name])
    schedule = loop.robust._run.round.schedule
    for step in range(12):
        loop.backward(0, step)
        before = {key: value.clone() for key, value in loop.module.named_parameters()}
        if dropped := step in (0, 4, 5):
            loop.robust.aggregate()
            loop.robust.zero_grad()
        else:
            loop.robust.step()
        assert loop.memory.step == step + 1
        assert loop.memory.counts["accepted"] == [sum(w in schedule.due(s) for s in range(step + 1)) for w in range(4)]
        after = dict(loop.module.named_parameters())
        assert all(torch.equal(after[key], before[key]) for key in before) == dropped
        assert list(loop.robust.computing) == list(schedule.due(step))


@pytest.mark.parametrize("arrivals", [DELAYS, SHARED, Synchronous()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("estimator", [WorkerMomentum(0.9), Storm(0.25)], ids=lambda one: type(one).__name__)
def test_a_closure_that_raises_may_be_tried_again(arrivals, estimator) -> None:
    arguments = {**RULE, "attack": SignFlip(), "arrivals": arrivals, "estimator": estimator}
    loop, plain = Stale(**arguments), Stale(**arguments).run(0, 5)

    def raising():
        loop.loss(torch.ones(4, 8), torch.ones(4).long())  # moves batch norm's statistics, and draws
        raise MemoryError

    for step in range(5):
        for worker in loop.robust.computing:
            with pytest.raises(MemoryError):
                loop.robust.backward(worker, raising)
        loop.run(step, step + 1)
    assert same(loop.left(), plain.left())


# ---------------------------------------------------------------------- scalers


class Scaled(Stale):
    """With a gradient scaler, and losses too large for it in some calls of a step."""

    def __init__(self, *, too_large: Sequence[tuple[int, int]] = (), **arguments: Any) -> None:
        super().__init__(**arguments)
        self.scaler, self.too_large = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3), too_large

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.scaler.scale(
            super().loss(inputs, labels) * (float("inf") if self.called[-1] in self.too_large else 1.0)
        )

    def run(self, start: int = 0, stop: int = 12, *, by_hand: bool = False) -> "Scaled":
        for step in range(start, stop):
            self.robust.zero_grad()
            self.backward(*divmod(step, 6))
            if by_hand:
                self.robust.aggregate()
                self.scaler.unscale_(self.robust)
            self.scaler.step(self.robust)
            self.scaler.update()
        return self


@EACH
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_scaler_changes_nothing_but_its_scale(name, by_hand) -> None:
    scaled, plain = Scaled(**CASES[name]).run(by_hand=by_hand), Stale(**CASES[name]).run()
    assert same(scaled.left(), plain.left()), "a power of two costs no bit, whatever it is when a message is delivered"
    assert alike(scaled.memory, plain.memory)
    assert scaled.scaler.get_scale() == 1024.0 * 2**4


def scaled(path: str, start: int, stop: int) -> tuple[dict, float, list[int]]:
    loop = Scaled(**RULE, attack=SignFlip(), estimator=WorkerMomentum(0.9), arrivals=FixedDelays([0, 4, 9, 9]), f=0)
    loop.scaler.scale(torch.zeros(()))  # as in a process whose workers do not compute at once
    if start:
        saved = torch.load(path, weights_only=True)
        for name in ("module", "robust", "scaler"):
            getattr(loop, name).load_state_dict(saved[name])
    computing = list(loop.robust.computing)
    loop.run(start, stop, by_hand=True)
    state = {"robust": loop.robust.state_dict(), "module": loop.left(), "scaler": loop.scaler.state_dict()}
    if dist.get_rank() == 0 and not start:
        torch.save(state, path)
    return loop.left(), loop.scaler.get_scale(), computing


def test_a_process_where_nobody_computes_hears_the_scale_from_others(ranks, tmp_path) -> None:
    path = str(tmp_path / "saved.pt")
    whole, other = ranks(2).run(in_a_world, scaled, str(tmp_path / "whole.pt"), 0, 6)
    ranks(2).run(in_a_world, scaled, path, 0, 3)
    (left, scale, _), (apart, its, computing) = ranks(2).run(in_a_world, scaled, path, 3, 6)
    assert computing == []
    assert same(left, apart)
    assert same(left, whole[0])
    assert scale == its == whole[1] == other[1]
