"""Metrics of what rules do with workers: against plain arithmetic, alone, on reports of rounds, and over ranks."""

import math
from typing import Any

import pytest
import torch
from torchmetrics import MetricCollection

from lightning_byz.aggregators import CTMA, CoordinateMedian, Mean, TrimmedMean
from lightning_byz.attacks import Attack, ReverseGradient
from lightning_byz.blocks import block_size
from lightning_byz.census import Arrival, Census
from lightning_byz.memory import Memory
from lightning_byz.metrics import AggregationError, Deliveries, Exclusion, Staleness, Traffic, WorkerMeans
from lightning_byz.preaggregators import NNM, Bucketing
from lightning_byz.rounds import Report
from lightning_byz.rounds.report import diagnosed
from lightning_byz.stack import Stack
from lightning_byz.testing.cutting import on_slices
from tests.rounds import robust, take

TWO_RANKS: dict[str, Any] = {
    "dist_sync_fn": lambda state, group: [state, state],
    "distributed_available_fn": lambda: True,
}


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def numbers(computed: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in computed.items()}


def report(arrival: str, **parts: Any) -> Report:
    """Return a report; a letter per worker: arrived, broken, silent, not due."""
    words = {"a": Arrival.ARRIVED, "b": Arrival.BROKEN, "s": Arrival.ABSENT, "n": Arrival.NOT_DUE}
    weights = [float(letter == "a") for letter in arrival]
    census = Census([words[letter] for letter in arrival], weights, parts.pop("ages", [0] * len(arrival)), [])
    return Report(step=0, taken=True, census=census, **parts)


def realised(aggregate: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> tuple[float, float]:
    """Return squared distance from the weighted mean, and variance, by the definition."""
    shares = weights / weights.sum()
    mean = shares @ rows
    return float((aggregate - mean).square().sum()), float(shares @ (rows - mean).square().sum(1))


def test_the_error_is_that_of_the_definition() -> None:
    rows = torch.randn(7, 300, generator=torch.Generator().manual_seed(0))
    metric, steps = AggregationError(), []
    for scale in (1.0, 5.0):
        aggregate = CoordinateMedian()(Stack(scale * rows, f=2))
        metric.update(aggregate, scale * rows[:5], kappa=scale)
        steps.append(realised(aggregate.double(), scale * rows[:5].double(), torch.ones(5).double()))
    (error, variance), (more, wider) = steps
    assert numbers(metric.compute()) == pytest.approx(
        {"error": (error + more) / (variance + wider), "worst_error": max(error / variance, more / wider), "kappa": 5.0}
    )


def test_an_aggregate_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="was given an aggregate alone; give it the honest rows too, or a report"):
        AggregationError().update(torch.zeros(3))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_what_is_not_known_is_nan() -> None:
    unmeasured = report("aa")
    for metric in (AggregationError(), Exclusion([0])):
        metric.update(unmeasured)
        assert all(math.isnan(value) for value in numbers(metric.compute()).values())
    nobody_honest = report("aa", error=math.nan, variance=math.nan, kappa=2.0)
    metric = AggregationError()
    metric.update(nobody_honest)
    assert math.isnan(numbers(metric.compute())["error"])


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 1.0, 3.0, 1.0]])
def test_a_round_measures_the_honest_rows(weights: list[float] | None) -> None:
    rows = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    attacked = robust(5, 1, CoordinateMedian(), attackers=[4], attack=ReverseGradient(factor=10), weights=weights)
    vector, _, seen = take(attacked, Memory(), rows, diagnose=True)
    assert vector is not None
    masses = doubles(*(weights or [1.0] * 5))[:4]
    error, variance = realised(vector.double(), rows[:4].double(), masses)
    assert (seen.error, seen.variance) == pytest.approx((error, variance), rel=1e-5)
    total, f = (5, 1) if weights is None else (8 / 3, 1)  # the heaviest worker weighs 3 of 8
    assert seen.kappa == pytest.approx(CoordinateMedian().kappa(total, f))
    assert seen.error / seen.variance < seen.kappa
    metric = AggregationError()
    metric.update(seen)
    assert numbers(metric.compute())["error"] == pytest.approx(error / variance, rel=1e-5)


def test_attackers_without_an_attack_and_absent_workers() -> None:
    rows = torch.tensor([[1.0], [2.0], [6.0], [100.0]])
    idle = take(robust(4, 1, TrimmedMean(), attackers=[2]), Memory(), rows, absent=[3], diagnose=True).report
    assert (idle.error, idle.variance) == pytest.approx(
        realised(doubles(2.0), rows[:3].double(), torch.ones(3).double())
    )
    alone = take(
        robust(4, 1, TrimmedMean(), attackers=range(4), attack=ReverseGradient(factor=1)), Memory(), rows, diagnose=True
    ).report
    assert math.isnan(alone.error)
    assert math.isnan(alone.variance)
    unmeasured = take(robust(4, 1, TrimmedMean()), Memory(), rows).report
    assert (unmeasured.error, unmeasured.variance, unmeasured.kappa) == (None, None, None)


def test_kappa_is_that_of_the_whole_chain() -> None:
    """Pre-aggregators hand their f on, and f is that of who is left."""
    rows = torch.randn(9, 5, generator=torch.Generator().manual_seed(2))
    chain = robust(9, 1, CTMA(CoordinateMedian()), preaggregators=[Bucketing(2), NNM()])
    seen = take(chain, Memory(), rows, diagnose=True).report
    following = NNM().kappa(9, 2, CTMA(CoordinateMedian()).kappa(9, 2))
    assert seen.kappa == pytest.approx(Bucketing(2).kappa(9, 1, following))
    assert take(robust(9, 0, Mean()), Memory(), rows, diagnose=True).report.kappa is None
    rows[0] = math.nan
    fewer = take(robust(9, 2, CoordinateMedian()), Memory(), rows, diagnose=True).report
    assert fewer.kappa == pytest.approx(CoordinateMedian().kappa(8, 1))


def test_slices_measure_the_whole_alike() -> None:
    d = 5 * block_size(1000) + 7
    rows = torch.randn(4, d, generator=torch.Generator().manual_seed(3))
    whole = Stack(rows, f=1)
    vector, blank = CoordinateMedian()(whole), report("aaaa")

    def measured(stack: Stack) -> tuple:
        part = vector if stack.slice is None else vector[stack.slice.start : stack.slice.stop]
        seen = diagnosed(blank, stack, part, attackers=[1])
        return seen.error, seen.variance, seen.norms.tolist(), seen.distances.tolist()

    width = block_size(d)
    assert on_slices(measured, whole, [0, width, width, d]) == [measured(whole)] * 3
    assert measured(whole)[0] == pytest.approx(
        realised(vector.double(), rows[[0, 2, 3]].double(), torch.ones(3).double())[0]
    )


class Shout(Attack):
    """Sends what is as large as a row may be."""

    def replace(self, sight: Any) -> torch.Tensor:
        return torch.full_like(sight.own, 1e38)


def test_a_huge_row_of_an_attacker_costs_no_digits() -> None:
    rows = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    seen = take(robust(4, 1, CoordinateMedian(), attackers=[3], attack=Shout()), Memory(), rows, diagnose=True).report
    assert (seen.error, seen.variance) == pytest.approx((0.25, 2 / 3))


def test_precision_and_recall_count_messages() -> None:
    metric = Exclusion([0, 3])
    metric.update(report("aaaa", coefficients=doubles(0.0, 0.5, 0.5, 0.0)))  # both attackers left out
    metric.update(
        report("baas", coefficients=doubles(0.0, 0.0, 1.0, 0.0))
    )  # one broken, one silent; an honest one left out
    metric.update(report("aaaa"))  # a rule without coefficients says nothing
    assert numbers(metric.compute()) == {"precision": 3 / 4, "recall": 1.0}
    metric.update(torch.tensor([0.5, 0.5, 0.0, 0.0]), sent=torch.tensor([True, True, True, False]))
    assert numbers(metric.compute()) == {"precision": 3 / 5, "recall": 3 / 4}


def test_ages_of_messages_in_use() -> None:
    metric = Staleness()
    metric.update(report("aab", ages=[0, 4, 9]))
    metric.update(report("aaa", ages=[1, 1, 0]).census)
    assert numbers(metric.compute()) == {"mean_age": 6 / 5, "max_age": 4.0}


def test_traffic_per_step_and_in_all() -> None:
    metric = Traffic()
    moved = {"bytes_received": 10, "bytes_sent": 8, "message_bytes": 6, "aggregate_bytes": 4}
    metric.update(report("abns", **moved, exchange_seconds=1.0, rule_seconds=3.0))
    metric.update(30, exchange_seconds=2.0)
    assert numbers(metric.compute()) == {
        "bytes_received": 20.0, "bytes_total": 40.0, "bytes_sent": 4.0, "bytes_sent_total": 8.0,
        "uplink_bytes": 6.0, "uplink_total": 12.0, "downlink_bytes": 2.0, "downlink_total": 4.0,
        "exchange_seconds": 1.5, "rule_seconds": 1.5,
    }  # fmt: skip


@pytest.mark.parametrize("ranks", [{}, TWO_RANKS], ids=["alone", "two ranks"])
def test_two_ranks_see_the_same_steps_and_each_its_own_bytes(ranks: dict[str, Any]) -> None:
    seen = report(
        "ab", coefficients=doubles(1.0, 0.0), norms=doubles(2.0, math.nan), distances=doubles(1.0, math.nan),
        error=1.0, variance=4.0, kappa=2.0, bytes_received=10, bytes_sent=3, message_bytes=6, aggregate_bytes=4, rule_seconds=3.0,
        ages=[2, 0],
    )  # fmt: skip
    parts = [
        WorkerMeans(2, **ranks),
        Traffic(**ranks),
        AggregationError(**ranks),
        Exclusion([1], **ranks),
        Staleness(**ranks),
    ]
    collection = MetricCollection(parts, compute_groups=False)
    collection.update(seen)
    computed = {name: value.tolist() for name, value in collection.compute().items()}
    received = 20.0 if ranks else 10.0
    assert computed == {
        "coefficient": [1.0, 0.0], "norm": [2.0, pytest.approx(math.nan, nan_ok=True)],
        "distance": [1.0, pytest.approx(math.nan, nan_ok=True)], "left_out": [0.0, 1.0], "broken": [0.0, 1.0],
        "absent": [0.0, 0.0], "bytes_received": received, "bytes_total": received, "bytes_sent": 0.3 * received,
        "bytes_sent_total": 0.3 * received, "uplink_bytes": 12.0, "uplink_total": 12.0, "downlink_bytes": 4.0,
        "downlink_total": 4.0, "exchange_seconds": 0.0,
        "rule_seconds": 3.0, "error": 0.25, "worst_error": 0.25, "kappa": 2.0, "precision": 1.0, "recall": 1.0,
        "mean_age": 2.0, "max_age": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "metric", [WorkerMeans(2), Deliveries(2), Traffic(), AggregationError(), Exclusion([1]), Staleness()]
)
def test_forward_adds_as_update_does(metric: Any) -> None:
    steps = [
        report("aa", coefficients=doubles(1.0, 0.0), norms=doubles(2.0, 3.0), distances=doubles(1.0, far), error=far,
               variance=4.0, kappa=2.0, bytes_received=int(far), ages=[2, int(far)])
        for far in (1.0, 7.0)
    ]  # fmt: skip
    for step in steps:
        metric(step)
    forwarded = metric.compute()
    metric.reset()
    for step in steps:
        metric.update(step)
    assert {name: value.tolist() for name, value in metric.compute().items()} == {
        name: value.tolist() for name, value in forwarded.items()
    }
