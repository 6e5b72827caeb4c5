"""What users of Lightning do, case by case: DDP's bits with one worker per rank; with several, ranks that agree, or a refusal."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler

from lightning_byz.aggregators import CoordinateMedian, Mean
from tests.scenarios import Classifier, Fit, Options, Points, fit, largest_difference, same_bits

MEAN = {"f": 0, "aggregator": Mean()}
FOUR = {"f": 1, "aggregator": CoordinateMedian(), "workers": 4}


class Base(Classifier):
    def loss(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class ByHand(Base):
    def __init__(self, options):
        super().__init__(options)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
        optimizer.step()


class TwoOptimizers(ByHand):
    def configure_optimizers(self):
        return torch.optim.SGD(self.network[0].parameters(), lr=0.1), torch.optim.Adam(self.network[3:].parameters())

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()


class ClipsItself(Base):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        for parameter in self.parameters():
            parameter.grad.clamp_(-0.01, 0.02)


class SeesGradients(Base):
    """Halves the gradients in the hook after the backward pass, as it finds them there."""

    def on_after_backward(self):
        if self.trainer.num_training_batches and getattr(self.trainer.strategy, "worker", None) is None:
            for parameter in self.parameters():
                parameter.grad.sign_()


class Plateau(Base):
    interval = "step"

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        monitor = "loss_step" if self.interval == "step" else "loss_epoch"
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": self.interval, "monitor": monitor},
        }


class PlateauByEpoch(Plateau):
    interval = "epoch"


class Lbfgs(Base):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class Tied(Base):
    def __init__(self, options):
        super().__init__(options)
        self.again = nn.Linear(8, 16)
        self.again.weight = self.network[0].weight

    def forward(self, points):
        return self.network[1:](self.network[0](points) + self.again(points))


class Stream(IterableDataset):
    def __iter__(self):
        points = Points(24)
        return iter([points[place] for place in range(24)])


class OverStream(Base):
    def train_dataloader(self):
        return DataLoader(Stream(), batch_size=4)


class Weighted(Base):
    def train_dataloader(self):
        draws = torch.Generator().manual_seed(5)
        sampler = WeightedRandomSampler(torch.rand(48, generator=draws), 48, generator=draws)
        return DataLoader(Points(48), batch_size=4, sampler=sampler)


class Combined(Base):
    """Its batches are of two loaders of different length."""

    mode = "max_size_cycle"

    def train_dataloader(self):
        loaders = {
            "first": DataLoader(Points(96), batch_size=4, shuffle=True),
            "second": DataLoader(Points(64), batch_size=4),
        }
        return CombinedLoader(loaders, self.mode)

    def training_step(self, batch, batch_idx, dataloader_idx=0):
        parts = batch.values() if isinstance(batch, dict) else [batch]
        return sum((self.loss(part) for part in parts if part is not None), torch.zeros(()))


class CombinedMinSize(Combined):
    mode = "min_size"


class CombinedMaxSize(Combined):
    mode = "max_size"


class Recomputes(Base):
    def forward(self, points):
        return checkpoint(self.network, points, use_reentrant=False) if self.training else self.network(points)


class RecomputesReentrant(Base):
    def forward(self, points):
        if not self.training:
            return self.network(points)
        return checkpoint(self.network, points.clone().requires_grad_(), use_reentrant=True)


class Sam(torch.optim.SGD):
    """Steps with the gradient at a point uphill: two evaluations of the closure per step."""

    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        moves = [(p, 0.01 * p.grad.sign()) for group in self.param_groups for p in group["params"]]
        with torch.no_grad():
            for parameter, move in moves:
                parameter.add_(move)
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            for parameter, move in moves:
                parameter.sub_(move)
        super().step()
        return loss


class SharpnessAware(Base):
    def configure_optimizers(self):
        return Sam(self.parameters(), lr=0.1)


class WithBackbone(Base):
    def __init__(self, options):
        super().__init__(options)
        self.backbone = nn.Linear(8, 8)

    def forward(self, points):
        return self.network(self.backbone(points))

    def configure_optimizers(self):
        return torch.optim.SGD(filter(lambda p: p.requires_grad, self.parameters()), lr=0.1)


class FindsItsRate(Base):
    def __init__(self, options):
        super().__init__(options)
        self.lr = 0.1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


@dataclass
class Case:
    """One thing that users do."""

    module: type[pl.LightningModule] = Base
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[pl.Callback]] = list
    options: Options = field(default_factory=Options)
    scaler: bool = False
    refused: str = ""
    """What several workers per rank are told, where they cannot do this."""
    parted: bool = False
    """Whether DDP's ranks part, since it does not average what was frozen when it began; here they do not."""


def swa() -> list[pl.Callback]:
    return [StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1)]


CASES = {
    "automatic": Case(),
    "accumulation": Case(trainer={"accumulate_grad_batches": 5}),
    "by hand": Case(ByHand, refused="manual optimization"),
    "two optimizers": Case(TwoOptimizers, refused="manual optimization"),
    "float16 with a scaler": Case(scaler=True, trainer={"gradient_clip_val": 0.5}),
    "bf16-true": Case(trainer={"precision": "bf16-true"}),
    "clip by norm": Case(trainer={"gradient_clip_val": 0.2, "gradient_clip_algorithm": "norm"}),
    "clip by value": Case(trainer={"gradient_clip_val": 0.02, "gradient_clip_algorithm": "value"}),
    "clips itself": Case(ClipsItself),
    "sees gradients": Case(SeesGradients),
    "EMA": Case(callbacks=lambda: [EMAWeightAveraging(decay=0.5)]),
    "averages buffers": Case(callbacks=lambda: [WeightAveraging(use_buffers=True)], options=Options(batch_norm=True)),
    "SWA": Case(callbacks=swa, trainer={"max_epochs": 3}),
    "SWA, batch norm": Case(callbacks=swa, trainer={"max_epochs": 3}, options=Options(batch_norm=True)),
    "backbone": Case(WithBackbone, callbacks=lambda: [BackboneFinetuning(1, train_bn=False)], parted=True),
    "rate finder": Case(
        FindsItsRate, callbacks=lambda: [LearningRateFinder(num_training_steps=8, early_stop_threshold=None)]
    ),
    "plateau by step": Case(Plateau),
    "plateau by epoch": Case(PlateauByEpoch, trainer={"max_epochs": 3}),
    "LBFGS": Case(Lbfgs),
    "tied weights": Case(Tied),
    "iterable data": Case(OverStream, refused="iterable data"),
    "weighted sampler": Case(Weighted, refused="WeightedRandomSampler would be lost"),
    "two loaders": Case(Combined),
    "two loaders, min_size": Case(CombinedMinSize),
    "two loaders, max_size": Case(CombinedMaxSize),
    "reloaded loaders": Case(trainer={"reload_dataloaders_every_n_epochs": 1}),
    "recomputes": Case(Recomputes),
    "recomputes, reentrant": Case(RecomputesReentrant),
    "sharpness aware": Case(SharpnessAware),
}


def run_case(name: str, strategy: dict | None, devices: int) -> Any:
    """Run one case on this rank; return what was logged and trained, or the refusal."""
    case = CASES[name]
    made: list[int] = []

    class Steps(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            made.append(1)

    callbacks = case.callbacks()
    keeps = any(isinstance(one, WeightAveraging) for one in callbacks)  # EMA wants files, and fit() has none
    trainer = {**case.trainer, "callbacks": [*callbacks, Steps()], "enable_checkpointing": keeps}
    job = Fit(case.options, strategy, trainer, case.module, scaler=case.scaler)
    try:
        result = fit(job, devices)
    except ValueError as error:
        return str(error), len(made)
    return {key: result[key] for key in ("parameters", "buffers", "metrics", "global_step", "calls", "scale")}


@pytest.mark.parametrize("name", CASES)
def test_one_worker_per_rank_has_the_bits_of_ddp(ranks, name):
    case, options = CASES[name], CASES[name].options
    expected, results = (ranks(2).run(run_case, name, strategy, 2) for strategy in (None, MEAN))
    assert not same_bits(results[0]["parameters"], results[1]["parameters"])
    assert bool(same_bits(expected[0]["parameters"], expected[1]["parameters"])) == case.parted
    for result, plain in zip(results, expected, strict=True):
        assert bool(same_bits(result["parameters"], plain["parameters"])) == case.parted
        assert [result[key] for key in ("global_step", "calls", "scale")] == [
            plain[key] for key in ("global_step", "calls", "scale")
        ]
        if not (options.batch_norm or case.parted):
            assert result["metrics"] == plain["metrics"]
    start = {key: value.detach() for key, value in case.module(options).named_parameters()}
    assert largest_difference(expected[0]["parameters"], start) > 1e-4, "something was trained"


@pytest.mark.parametrize("name", CASES)
def test_four_workers_on_two_ranks_agree_or_are_refused(ranks, name):
    first, second = ranks(2).run(run_case, name, FOUR, 2)
    if CASES[name].refused:
        for sentence, steps in (first, second):
            assert re.search(CASES[name].refused, sentence)
            assert steps == 0
        return
    assert not same_bits(first["parameters"], second["parameters"])
    assert not same_bits(first["buffers"], second["buffers"])
    assert first["metrics"] == second["metrics"]
