"""Stale workers in a plain loop: what the strategy trains, in any number of processes, interrupted or not; turns are neither lost nor doubled."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from lightning_byz.aggregators import CTMA, CoordinateMedian
from lightning_byz.arrivals import Arrivals, FixedDelays, RandomArrivals, Schedule, Synchronous
from lightning_byz.attacks import IPM, LabelFlip, SignFlip
from lightning_byz.compressors import Cast, TopK
from lightning_byz.estimators import Storm, WorkerMomentum
from lightning_byz.links import EF21
from lightning_byz.optimizers import Anytime
from lightning_byz.preaggregators import NNM
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
    "everything": {
        **RULE,
        "preaggregators": [NNM()],
        "estimator": Storm(0.25),
        "anytime": Anytime(0.1),
        "attack": IPM(0.5),
        "arrivals": SHARED,
        "weights": "counts",
        "link": EF21(),
        "compressor": TopK(0.1),
        "downlink": Cast("bfloat16"),
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


@EACH
def test_a_state_from_amid_a_step_holds_what_was_before_it(name) -> None:
    """Nobody's gradients are saved, nor what their turns have done to buffers: they are taken again."""
    whole, loop, later = (Stale(**CASES[name]) for _ in range(3))
    loop.run(0, 5).backward(0, 5)
    state = copy.deepcopy(loop.robust.state_dict())
    later.module.load_state_dict(loop.left())
    later.robust.load_state_dict(state)
    assert same(later.run(5).left(), whole.run().left())
    loop.robust.step()
    assert same(loop.run(6).left(), whole.left()), "and looking changes nothing"


# ---------------------------------------------------------------------- turns


def test_only_who_computes_is_asked() -> None:
    loop, schedule = Stale(**RULE, attack=SignFlip(), arrivals=DELAYS), DELAYS.schedule(4, [2], 0)
    for step in range(12):
        computing = schedule.due(step - 1) if step else range(4)
        assert list(loop.robust.computing) == list(computing)
        loop.run(step, step + 1)
        assert [worker for at, worker in loop.called if at == step] == list(computing)
        assert [word != "not due" for word in loop.status] == [one in schedule.due(step) for one in range(4)]
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
        loop.robust.backward(worker, lambda: None)
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
        assert loop.status[3] == ("not due" if step not in due else "absent" if step == due[1] else "arrived")
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
    schedule = CASES[name]["arrivals"].schedule(4, [2], 0)
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


# ---------------------------------------------------------------------- a user's own


@dataclass(frozen=True)
class Own(Arrivals):
    """What a function of the step says, of four workers."""

    says: Any

    def schedule(self, workers: int, attackers: Sequence[int], seed: int) -> Schedule:
        return Says(self.says)


@dataclass(frozen=True)
class Says(Schedule):
    says: Any

    def due(self, step: int) -> Sequence[int]:
        return self.says(step) if step else range(4)


def test_a_schedule_of_ones_own() -> None:
    estimator = Storm(0.25)
    for says in (lambda step: (2, 0, 2), lambda step: {step % 4}, lambda step: np.array([1, 3])[step % 2 :]):
        loop = Stale(**RULE, attack=SignFlip(), arrivals=Own(says), estimator=estimator).run()
        assert list(loop.robust.computing) == sorted({int(worker) for worker in says(11)})


@pytest.mark.parametrize("told", [1, None, [1.0], ["1"], [None]])
def test_what_is_no_schedule(told) -> None:
    with pytest.raises(TypeError, match=r"Says\.due\(1\) returned .*: return the ids of the workers that deliver"):
        Stale(**RULE, attack=SignFlip(), arrivals=Own(lambda step: told))

    class Function(Own):
        def schedule(self, workers, attackers, seed):
            return self.says

    with pytest.raises(TypeError, match=r"Function\.schedule\(\.\.\.\) returned .*: return a Schedule"):
        Stale(**RULE, attack=SignFlip(), arrivals=Function(told))


def test_what_is_trained_may_change_while_messages_wait() -> None:
    """Also where a batch is asked for before the first turn of a step."""
    loop: Any = Stale(**{**CASES["storm and averaging"], "attack": LabelFlip(classes=3)})
    for step in range(12):
        bias = loop.module.layers[4].bias.requires_grad_(step not in (3, 4, 7))
        before = bias.detach().clone()
        loop.run(step, step + 1)
        assert loop.robust.report.taken
        assert torch.equal(bias, before) == (step in (3, 4, 7))
