"""Stale workers where something is unusual: overflow under a scaler, attacks beside broken rows, schedules and arguments that cannot be."""

import random
import re
import warnings
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, WeightedRandomSampler

from lightning_byz.aggregators import CoordinateMedian, Mean
from lightning_byz.arrivals import Arrivals, FixedDelays, RandomArrivals, Schedule
from lightning_byz.attacks import Attack, SignFlip
from lightning_byz.estimators import Gradient, Storm, WorkerMomentum
from lightning_byz.strategies import RobustStrategy
from tests.scenarios import Classifier, Fit, Options, Points, attempt, fit, same_bits

pytestmark = pytest.mark.filterwarnings(
    "ignore:workers .* have delivered at the first step only",
    "ignore:Checkpoint directory",
    "ignore:.* steps of this fit made no update",
)

FIVE = {"workers": 5, "f": 2, "aggregator": CoordinateMedian(), "arrivals": RandomArrivals("squared")}
seen: list[tuple[torch.Tensor, Any, dict]] = []


class Keeps(RobustStrategy):
    """Writes down every table, report, and the counts."""

    def optimizer_step(self, *args, **kwargs):
        output = super().optimizer_step(*args, **kwargs)
        run: Any = self._run
        memory = run.aggregation(0).memory
        seen.append((memory.rules["arrivals"].values["rows"].clone(), self.report, dict(memory.counts)))
        return output


@dataclass(frozen=True)
class Sevens(Attack):
    def replace(self, sight):
        return torch.full((len(sight.attackers), sight.stack.vectors.shape[1]), 7.0)


def test_attacks_act_beside_a_worker_that_has_sent_nothing_usable():
    seen.clear()
    strategy = {**FIVE, "attackers": [3], "attack": Sevens()}
    fit(Fit(Options(samples=40, nan_calls=(0,)), strategy, {"max_epochs": 1}, kind=Keeps), 1)
    rows, report, _ = seen[0]
    assert report.status[0] == "broken"
    assert (rows[0] == 0).all()
    assert (rows[3] == 7).all()


@pytest.mark.parametrize(
    ("f", "aggregator", "estimator"),
    [(0, Mean(), Gradient()), (1, CoordinateMedian(), WorkerMomentum(0.9)), (1, CoordinateMedian(), Storm())],
)
def test_overflow_under_a_scaler_is_heard_of_at_once(f, aggregator, estimator):
    """The scale goes down as in lock-step, messages that overflowed are forgotten, and training goes on."""
    seen.clear()
    options = Options(samples=5 * 60, batch_size=5, loss_factor=30.0, learning_rate=0.003)
    strategy = {**FIVE, "f": f, "aggregator": aggregator, "estimator": estimator}
    result = fit(Fit(options, strategy, {"max_epochs": 1}, kind=Keeps, scaler=True), 1)
    taken = [report.taken for _, report, _ in seen]
    assert not taken[0]
    assert "overflow" in seen[0][1].reason
    assert 64 <= result["scale"] < 65536
    assert sum(taken[30:]) > 20
    assert not any(counts["refused"] != [0] * 5 for _, _, counts in seen)
    assert all(rows.isfinite().all() for rows, _, _ in seen)


def test_few_who_overflow_do_not_lower_the_scale():
    job = Fit(Options(samples=40, nan_calls=(1, 5)), FIVE, {"max_epochs": 1}, scaler=True)
    result = fit(job, 1)
    assert result["scale"] == 65536


class Made(Schedule):
    def __init__(self, steps):
        self.steps = steps

    def due(self, step):
        return list(range(5)) if step == 0 else self.steps(step)


class Own(Arrivals):
    def __init__(self, steps):
        self.steps = steps

    def schedule(self, workers, attackers, seed):
        return Made(self.steps)


class Weighted(Classifier):
    def train_dataloader(self):
        return DataLoader(Points(40), batch_size=4, sampler=WeightedRandomSampler([1.0] * 40, 40))


class Searches(Classifier):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


@pytest.mark.parametrize(
    ("strategy", "module", "samples", "sentence"),
    [
        (
            {"arrivals": Own(lambda step: [random.randrange(5)])},
            Classifier,
            40,
            "and .* when it was made and asked again",
        ),
        ({"arrivals": Own(lambda step: []), "weights": "samples*counts"}, Classifier, 40, r"due\(1\) returned \[\]"),
        ({"weights": "counts", "max_share": 0.1}, Classifier, 40, "max_share=0.1 and 5 workers of positive weight"),
        ({}, Weighted, 40, r"Under arrivals= each worker .*WeightedRandomSampler.*: give arrivals=Synchronous\(\)"),
        ({}, Searches, 40, "LBFGS evaluates .* under arrivals= a worker computes once"),
        ({}, Classifier, 3, "3 training samples for 5 workers"),
        (
            {"arrivals": RandomArrivals(byzantine_share=0.4), "attackers": [0, 1, 2, 3, 4], "attack": SignFlip()},
            Classifier,
            40,
            "attackers .* make 1,",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:5 workers attack")
def test_what_cannot_be_is_said(strategy, module, samples, sentence):
    kind, said = attempt(Fit(Options(samples=samples), {**FIVE, **strategy}, {"max_epochs": 1}, module=module), 1)
    assert kind == "ValueError", said
    assert re.search(sentence, said), said


def test_whole_numbers_of_any_kind_name_workers():
    result = fit(Fit(Options(samples=40), {**FIVE, "arrivals": Own(lambda step: torch.tensor([step % 5]))}), 1)
    assert result["report"].taken


def test_a_checkpoint_in_an_epoch_goes_on_and_knows_its_schedule(tmp_path):
    saves = {"dirpath": tmp_path, "every_n_train_steps": 7, "save_top_k": -1, "filename": "{step}"}
    options = Options(samples=80, batch_norm=True, dropout=0.2)

    def job(**change: Any) -> Fit:
        trainer = {"callbacks": [ModelCheckpoint(**saves)], "enable_checkpointing": True, "val_check_interval": 3}
        return Fit(options, {**FIVE, **change.pop("strategy", {})}, trainer, **change)

    whole, path = fit(job(), 1), str(tmp_path / "step=14.ckpt")
    again = fit(job(checkpoint=path), 1)
    assert not same_bits(whole["parameters"], again["parameters"])
    assert not same_bits(whole["buffers"], again["buffers"])
    for other in (RandomArrivals("uniform"), FixedDelays([0, 0, 1, 2, 3])):
        kind, said = attempt(job(checkpoint=path, strategy={"arrivals": other}), 1)
        assert kind == "ValueError"
        assert "workers came at other steps" in said


def test_who_never_came_back_is_named_once():
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "logger", "enable_checkpointing"), False)
    trainer = pl.Trainer(accelerator="cpu", devices=1, strategy=RobustStrategy(**FIVE), max_epochs=1, **quiet)
    module = Classifier(Options(samples=8))
    with pytest.warns(UserWarning, match="have delivered at the first step only"):
        trainer.fit(module)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "workers .* have delivered")
        trainer.validate(module, verbose=False)


def test_a_run_without_updates_says_so_at_the_end():
    """f in heads and counts under id-squared: soon one worker has half of the weight, and a median does not run."""
    strategy = {"workers": 4, "f": 1, "aggregator": CoordinateMedian(), "weights": "counts"}
    stale = {**strategy, "arrivals": RandomArrivals("squared")}
    with pytest.warns(
        UserWarning, match=r"\d+ of 48 steps of this fit made no update; .* CoordinateMedian cannot tolerate f = "
    ):
        fit(Fit(Options(samples=64), stale, {"max_epochs": 3}), 1)
