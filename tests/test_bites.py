"""One process, numbers computed by hand: what rules are shown, what comes of it, and which steps are faults."""

import math

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from lightning_byz.aggregators import CoordinateMedian, Mean
from lightning_byz.callbacks import WorkerMonitor
from lightning_byz.estimators import WorkerMomentum
from tests.recording import ABSENT, NAN, Line, Noting, Plan, by_worker, column, train

pytestmark = pytest.mark.filterwarnings("ignore:Mean tolerates no Byzantine", "ignore:.*workers attack in this")


def noted(rows, rule=Noting, **more) -> Plan:
    """Four workers and a weighted mean that notes what it is shown."""
    options = {name: more.pop(name) for name in list(more) if name in Plan.__dataclass_fields__}
    return Plan(rows, {"workers": 4, "f": 1, "aggregator": rule(), **more}, **options)


def shown(record, name: str) -> list:
    return [seen[name] for seen in record["rule"]]


def file_of(path) -> dict:
    return torch.load(path, weights_only=True)["lightning_byz"]


# ---------------------------------------------------------------------- what the rule is shown, and what comes of it


def test_rows_weights_and_f_reach_the_rule_and_the_aggregate_the_optimizer():
    record = train(noted(((1, 2, 3, 4), (5, 6, 7, 8)), f=1.6, weights=[1, 2, 1, 1]))
    assert shown(record, "rows") == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert shown(record, "weights") == [[1, 2, 1, 1]] * 2
    assert shown(record, "f") == [2, 2]
    assert shown(record, "reference") == [None, None]
    assert column(record, "gradient") == pytest.approx([12 / 5, 32 / 5])
    assert column(record, "weight") == pytest.approx([-12 / 5, -44 / 5])
    assert column(record, "step") == [0, 1]
    assert column(record, "taken") == [True, True]
    assert column(record, "bytes_received") == [0, 0]
    assert by_worker(record, "index") == {worker: [[worker], [4 + worker]] for worker in range(4)}


def test_absence_leaves_f_and_a_broken_row_lowers_it():
    record = train(noted(((1, 2, 3, ABSENT), (NAN, 6, 7, 8), (ABSENT, NAN, 3, 5), (1, 1, 1, 1))))
    assert shown(record, "rows") == [[1, 2, 3, 0], [0, 6, 7, 8], [0, 0, 3, 5], [1, 1, 1, 1]]
    assert shown(record, "weights") == [[1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]]
    assert shown(record, "f") == [1, 0, 0, 1]
    assert column(record, "weight") == [-2, -9, -13, -14]


def test_the_report_says_who_counts():
    plan = noted(((1, 2, 6, NAN), (1, ABSENT, 6, 2)), Mean, weights=[1, 1, 1, 2], f=1.6)
    record = train(plan.but(callbacks=[WorkerMonitor()], trainer={"log_every_n_steps": 1}))
    assert column(record, "coefficients") == [
        pytest.approx(row) for row in ([1 / 3] * 3 + [0], [1 / 4, 0, 1 / 4, 1 / 2])
    ]
    assert column(record, "norms") == [pytest.approx(row, nan_ok=True) for row in ([1, 2, 6, NAN], [1, NAN, 6, 2])]
    distances = [[2, 1, 3, NAN], [1.75, NAN, 3.25, 0.75]]
    assert column(record, "distances") == [pytest.approx(row, nan_ok=True) for row in distances]
    assert train(plan)["steps"][0]["norms"] is None


def test_the_loss_that_callbacks_see_is_the_mean_over_the_workers():
    rows = ((1, 2, 3, 6), (2, 2, 2, 2), (ABSENT, 4, 4, 8))
    record = train(noted(rows, Mean, f=0, start=1.0))
    assert column(record, "loss") == pytest.approx([3, -4, -64 / 3])
    halves = train(noted(rows[:2], Mean, f=0, start=1.0, trainer={"accumulate_grad_batches": 2}))
    assert column(halves, "loss") == pytest.approx([3 / 2, 2 / 2])  # as Lightning's own: over the batches of a window
    alone = noted(((3,), (2,)), Mean, workers=1, f=0, start=1.0, trainer={"accumulate_grad_batches": 2})
    assert column(train(alone), "loss") == pytest.approx([3 / 2, 2 / 2])


@pytest.mark.parametrize("workers", [1, 4])
def test_a_window_is_the_mean_of_its_batches(workers):
    rows = tuple(tuple(row[:workers]) for row in ((1, 2, 3, 4), (5, 2, 1, 8), (3, 5, 7, 9)))
    record = train(noted(rows, workers=workers, f=0, trainer={"accumulate_grad_batches": 2}))
    assert shown(record, "rows") == [[3, 2, 2, 6][:workers], [1.5, 2.5, 3.5, 4.5][:workers]]
    absent = ((1, 2, 3, 4), (5, 2, 1, ABSENT), (3, ABSENT, 7, 9), (3, ABSENT, 7, 9))
    record = train(noted(absent, trainer={"accumulate_grad_batches": 2}))
    assert shown(record, "rows") == [[3, 2, 2, 2], [3, 0, 7, 9]]
    assert shown(record, "weights") == [[1, 1, 1, 1], [1, 0, 1, 1]]


class EveryOther(Line):
    """Steps at every other batch, as Lightning's documentation shows."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.step(closure=optimizer_closure) if batch_idx % 2 else optimizer_closure()


@pytest.mark.parametrize("workers", [1, 4])
def test_gradients_of_a_window_without_a_step_are_forgotten(workers):
    rows = tuple(tuple(row[:workers]) for row in ((1, 2, 3, 4), (5, 6, 7, 8), (ABSENT, 2, 3, 4), (9, 6, 7, 8)))
    record = train(noted(rows, workers=workers, f=0, module=EveryOther))
    assert shown(record, "rows") == [[5, 6, 7, 8][:workers], [9, 6, 7, 8][:workers]]


class Unused(Line):
    """One parameter that only samples above 3 use, and one that nothing does; all shrink by half where there is a gradient."""

    def __init__(self, plan):
        super().__init__(plan)
        self.some, self.never = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))

    def loss(self, x):
        return super().loss(x) + (self.some * x.sum() if bool(x.sum() > 3) else 0.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0, weight_decay=0.5)


def test_what_nobody_used_has_no_gradient_and_what_some_used_counts_as_zero():
    first = train(noted(((1, 2, 3, 4),), Mean, f=0, module=Unused))["parameters"]
    assert first == {"weight": [-2.5], "some": 1 - 4 / 4 - 0.5, "never": 1}
    untouched = train(noted(((1, 2, 3, 2),), Mean, f=0, module=Unused))["parameters"]
    assert untouched == {"weight": [-2.0], "some": 1, "never": 1}


class Late(Noting):
    """Right at first; from the second step on its aggregate is something else."""

    def __init__(self, later=lambda vector: vector * NAN):
        super().__init__()
        self.later = later

    def __call__(self, stack, *, generator=None):
        vector = super().__call__(stack, generator=generator)
        return vector if len(self.seen) < 2 else self.later(vector)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_rule_that_turns_to_nan_is_named(workers):
    rows = tuple((1, 2, 3, 6)[:workers] for _ in range(3))
    record = train(noted(rows, Late, workers=workers, f=0, may_fail=True))
    assert column(record, "step") == [0]
    assert record["error"].startswith("RuntimeError: Late returned values that are not finite")


def test_a_rule_that_turns_to_another_shape_is_named():
    record = train(noted(((1, 2, 3, 6),) * 3, lambda: Late(lambda vector: vector[:0]), may_fail=True))
    assert "Late must return a floating point vector of 1 coordinates, not (0,)" in record["error"]


def test_a_rule_may_return_float64():
    record = train(noted(((1, 2, 3, 6),) * 2, lambda: Late(torch.Tensor.double)))
    assert record["weight"] == -6
    huge = train(noted(((1, 2, 3, 6),) * 2, lambda: Late(lambda vector: vector.double() * 1e300)))
    assert huge["weight"] == pytest.approx(-torch.finfo(torch.float32).max)


# ---------------------------------------------------------------------- faults


BAD, GOOD, AWAY = (NAN, NAN, 3, 4), (1, 2, 3, 6), (ABSENT,) * 4


def test_a_good_step_clears_the_count_of_faults():
    record = train(noted((BAD, GOOD, BAD, BAD, GOOD, BAD, BAD), may_fail=True))
    assert record["error"] == ""
    assert column(record, "taken") == [False, True, False, False, True, False, False]
    assert column(record, "step") == list(range(7))
    assert column(record, "weight") == [0, -3, -3, -3, -6, -6, -6]
    assert column(record, "gradient") == [None, 3, None, None, 3, None, None]
    assert "weigh 2" in record["steps"][0]["reason"]
    assert record["steps"][1]["reason"] == ""


def test_three_in_a_row_stop_the_run_and_absence_does_not_count():
    record = train(noted((GOOD, BAD, AWAY, BAD, AWAY, BAD, GOOD), may_fail=True))
    assert column(record, "taken") == [True, False, False, False, False]
    assert record["error"].startswith("TooManyFaults: 3 steps in a row")
    assert "workers [0, 1] sent values that are not finite" in record["error"]
    assert record["weight"] == -3


def test_too_few_workers_for_the_rule_are_a_fault_with_a_reason():
    rows = ((ABSENT, ABSENT, 3, 4),) * 4
    record = train(noted(rows, CoordinateMedian, may_fail=True))
    assert column(record, "taken") == [False] * 2
    assert "CoordinateMedian cannot tolerate f = 1" in record["steps"][0]["reason"]
    assert record["error"].startswith("TooManyFaults")


def test_the_weightless_are_no_fault():
    rows = ((ABSENT, ABSENT, ABSENT, NAN),) * 5
    record = train(noted(rows, f=1.6, weights=[1, 1, 1, 0]))
    assert column(record, "taken") == [False] * 5


def test_the_count_of_faults_survives_a_resume(tmp_path):
    path = str(tmp_path / "two.ckpt")
    rows = (GOOD, BAD, BAD)
    train(noted(rows, save={3: path}))
    assert (file_of(path)["optimizers"][0]["step"], file_of(path)["optimizers"][0]["faults"]) == (3, 2)
    bad = train(noted((BAD, GOOD, GOOD), checkpoint=path, may_fail=True, trainer={"max_epochs": 2}))
    assert bad["error"].startswith("TooManyFaults")
    good = train(noted((GOOD, BAD, BAD), checkpoint=path, trainer={"max_epochs": 2}))
    assert column(good, "step") == [3, 4, 5]
    assert column(good, "weight") == [-6, -6, -6]


def scaled(rows, scale: float, **more) -> Plan:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}
    return noted(rows, trainer=trainer, **more)


def test_rules_see_rows_without_the_scale():
    record = train(scaled(((1, 2, 3, 6), (1, 1, 1, 1)), 64.0, estimator=WorkerMomentum(0.5)))
    assert shown(record, "rows") == [[0.5, 1, 1.5, 3], [0.75, 1, 1.25, 2]]
    assert record["weight"] == -1.5 - 1.25


def test_a_scaler_that_searches_makes_no_faults_until_its_scale_is_one():
    assert column(train(scaled((BAD,) * 5, 64.0, may_fail=True)), "taken") == [False] * 5
    stopped = train(scaled((BAD,) * 5, 1.0, may_fail=True))
    assert (len(stopped["steps"]), stopped["error"][:13]) == (2, "TooManyFaults")
    searching, alone = scaled((BAD,), 64.0), scaled((AWAY,) * 2, 64.0)
    assert column(train(searching), "gradient") == [math.inf]
    assert column(train(alone), "gradient") == [None, None]
    assert [fit.trainer["plugins"][0].scaler.get_scale() for fit in (searching, alone)] == [32, 64]
    late = train(scaled((BAD,) * 6, 4.0, may_fail=True))
    assert (len(late["steps"]), late["error"][:13]) == (4, "TooManyFaults")
