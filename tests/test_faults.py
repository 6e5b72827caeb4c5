"""One broken worker does not stop the run, all broken workers do; absence is no fault; nothing broken is remembered."""

import math
import os
from dataclasses import dataclass, replace

import pytest
import torch

from lightning_byz.aggregators import CoordinateMedian
from lightning_byz.attacks import NonFinite
from lightning_byz.estimators import Estimator, WorkerMomentum
from lightning_byz.memory import Memory
from tests.ranks import RankFailure
from tests.recording import Noting
from tests.rounds import robust, take
from tests.scenarios import Classifier, Fit, Options, fit, same_bits

STRATEGY = {"workers": 4, "f": 1, "aggregator": CoordinateMedian(), "estimator": WorkerMomentum(0.9)}


def calls_of(worker: int, steps: range) -> tuple[int, ...]:
    """Which calls of training_step belong to a worker, with four workers on one rank."""
    return tuple(4 * step + worker for step in steps)


def test_a_nan_of_one_worker_is_left_out_and_forgotten(ranks):
    broken = Options(batch_norm=True, nan_calls=calls_of(2, range(3)))
    result = ranks(1).run(fit, Fit(broken, STRATEGY), 1)[0]
    assert all(bool(value.isfinite().all()) for value in result["parameters"].values())
    assert result["report"].taken
    assert result["report"].status == ("arrived",) * 4, "it is back once its gradient is finite"
    silent = ranks(1).run(fit, Fit(Options(batch_norm=True, nan_calls=calls_of(2, range(12))), STRATEGY), 1)[0]
    assert silent["report"].status == ("arrived", "arrived", "broken", "arrived")
    assert silent["report"].left_out == (False, False, True, False)
    assert silent["metrics"]["val_accuracy"] > 0.6


def test_what_an_attack_breaks_is_broken_to_all():
    attacked = robust(4, 1, CoordinateMedian(), attackers=[1], attack=NonFinite(), weights=[2.0, 1.0, 1.0, 3.0])
    rows = torch.tensor([[2.0], [4.0], [6.0], [8.0]])
    more = {"absent": [2], "diagnose": True}
    _, memory, report = take(replace(attacked, estimator=WorkerMomentum(0.5)), Memory(), rows, **more)
    assert report.status == ("arrived", "broken", "absent", "arrived")
    assert report.adopted == (True, False, False, True)
    assert (report.census.weights, report.census.ages, report.census.used) == ([2, 0, 0, 3], [0] * 4, [3])
    assert report.norms.tolist() == pytest.approx([1, math.nan, math.nan, 4], nan_ok=True)
    assert {worker: own["estimator"]["momentum"].item() for worker, own in memory.workers.items()} == {0: 1, 3: 4}
    assert memory.counts == {"adopted": [1, 0, 0, 1]}


@dataclass(frozen=True)
class Louder(Estimator):
    """Sends the gradient, once more for each estimate that was adopted."""

    def init(self, like):
        return {}

    def update(self, memory, gradients, *, count):
        return gradients[0] * (count + 1), memory


def test_estimates_are_counted_by_worker_and_only_those_that_were_adopted():
    round, memory = replace(robust(3, 1, rule := Noting()), estimator=Louder()), Memory()
    nan = math.nan
    for values, absent in [((1, 1, 1), ()), ((1, 1, 1), (1,)), ((1, 1, nan), ()), ((nan, nan, 1), ()), ((1, 1, 1), ())]:
        _, memory, _ = take(round, memory, torch.tensor(values, dtype=torch.float32)[:, None], absent=absent)
    assert [seen["rows"] for seen in rule.seen] == [[1, 1, 1], [2, 0, 2], [3, 2, 0], [4, 3, 3]]
    assert memory.counts == {"adopted": [4, 3, 3]}


def test_a_nan_on_one_rank_of_two_does_not_stop_the_run(ranks):
    job = Fit(Options(nan_calls=tuple(range(100))), {"f": 1, "aggregator": CoordinateMedian(), "workers": 5})
    with pytest.raises(RankFailure, match="TooManyFaults"):
        ranks(2).run(fit, job, 2)
    results = ranks(2).run(
        fit_broken_on_rank_one, Fit(strategy={"f": 2, "aggregator": CoordinateMedian(), "workers": 5}), 2
    )
    for result in results:
        assert result["report"].status == ("arrived",) * 3 + ("broken",) * 2
        assert not same_bits(result["parameters"], results[0]["parameters"])


def fit_broken_on_rank_one(job: Fit, devices: int) -> dict:
    if os.environ["LOCAL_RANK"] == "1":
        job.options.nan_calls = tuple(range(100))
    return fit(job, devices)


def test_all_broken_stops_after_three_steps_and_names_the_workers(ranks):
    everything = tuple(call for worker in range(4) for call in calls_of(worker, range(2, 12)))
    with pytest.raises(RankFailure, match=r"3 steps in a row could not be taken.*workers \[0, 1, 2, 3\] sent"):
        ranks(1).run(fit, Fit(Options(nan_calls=everything), STRATEGY), 1)


def test_a_step_that_is_not_taken_changes_nothing(ranks):
    """Two bad steps are survived, and the parameters are as if their batches had never been there."""
    bad = tuple(call for worker in range(4) for call in calls_of(worker, range(10, 12)))
    survived = ranks(1).run(fit, Fit(Options(nan_calls=bad), STRATEGY), 1)[0]
    shorter = ranks(1).run(fit, Fit(Options(), STRATEGY, {"max_steps": 10}), 1)[0]
    assert survived["global_step"] == 12
    assert not same_bits(survived["parameters"], shorter["parameters"])


def test_none_is_absence_and_no_fault(ranks):
    for world, workers in ((1, 4), (2, 2)):
        strategy = {**STRATEGY, "f": 0, "workers": workers}
        silent = Options(none_calls=tuple(range(0, 100, 4)) if world == 1 else tuple(range(0, 100, 3)))
        for result in ranks(world).run(fit, Fit(silent, strategy), world):
            assert result["report"].taken
            assert all(bool(value.isfinite().all()) for value in result["parameters"].values())
    absent = Fit(Options(none_calls=calls_of(0, range(100))), {**STRATEGY, "f": 0})
    report = ranks(1).run(fit, absent, 1)[0]["report"]
    assert report.status == ("absent", "arrived", "arrived", "arrived")
    assert report.left_out == (False,) * 4


def test_all_absent_is_no_fault_either(ranks):
    result = ranks(1).run(fit, Fit(Options(none_calls=tuple(range(1000))), {**STRATEGY, "f": 0}), 1)[0]
    start = {name: value.detach() for name, value in Fit().module(Options()).named_parameters()}
    assert not same_bits(result["parameters"], start)


def test_a_gradient_scaler_lowers_its_scale_and_no_fault_is_counted(ranks):
    """Every worker overflows float16 until the scale has fallen far enough: more than three steps in a row are not taken."""
    strategy = {"f": 1, "aggregator": CoordinateMedian(), "estimator": WorkerMomentum(0.0)}
    options = Options(loss_factor=1e3, learning_rate=1e-5)
    alone = ranks(1).run(fit, Fit(options, {**strategy, "workers": 4}, scaler=True), 1)[0]
    assert alone["scale"] <= 65536 / 2**4
    assert alone["report"].taken
    start = {name: value.detach() for name, value in Classifier(options).named_parameters()}
    assert same_bits(alone["parameters"], start)
    for result in ranks(2).run(fit, Fit(options, {**strategy, "workers": 4}, scaler=True), 2):
        assert not same_bits(result["parameters"], alone["parameters"])
        assert result["scale"] == alone["scale"]


def test_absence_under_a_gradient_scaler(ranks):
    """Worker 2 never sends anything; on its own rank its scaler has nothing to scale."""
    strategy = {"f": 0, "aggregator": CoordinateMedian(), "workers": 3}
    alone = ranks(1).run(fit, Fit(Options(none_calls=tuple(range(2, 300, 3))), strategy, scaler=True), 1)[0]
    assert alone["report"].taken
    for result in ranks(3).run(fit_absent_on_the_last_rank, Fit(strategy=strategy, scaler=True), 3):
        assert not same_bits(result["parameters"], alone["parameters"])
        assert result["scale"] == alone["scale"]


def fit_absent_on_the_last_rank(job: Fit, devices: int) -> dict:
    job.options.none_calls = tuple(range(300)) if os.environ["LOCAL_RANK"] == "2" else ()
    return fit(job, devices)


def test_nobody_present_leaves_the_scale_alone(ranks):
    result = ranks(1).run(fit, Fit(Options(none_calls=tuple(range(1000))), {**STRATEGY, "f": 0}, scaler=True), 1)[0]
    assert result["scale"] == 65536
