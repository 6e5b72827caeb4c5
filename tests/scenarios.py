"""Fits that run on the ranks of a pool. Everything here is a module-level function or class, so that ranks can import it."""

import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from lightning_byz.aggregators import Aggregator
from lightning_byz.estimators import Estimator
from lightning_byz.strategies import RobustStrategy


class Points(Dataset):
    """Two classes in eight dimensions; optionally disturbed at random in ``__getitem__``."""

    def __init__(self, samples: int = 96, *, augment: bool = False) -> None:
        draws = torch.Generator().manual_seed(1)
        self.labels = torch.randint(0, 2, (samples,), generator=draws)
        self.points = torch.randn(samples, 8, generator=draws) + self.labels[:, None]
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        point = self.points[index]
        if self.augment:
            point = point + 0.1 * torch.randn(8) + 0.1 * float(np.random.rand()) + 0.1 * random.random()  # noqa: NPY002 - as users do
        return point, self.labels[index]


@dataclass
class Options:
    """What a module of :class:`Classifier` has."""

    dropout: float = 0.0
    batch_norm: bool = False
    augment: bool = False
    unused: bool = False
    mixed_dtypes: bool = False
    weight_decay: float = 0.0
    step_scheduler: bool = False
    samples: int = 96
    batch_size: int = 4
    shuffle: bool = True
    learning_rate: float = 0.1
    loss_factor: float = 1.0
    nan_calls: tuple[int, ...] = ()
    """Which calls of training_step, counted over the whole fit, have a loss that is not a number."""
    none_calls: tuple[int, ...] = ()
    """Which calls return None."""
    loader_processes: int = 0


class Classifier(pl.LightningModule):
    """A small classifier that knows nothing of workers."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        self.calls = 0
        torch.manual_seed(7)
        layers: list[nn.Module] = [nn.Linear(8, 16)]
        if options.batch_norm:
            layers.append(nn.BatchNorm1d(16))
        layers += [nn.ReLU(), nn.Dropout(options.dropout), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2)]
        self.network = nn.Sequential(*layers)
        self.spare = nn.Linear(3, 3) if options.unused else None
        self.shift = nn.Parameter(torch.zeros(2, dtype=torch.float64)) if options.mixed_dtypes else None

    def forward(self, points: Tensor) -> Tensor:
        scores = self.network(points)
        return scores if self.shift is None else scores + self.shift.to(scores.dtype)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        call, self.calls = self.calls, self.calls + 1
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1]) * self.options.loss_factor
        self.log("train_loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        if call in self.options.none_calls:
            return None
        return loss * float("nan") if call in self.options.nan_calls else loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        options = self.options
        optimizer = torch.optim.SGD(
            self.parameters(), lr=options.learning_rate, momentum=0.5, weight_decay=options.weight_decay
        )
        if not options.step_scheduler:
            return optimizer
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train_dataloader(self) -> DataLoader:
        options = self.options
        return DataLoader(
            Points(options.samples, augment=options.augment),
            batch_size=options.batch_size,
            shuffle=options.shuffle,
            num_workers=options.loader_processes,
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Points(40), batch_size=10)


@dataclass(frozen=True)
class UsersMean(Aggregator):
    """A user's own averaging rule: overrides one method, knows nothing else."""

    def __call__(self, stack, *, generator=None):
        return stack.vectors.mean(0)


@dataclass
class Fit:
    """One fit: a module, a strategy, a trainer."""

    options: Options = field(default_factory=Options)
    strategy: dict[str, Any] | None = None
    """Arguments of RobustStrategy; None for plain DDP."""
    trainer: dict[str, Any] = field(default_factory=dict)
    module: type[pl.LightningModule] = Classifier
    checkpoint: str | None = None
    save: str | None = None
    seed: int = 3
    kind: type[RobustStrategy] = RobustStrategy
    scaler: bool = False
    """Mixed float16 with a gradient scaler, which Lightning's precision="16-mixed" leaves out on a CPU."""


def fit(job: Fit, devices: int) -> dict[str, Any]:
    """Run a fit on this rank and return what tests compare."""
    pl.seed_everything(job.seed, verbose=False)
    module = job.module(job.options)
    strategy = (
        DDPStrategy(find_unused_parameters=job.options.unused) if job.strategy is None else job.kind(**job.strategy)
    )
    arguments = {
        "max_epochs": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
    }
    plugins = [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))] if job.scaler else []
    arguments["plugins"] = plugins
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=devices,
            strategy=strategy,
            default_root_dir=folder,
            **{**arguments, **job.trainer},
        )
        trainer.fit(module, ckpt_path=job.checkpoint)
        if job.save is not None:
            trainer.save_checkpoint(Path(job.save))
    report = getattr(strategy, "report", None)
    return {
        "parameters": {name: value.detach().clone() for name, value in module.named_parameters()},
        "buffers": {name: value.detach().clone() for name, value in module.named_buffers()},
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "global_step": trainer.global_step,
        "calls": getattr(module, "calls", None),
        "received": None if report is None else report.bytes_received,
        "report": report,
        "scale": plugins[0].scaler.get_scale() if plugins else None,
    }


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors that differ in any bit."""
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Return the largest absolute difference between two sets of tensors."""
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def attempt(job: Fit, devices: int) -> tuple[str, str]:
    """Run a fit that must be refused; return the error's class and sentence."""
    try:
        fit(job, devices)
    except (ValueError, TypeError, RuntimeError) as error:
        return type(error).__name__, str(error)
    return "nothing", "was refused"


class HiddenAverage(Classifier):
    """Keeps an average in a buffer, written through ``.data``, and uses it in its loss."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.register_buffer("average", torch.zeros(8))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        self.average.data.mul_(0.9).add_(batch[0].mean(0), alpha=0.1)
        return super().training_step((batch[0] - self.average, batch[1]), batch_idx)


class Recomputes(Classifier):
    """Runs its network again in the backward pass."""

    def forward(self, points: Tensor) -> Tensor:
        return checkpoint(self.network, points, use_reentrant=False) if self.training else self.network(points)


class SkipsSteps(Classifier):
    """Steps at every other batch only, as Lightning's documentation shows."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
        if batch_idx % 2:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()


class MovesBatches(Classifier):
    """Transfers and disturbs its batches itself, at random."""

    def on_before_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn_like(batch[0]) if self.trainer.training else 0.0
        return batch[0] * 2 + 0.1 * noise, batch[1]

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn_like(batch[0]) if self.trainer.training else 0.0
        return batch[0] / 2 + 0.1 * noise, batch[1]


@dataclass(frozen=True)
class Difference(Estimator):
    """A user's estimator that keeps what it was given, without a copy."""

    def init(self, like):
        return {"last": torch.zeros_like(like)}

    def update(self, memory, gradients, *, count):
        return gradients[0] - 0.5 * memory["last"], {"last": gradients[0]}
