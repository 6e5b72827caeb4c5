"""What users of Lightning do besides a plain fit."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from lightning_byz.aggregators import CoordinateMedian, Mean
from lightning_byz.estimators import WorkerMomentum
from lightning_byz.strategies import RobustStrategy
from tests.scenarios import (
    Classifier,
    Difference,
    Fit,
    HiddenAverage,
    MovesBatches,
    Options,
    Points,
    Recomputes,
    SkipsSteps,
    fit,
    same_bits,
)

FOUR = {"f": 1, "aggregator": CoordinateMedian(), "workers": 4, "estimator": WorkerMomentum(0.9)}
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class TwoLoaders(Classifier):
    """Its batch is a dict of two loaders' batches of different length."""

    def train_dataloader(self):
        return {
            "first": DataLoader(Points(96), batch_size=4, shuffle=True),
            "second": DataLoader(Points(32), batch_size=4),
        }

    def training_step(self, batch, batch_idx):
        assert set(batch) == {"first", "second"}
        return super().training_step(batch["first"], batch_idx) + super().training_step(batch["second"], batch_idx)


class PlansItsSteps(Classifier):
    """Asks for the number of steps while its optimizer is made, before the trainer starts."""

    def configure_optimizers(self):
        self.planned = self.trainer.estimated_stepping_batches
        return super().configure_optimizers()

    def on_train_end(self):
        assert self.planned == self.trainer.global_step


class DictOutput(Classifier):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx), "extra": batch_idx}


class Adversaries(Classifier):
    """Two optimizers, by hand."""

    def __init__(self, options):
        super().__init__(options)
        self.automatic_optimization = False

    def configure_optimizers(self):
        return torch.optim.SGD(self.network[0].parameters(), lr=0.1), torch.optim.Adam(
            self.network[-1].parameters(), lr=0.01
        )

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()


@pytest.mark.parametrize("module", [TwoLoaders, PlansItsSteps, MovesBatches, DictOutput])
def test_modules_train_alike_on_any_layout(ranks, module):
    job = Fit(Options(dropout=0.2), FOUR, module=module, trainer={"max_epochs": 5})
    alone = ranks(1).run(fit, job, 1)[0]
    for result in ranks(2).run(fit, job, 2):
        assert not same_bits(result["parameters"], alone["parameters"])
    assert alone["metrics"]["val_accuracy"] > 0.6


class Noise(Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, index):
        return torch.randn(3)


class TwoNoises(Classifier):
    """Its batches are of two loaders that draw what they give."""

    def train_dataloader(self):
        return [DataLoader(Noise(), batch_size=4), DataLoader(Noise(), batch_size=4)]

    def training_step(self, batch, batch_idx):
        self.log("alike", float(torch.equal(batch[0], batch[1])), sync_dist=True)
        return self.network(torch.cat([batch[0], batch[1], batch[0][:, :2]], 1)).mean()


@pytest.mark.parametrize("strategy", [FOUR, {"f": 0, "aggregator": Mean()}], ids=["four", "one per rank"])
def test_two_loaders_draw_apart(ranks, strategy):
    results = ranks(2).run(fit, Fit(strategy=strategy, module=TwoNoises), 2)
    assert [result["metrics"]["alike"] for result in results] == [0.0, 0.0]


@pytest.mark.parametrize("module", [HiddenAverage, Recomputes, SkipsSteps])
def test_one_worker_per_rank_trains_like_several(ranks, module):
    """Three workers on one rank and on three, where Lightning's own path runs."""
    job = Fit(Options(dropout=0.2, batch_norm=True, augment=True), {**FOUR, "workers": 3}, module=module)
    alone = ranks(1).run(fit, job, 1)[0]
    for result in ranks(3).run(fit, job, 3):
        assert not same_bits(result["parameters"], alone["parameters"])
        assert not same_bits(result["buffers"], alone["buffers"])
    assert alone["report"].taken


def test_a_users_estimator_keeps_what_it_was_given(ranks, tmp_path):
    path = str(tmp_path / "half.ckpt")
    strategy = {**FOUR, "estimator": Difference()}
    whole = ranks(1).run(fit, Fit(strategy=strategy), 1)[0]
    ranks(1).run(fit, Fit(strategy=strategy, trainer={"max_epochs": 1}, save=path), 1)
    resumed = ranks(1).run(fit, Fit(strategy=strategy, checkpoint=path), 1)[0]
    assert not same_bits(resumed["parameters"], whole["parameters"])
    last = torch.load(path, weights_only=True)["lightning_byz"]["optimizers"][0]["memories"]
    assert not torch.equal(last[0]["estimator"]["last"], last[1]["estimator"]["last"])


def test_two_optimizers_by_hand_are_ddp_with_one_worker_per_rank(ranks):
    plain = ranks(2).run(fit, Fit(module=Adversaries), 2)
    robust = ranks(2).run(fit, Fit(strategy={"f": 0, "aggregator": Mean()}, module=Adversaries), 2)
    for result in robust:
        assert not same_bits(result["parameters"], plain[0]["parameters"])


class Thaw(BaseFinetuning):
    """Train the last layer first, all of them from the second epoch on."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.network[0])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.network[0], optimizer)


class OnlyTrainable(Classifier):
    def configure_optimizers(self):
        return torch.optim.SGD([parameter for parameter in self.parameters() if parameter.requires_grad], lr=0.1)


def with_callbacks(job: Fit, names: list[str], devices: int):
    callbacks = {
        "thaw": Thaw(),
        "average": EMAWeightAveraging(),
        "stop": EarlyStopping("val_accuracy", patience=5),
    }
    job.trainer = {
        **job.trainer,
        "callbacks": [callbacks[name] for name in names],
        "enable_checkpointing": "average" in names,
    }
    return fit(job, devices)


def test_freezing_and_thawing_keeps_the_memories(ranks):
    job = Fit(strategy=FOUR, module=OnlyTrainable, trainer={"max_epochs": 3})
    results = [ranks(world).run(with_callbacks, job, ["thaw"], world)[0] for world in (1, 2)]
    assert not same_bits(results[0]["parameters"], results[1]["parameters"])
    start = {name: value.detach() for name, value in OnlyTrainable(Options()).named_parameters()}
    assert "network.0.weight" in same_bits(results[0]["parameters"], start), "thawed, and trained"


def test_callbacks_that_touch_the_weights(ranks):
    results = [ranks(world).run(with_callbacks, Fit(strategy=FOUR), ["average", "stop"], world)[0] for world in (1, 2)]
    assert not same_bits(results[0]["parameters"], results[1]["parameters"])


def test_buffers_are_one_value_for_evaluation_and_checkpoints(tmp_path):
    """Validation, the file and the module after the fit agree, whatever the workers' own statistics are."""
    seen = []

    class Looks(pl.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            seen.append(pl_module.network[1].running_mean.clone())

    keep = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, filename="{epoch}")
    module = Classifier(Options(batch_norm=True))
    trainer = pl.Trainer(
        **QUIET,
        devices=1,
        strategy=RobustStrategy(**FOUR),
        max_epochs=2,
        callbacks=[Looks(), keep],
        default_root_dir=tmp_path,
    )
    trainer.fit(module)
    saved = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    assert torch.equal(seen[-1], saved["state_dict"]["network.1.running_mean"])
    assert torch.equal(seen[-1], module.network[1].running_mean)
    own = torch.stack([values["network.1.running_mean"] for values in saved["lightning_byz"]["buffers"].values()])
    assert own.shape[0] == 4
    assert not torch.equal(own[0], own[1]), "workers keep their own"
    ordered = own.sort(0).values
    assert torch.allclose(ordered[1] / 2 + ordered[2] / 2, seen[-1])
    trainer.validate(module, verbose=False)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    Classifier.load_from_checkpoint(tmp_path / "epoch=1.ckpt", options=Options(batch_norm=True))


def test_one_trainer_fits_twice():
    strategy = RobustStrategy(**FOUR)
    trainer = pl.Trainer(**QUIET, devices=1, strategy=strategy, max_epochs=1, enable_checkpointing=False)
    module = Classifier(Options())
    trainer.fit(module)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module)
    assert trainer.global_step == 12
    assert "setup_data" not in trainer.fit_loop.__dict__
    assert "_on_before_batch_transfer" not in module.__dict__


def test_global_random_state_is_left_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    module = Classifier(Options(dropout=0.5, augment=True))
    torch.set_rng_state(state)
    seen = []

    class Looks(pl.Callback):
        def on_train_batch_end(self, *_):
            seen.append(torch.get_rng_state())

    trainer = pl.Trainer(
        **QUIET,
        devices=1,
        strategy=RobustStrategy(**FOUR),
        max_epochs=1,
        callbacks=[Looks()],
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module)
    assert all(torch.equal(one, seen[0]) for one in seen)


@pytest.mark.filterwarnings("ignore:You requested to overfit")
@pytest.mark.parametrize(
    "arguments",
    [
        {"fast_dev_run": 2},
        {"overfit_batches": 2},
        {"limit_train_batches": 3},
        {"detect_anomaly": True},
        {"precision": "64-true"},
    ],
)
def test_trainer_arguments(arguments):
    trainer = pl.Trainer(
        **{**QUIET, "devices": 1, "strategy": RobustStrategy(**FOUR), "max_epochs": 1, "enable_checkpointing": False}
        | {"reload_dataloaders_every_n_epochs": 1}
        | arguments
    )
    trainer.fit(Classifier(Options()))
    assert trainer.global_step == {"fast_dev_run": 2, "overfit_batches": 2, "limit_train_batches": 3}.get(
        next(iter(arguments)), 6
    )
