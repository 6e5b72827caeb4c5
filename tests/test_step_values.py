"""What several workers of a rank log: alike on all ranks, and what it should be."""

from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torchmetrics.classification import BinaryAccuracy

from lightning_byz.aggregators import CoordinateMedian
from tests.scenarios import Classifier, Fit, Options, fit, same_bits

FOUR = {"f": 1, "aggregator": CoordinateMedian(), "workers": 4}


class Says(pl.LightningModule):
    """Logs a number that tells worker and step, in every way there is."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)
        self.accuracy = BinaryAccuracy()
        self.seen: list[dict[str, float]] = []

    def training_step(self, batch, batch_idx):
        worker = self.trainer.strategy.worker
        number = torch.tensor(10.0 * batch_idx + 2.0**worker)
        for way in ("mean", "sum", "max", "min"):
            self.log(way, number, on_step=True, on_epoch=True, reduce_fx=way, sync_dist=worker == 0)
        self.log("only_step", number, on_step=True, on_epoch=False)
        self.log("only_epoch", number, on_step=False, on_epoch=True)
        if worker == 3:
            self.log("last_worker", number, on_step=True, on_epoch=True)
        if worker == 0 and batch_idx == 1:
            self.log("first_worker_once", number, on_step=False, on_epoch=True, reduce_fx="max")
        self.log("rank_zero", number, rank_zero_only=True)
        self.accuracy(torch.tensor([worker % 2, 1]), torch.tensor([1, 1]))
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        return self.layer(batch[0]).mean()

    def on_after_backward(self):
        self.log("after", float(self.trainer.strategy.worker), on_step=True)

    def on_train_batch_end(self, *_):
        self.seen.append({name: float(value) for name, value in self.trainer.callback_metrics.items()})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    train_dataloader = Classifier.train_dataloader
    options = Options()


def what_is_said(job: Fit, devices: int):
    modules = []

    def module(options):
        modules.append(Says(options))
        return modules[0]

    result = fit(replace(job, module=module), devices)  # type: ignore[arg-type]
    return modules[0].seen, result["metrics"]


@pytest.mark.parametrize("world", [1, 2])
def test_values_are_those_of_all_workers_on_every_rank(ranks, world):
    job = Fit(strategy=FOUR, trainer={"max_epochs": 1})
    for seen, metrics in ranks(world).run(what_is_said, job, world):
        first = seen[0]
        assert first["mean_step"] == first["only_step"] == (1 + 2 + 4 + 8) / 4
        assert first["sum_step"] == 15
        assert first["max_step"] == 8
        assert first["min_step"] == 1
        assert first["last_worker_step"] == 8
        assert first["accuracy_step"] == 0.75
        assert first["after"] == 1.5
        assert seen[5]["mean_step"] == 50 + 15 / 4
        assert metrics["mean_epoch"] == metrics["only_epoch"] == 25 + 15 / 4
        assert metrics["sum_epoch"] == 6 * 15 + 4 * 10 * 15
        assert (metrics["max_epoch"], metrics["min_epoch"]) == (58, 1)
        assert metrics["last_worker_epoch"] == 33
        assert metrics["first_worker_once"] == 11
        assert metrics["accuracy_epoch"] == 0.75


def test_all_ranks_have_the_same_keys_and_values(ranks):
    job = Fit(strategy={**FOUR, "workers": 5}, trainer={"max_epochs": 2})
    results = ranks(2).run(what_is_said, job, 2)
    alone = ranks(1).run(what_is_said, job, 1)[0]
    hidden = {"rank_zero"}
    first, second = ([{k: v for k, v in one.items() if k not in hidden} for one in seen] for seen, _ in results)
    assert first == second
    steps = {name for name in alone[0][-1] if name.endswith("_step")}
    assert [{k: one[k] for k in steps if k in one} for one in first] == [
        {k: one[k] for k in steps if k in one} for one in alone[0]
    ]
    assert results[0][1]["mean_epoch"] == pytest.approx(alone[1]["mean_epoch"]), "ranks host unequal numbers of workers"


class Plateau(Classifier):
    """Its learning rate follows what it logs in a step, without sync_dist."""

    interval = "step"

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=self.interval == "epoch")
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        plan = {"scheduler": scheduler, "interval": self.interval, "monitor": "loss", "reduce_on_plateau": True}
        return {"optimizer": optimizer, "lr_scheduler": plan}


class PlateauByEpoch(Plateau):
    interval = "epoch"


@pytest.mark.parametrize("module", [Plateau, PlateauByEpoch])
def test_a_schedule_that_follows_logged_values_keeps_ranks_together(ranks, module):
    job = Fit(strategy=FOUR, module=module, trainer={"max_epochs": 3})
    alone = ranks(1).run(fit, job, 1)[0]
    first, second = ranks(2).run(fit, job, 2)
    assert not same_bits(first["parameters"], second["parameters"])
    assert first["metrics"] == second["metrics"]
    if module is Plateau:
        assert not same_bits(first["parameters"], alone["parameters"])
