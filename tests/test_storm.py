"""Storm: whose point is whose after refusals and absences, what a file keeps, and what is refused."""

import re
from dataclasses import dataclass, replace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lightning_byz import RobustStrategy
from lightning_byz.aggregators import CoordinateMedian, Mean
from lightning_byz.estimators import Estimator, Gradient, Storm, WorkerMomentum
from tests.recording import ABSENT, NAN, Line, Plan, column, train
from tests.scenarios import Classifier, Fit, Options, attempt, fit, same_bits

STRATEGY = {"workers": 4, "f": 1, "aggregator": CoordinateMedian(), "estimator": Storm(0.25)}
OPTIONS = Options(dropout=0.2, batch_norm=True, samples=48, learning_rate=0.02)
NUMBERS = [[float((7 * step + 3 * worker) % 11) for worker in range(4)] for step in range(24)]


class Bowl(Line):
    """Its loss is a bowl around the sample, steeper for some samples: gradients follow the parameters."""

    def loss(self, x):
        return (0.5 + 0.1 * x.abs()).detach().mul((self.weight - x).square()).sum(1).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def restated(rows, weight) -> list[float]:
    """Storm with a point and a count per worker, behind a median, in float64."""
    w, trajectory = 0.0, []
    estimates, points, counts = [0.0] * 4, [0.0] * 4, [0] * 4
    for step in rows:
        sent = {}
        for worker, x in enumerate(step):
            if np.isfinite(x):
                here, there = ((1 + 0.2 * abs(x)) * (at - x) for at in (w, points[worker]))
                rest = 1 - weight(counts[worker]) if counts[worker] else 0.0
                sent[worker] = here + rest * (estimates[worker] - there)
        for worker, estimate in sent.items():
            estimates[worker], points[worker], counts[worker] = estimate, w, counts[worker] + 1
        w -= 0.05 * float(np.median(list(sent.values())))
        trajectory.append(w)
    return trajectory


FAULTS = {
    "none": {},
    "refused once": {(3, 2): NAN},
    "absent once": {(4, 1): ABSENT},
    "both, twice": {(3, 2): NAN, (4, 1): ABSENT, (5, 1): NAN, (9, 0): ABSENT},
    "refused at first": {(0, 2): NAN, (0, 3): ABSENT, (1, 3): ABSENT},
}


def with_faults(name: str) -> list[list[float]]:
    return [[FAULTS[name].get((step, worker), x) for worker, x in enumerate(row)] for step, row in enumerate(NUMBERS)]


@pytest.mark.parametrize("beta", [0.25, None, "released"])
@pytest.mark.parametrize("name", FAULTS)
def test_each_worker_is_corrected_at_its_own_point(ranks, name, beta):
    rows = with_faults(name)
    (record,) = ranks(1).run(train, Plan(rows, {**STRATEGY, "estimator": Storm(beta)}, module=Bowl))
    assert column(record, "weight") == pytest.approx(restated(rows, Storm(beta).weight), rel=1e-5, abs=1e-6)
    steps = sum(row.count(NAN) + row.count(ABSENT) for row in rows)
    assert all(column(record, "taken"))
    assert bool(steps) == (name != "none")


@pytest.mark.parametrize(("accumulated", "points"), [(1, [5, 3, 5, 5]), (2, [2, 1, 2, 2])])
def test_on_two_ranks_and_through_a_file(ranks, tmp_path, accumulated, points):
    """Saved right after a refusal and an absence, on another layout."""
    path, trainer = str(tmp_path / "half.ckpt"), {"max_epochs": 4, "accumulate_grad_batches": accumulated}
    plan = Plan(with_faults("both, twice")[:6], STRATEGY, trainer, module=Bowl)
    (whole,) = ranks(1).run(train, plan)
    for first, then in [(1, 2), (2, 1)]:
        for result in ranks(first).run(train, plan.but(save={6: path}), first):
            assert result["weight"] == whole["weight"]
        file = torch.load(path, weights_only=True)["lightning_byz"]["optimizers"][0]
        assert file["counts"]["point"] == points
        assert sorted(file["points"]) == sorted(set(points))
        for result in ranks(then).run(train, plan.but(checkpoint=path), then):
            assert result["weight"] == whole["weight"]
            assert len(result["steps"]) == 18


@pytest.mark.parametrize(("workers", "first", "then"), [(4, 1, 2), (4, 2, 1), (2, 2, 2), (2, 2, 1), (1, 1, 1)])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_resume_equals_no_interruption(ranks, tmp_path, workers, first, then, accumulated):
    trainer = {"accumulate_grad_batches": accumulated}
    job = Fit(OPTIONS, {**STRATEGY, "workers": workers, "f": 0}, trainer)
    path, shorter = str(tmp_path / "half.ckpt"), replace(job, trainer={**trainer, "max_epochs": 1})
    shorter = replace(shorter, save=path)
    whole = ranks(first).run(fit, job, first)[0]
    half = ranks(first).run(fit, shorter, first)[0]
    assert same_bits(half["parameters"], whole["parameters"])
    for result in ranks(then).run(fit, replace(job, seed=9, checkpoint=path), then):
        assert not same_bits(result["parameters"], whole["parameters"])
        assert not same_bits(result["buffers"], whole["buffers"])


@pytest.mark.parametrize("saved", [Gradient(), WorkerMomentum(0.5)])
def test_a_file_of_another_estimator_is_refused(ranks, tmp_path, saved):
    path = str(tmp_path / "half.ckpt")
    job = Fit(OPTIONS, {**STRATEGY, "estimator": saved}, {"max_epochs": 1}, save=path)
    ranks(1).run(fit, job, 1)
    ((kind, sentence),) = ranks(1).run(attempt, Fit(OPTIONS, STRATEGY, checkpoint=path), 1)
    assert kind == "ValueError"
    assert re.search(r"this run's estimator remembers \['estimate', 'joined'\]", sentence)


@dataclass(frozen=True)
class Keeps(Estimator):
    """Remembers its second gradient without a copy."""

    points = 2

    def init(self, like):
        return {"there": torch.zeros_like(like)}

    def update(self, memory, gradients, *, count):
        return gradients[0] + 0.1 * memory["there"], {"there": gradients[1]}


@dataclass(frozen=True)
class Copies(Keeps):
    def update(self, memory, gradients, *, count):
        estimate, left = super().update(memory, gradients, count=count)
        return estimate, {"there": left["there"].clone()}


def test_a_second_gradient_may_be_remembered(ranks):
    results = [
        ranks(1).run(fit, Fit(OPTIONS, {**STRATEGY, "estimator": own}), 1)[0] for own in (Keeps(), Copies(), Gradient())
    ]
    assert not same_bits(results[0]["parameters"], results[1]["parameters"])
    assert same_bits(results[0]["parameters"], results[2]["parameters"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype):
    rule, gradients = Storm(0.25), torch.randn(5, 2, 7, dtype=torch.float64).to(dtype)
    memory, exact = rule.init(gradients[0][0]), None
    for count, (here, there) in enumerate(gradients):
        exact = here.double() + (0.75 * (exact - there.double()) if count else 0)
        estimate, memory = rule.update(memory, [here, there], count=count)
        assert estimate.dtype == dtype
        assert memory["estimate"].dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(memory["estimate"].double(), exact, rtol=1e-5, atol=1e-5)


def test_schedules():
    counts = [0, 1, 2, 6, 98, 99, 100, 500]
    theory = [1, 1 / 2, 1 / 3, 1 / 7, 1 / 99, 1 / 100, 1 / 101, 1 / 501]
    assert [Storm().weight(count) for count in counts] == [Storm("theory").weight(count) for count in counts] == theory
    assert [Storm("released").weight(count) for count in counts] == [1, 0.5, 0.333, 0.143, 0.01, 0.01, 0.01, 0.01]
    assert {Storm(0.25).weight(count) for count in counts} == {0.25}


@pytest.mark.parametrize("beta", [0, 0.0, 1.5, -0.1, float("nan"), True, False])
def test_weights_that_are_refused(beta):
    with pytest.raises(ValueError, match=r"Storm\(beta=.*must be in \(0, 1\]"):
        Storm(beta)


@pytest.mark.parametrize("clip", [0, -1.0, float("inf"), float("nan"), True])
@pytest.mark.parametrize("kind", [Storm, WorkerMomentum])
def test_lengths_that_are_refused(kind, clip):
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(clip=.*finite and positive"):
        kind(clip=clip)


class ByHand(Classifier):
    def __init__(self, options):
        super().__init__(options)
        self.automatic_optimization = False


class Fetches(Classifier):
    def training_step(self, dataloader_iter):
        raise AssertionError


class Generates(Classifier):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return (one for one in batch) if self.trainer.training else batch


class Decays(Classifier):
    """Shrinks its weights in its step, as some do instead of weight decay."""

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            self.network[0].weight.mul_(0.99)
        return super().training_step(batch, batch_idx)


class DecaysData(Classifier):
    def training_step(self, batch, batch_idx):
        self.network[0].weight.data.mul_(0.99)
        return super().training_step(batch, batch_idx)


REFUSED = {
    ByHand: "ByHand uses manual optimization.*twice on each batch",
    Fetches: r"training_step\(dataloader_iter\) fetches its own batches, and Storm evaluates",
    Generates: "A batch of type generator cannot be copied.*let the loader yield tensors",
    Decays: r"'network\.0\.weight' is written to in place",
    DecaysData: r"'network\.0\.weight' is written to in place",
}


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("module", REFUSED)
def test_modules_that_are_refused(ranks, module, workers):
    ((kind, sentence),) = ranks(1).run(
        attempt, Fit(strategy={**STRATEGY, "f": 0, "workers": workers}, module=module), 1
    )
    assert kind == "ValueError"
    if workers == 1 or module not in (ByHand, Fetches):
        assert re.search(REFUSED[module], sentence)


class Twice(torch.optim.SGD):
    """Evaluates its closure twice a step, as sharpness-aware minimization does."""

    def step(self, closure=None):
        closure()
        return super().step(closure)


@pytest.mark.parametrize(("estimator", "refused"), [(Gradient(), False), (WorkerMomentum(), True), (Storm(), True)])
def test_an_optimizer_that_evaluates_twice(estimator, refused) -> None:
    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(8, 3)

        def training_step(self, batch, batch_idx):
            return self.layer(batch[0]).square().mean()

        def configure_optimizers(self):
            return Twice(self.parameters(), lr=0.1)

    strategy = RobustStrategy(workers=2, f=0, aggregator=Mean(), estimator=estimator)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, strategy=strategy, max_steps=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(16, 8)), batch_size=4)
    if refused:
        with pytest.raises(ValueError, match=r"^Twice evaluates the gradient several times a step"):
            trainer.fit(Module(), loader)
    else:
        trainer.fit(Module(), loader)
        assert trainer.global_step == 2
