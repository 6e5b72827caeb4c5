"""Fits in which everything that a user can see is written down. Modules here do in ``training_step`` what users do, and count it."""

import random
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import CatMetric, MeanMetric, Metric, MetricCollection, SumMetric
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryF1Score

from lightning_byz.strategies import RobustStrategy
from tests.scenarios import Points

LARGE = 70000
"""Numbers in a tensor that is too large to be compared by value at each step."""


class Count:
    """A plain object: passes that nobody sees count here too."""

    def __init__(self) -> None:
        self.number = 0


class Recorder(Logger):
    """A logger whose calls are written down; ``experiment`` takes any call."""

    name, version = "recorder", 0

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    @property
    def experiment(self) -> "Recorder":
        return self

    def add_scalar(self, *values: Any) -> None:
        self.calls.append(("scalar", values))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.calls.append(("metrics", dict(metrics), step))

    def log_hyperparams(self, *_: Any) -> None:
        self.calls.append("hyperparameters")


class Bar(ProgressBar):
    """What the progress bar got."""

    is_enabled = True

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Any] = []

    def disable(self) -> None:
        self.is_enabled = False

    def print(self, *text: Any, **_: Any) -> None:
        self.shown.append(text)

    def on_train_batch_end(self, trainer, pl_module, *_: Any) -> None:
        self.shown.append({key: str(value) for key, value in self.get_metrics(trainer, pl_module).items()})


def _counting(owner: type, name: str) -> Callable[..., Any]:
    def hook(self: Any, *values: Any, **named: Any) -> Any:
        self.called[name] += 1
        return getattr(super(owner, self), name)(*values, **named)

    return hook


class Hooks(pl.Callback):
    """Counts every hook of callbacks."""

    def __init__(self) -> None:
        self.called: Counter[str] = Counter()


for _name in [name for name in dir(pl.Callback) if name.startswith("on_")]:
    setattr(Hooks, _name, _counting(Hooks, _name))


class Watched(pl.LightningModule):
    """Logs, measures, draws, remembers and writes in every way, and counts its hooks."""

    samples = 24
    batch_size = 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.called: Counter[str] = Counter()
        self.network = self.build()
        self.register_buffer("queue", torch.zeros(LARGE))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average", torch.zeros(8), persistent=False)
        self.teacher = nn.Linear(8, 2).requires_grad_(False)
        self.accuracy = BinaryAccuracy()
        self.mean = MeanMetric()
        self.both = MetricCollection({"accuracy": BinaryAccuracy(), "f1": BinaryF1Score()})
        self.ranking, self.cat = BinaryAUROC(), CatMetric()
        self.loose = [SumMetric(), SumMetric()]
        self.history: list[Any] = []
        self.recent: deque = deque(maxlen=3)
        self.table: dict[str, Any] = {"steps": 0, "losses": []}
        self.drawn: set[int] = set()
        self.total = torch.zeros(3)
        self.generator = torch.Generator().manual_seed(3)
        self.numpy = np.random.default_rng(3)
        self.python = random.Random(3)
        self.steps = 0
        self.count = Count()

    def build(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(8, 12),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(12, 5),
            nn.ReLU(),
            nn.Linear(5, 2),
        )

    def scores(self, points: Tensor) -> Tensor:
        return self.network(points)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        points, labels = batch
        self.count.number += 1
        noise = torch.randn(points.shape, generator=self.generator) * self.numpy.random() + self.python.random()
        scores = self.scores(points + 0.1 * noise.to(points.dtype))
        loss = nn.functional.cross_entropy(scores, labels)
        self.remember(points, loss)
        self.measure(scores.detach().float().softmax(1)[:, 1], labels)
        self.report(loss)
        points.mul_(2.0)
        return loss

    def remember(self, points: Tensor, loss: Tensor) -> None:
        seen = points.detach().mean(0)
        place = int(self.place)
        self.queue[place : place + 8] = seen
        self.place += 8
        self.average.data.mul_(0.5).add_(seen, alpha=0.5)
        if self.steps == 0 and not hasattr(self, "first"):
            self.first = seen.clone()
        self.steps += 1
        self.total += seen[:3]
        self.history.append(loss.item())
        self.recent.append(seen)
        self.table["steps"] += 1
        self.table["losses"].append(loss.item())
        self.table[f"step {self.steps}"] = seen
        self.drawn.add(self.steps)
        first = next(part for part in self.network.modules() if isinstance(part, nn.Linear))
        with torch.no_grad():
            self.teacher.weight.mul_(0.9).add_(0.1 * float(first.weight.detach().mean()))
            self.teacher.bias.data = self.teacher.bias.data * 0.9 + 0.1

    def measure(self, scores: Tensor, labels: Tensor) -> None:
        self.log("hits", self.accuracy(scores, labels), prog_bar=True)
        self.mean.update(scores)
        self.log_dict(self.both(scores, labels), on_step=True, on_epoch=True)
        self.ranking(scores, labels)
        self.cat.update(scores)
        self.log("ranking", self.ranking, on_step=True, on_epoch=True)
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        for metric in self.loose:
            metric(scores)

    def report(self, loss: Tensor) -> None:
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True, prog_bar=True)
        self.log("largest", loss, on_step=True, on_epoch=True, reduce_fx="max", sync_dist=True)
        self.log("sum", loss, reduce_fx="sum", on_epoch=True, on_step=False)
        self.log_dict({"a": loss * 2, "b": 1.0}, sync_dist=True)
        for logger in self.loggers:
            logger.log_metrics({"direct": loss.item()}, step=self.steps)
        self.loggers[-1].experiment.add_scalar("direct", loss.item(), self.global_step)
        assert Path(self.logger.log_dir).name == "version_0"
        assert (self.logger.name, self.logger.version, self.loggers[-1].name) == ("csv", 0, "recorder")
        self.print("loss", loss.item())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD([one for one in self.parameters() if one.requires_grad], lr=0.1, momentum=0.5)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train_dataloader(self) -> Any:
        return DataLoader(Points(self.samples), batch_size=self.batch_size, shuffle=True)


for _name in (
    *(name for name in dir(pl.LightningModule) if name.startswith("on_") and name != "on_gpu"),
    "optimizer_step",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
    "lr_scheduler_step",
):
    setattr(Watched, _name, _counting(Watched, _name))


@dataclass
class Case:
    """One thing that users do."""

    module: type[Watched] = Watched
    trainer: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[pl.Callback]] = list
    scaler: bool = False


def watch(case: Case, strategy: Mapping[str, Any], devices: int) -> dict[str, Any]:
    """Run a fit on this rank and return what its user sees, and how often a plain object was called."""
    pl.seed_everything(3, verbose=False)
    module, hooks, bar, recorder = case.module(), Hooks(), Bar(), Recorder()
    plugins = [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))] if case.scaler else []
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=devices,
            strategy=RobustStrategy(**strategy),
            default_root_dir=folder,
            logger=[CSVLogger(folder, "csv", version=0), recorder],
            callbacks=[hooks, bar, *case.callbacks()],
            plugins=plugins,
            enable_model_summary=False,
            log_every_n_steps=1,
            **{"max_epochs": 2, "enable_checkpointing": False, **case.trainer},
        )
        trainer.fit(module)
        written = {path.name: path.read_text() for path in sorted(Path(folder).rglob("*.csv"))}
    left = {name: value for name, value in vars(module).items() if type(value) in _SHOWN}
    return {
        "passes": module.count.number,
        "parameters": dict(module.named_parameters()),
        "buffers": dict(module.named_buffers()),
        "hooks": dict(hooks.called),
        "module hooks": dict(module.called),
        "metrics": {name: part.metric_state for name, part in module.named_modules() if isinstance(part, Metric)},
        "loose": [metric.metric_state for metric in getattr(module, "loose", [])],
        "attributes": left,
        "names": list(vars(module)),
        "draws": _draws(module),
        "callback metrics": dict(trainer.callback_metrics),
        "logged": recorder.calls,
        "written": written,
        "bar": bar.shown,
        "progress": trainer.fit_loop.state_dict(),
        "step": trainer.global_step,
        "optimizer": trainer.optimizers[0].state_dict(),
        "schedulers": [one.scheduler.state_dict() for one in trainer.lr_scheduler_configs],
        "scale": plugins[0].scaler.state_dict() if plugins else None,
    }


_SHOWN = {int, float, str, bool, list, deque, dict, set, tuple, Tensor}


def _draws(module: Watched) -> list[Any]:
    own = [module.generator.get_state(), module.numpy.bit_generator.state, module.python.getstate()]
    return [*own, torch.get_rng_state(), random.getstate(), np.random.get_state()]  # noqa: NPY002


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Name what differs, in any bit."""
    if isinstance(first, Tensor | np.ndarray):
        first, second = (torch.as_tensor(value).detach().to_dense() for value in (first, second))
        same = first.dtype == second.dtype and first.shape == second.shape and bool(torch.equal(first, second))
        return [] if same or ((first != first).any() and str(first) == str(second)) else [where]
    if isinstance(first, Metric | nn.Module):
        return []
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        if list(first) != list(second):
            return [f"{where}: {list(first)} and {list(second)}"]
        return [one for key in first for one in differences(first[key], second[key], f"{where}/{key}")]
    if isinstance(first, list | tuple | deque):
        if len(first) != len(second):
            return [f"{where}: lengths {len(first)} and {len(second)}"]
        pairs = enumerate(zip(first, second, strict=True))
        return [one for place, pair in pairs for one in differences(*pair, f"{where}[{place}]")]
    return [] if first == second or first != first else [f"{where}: {first!r} and {second!r}"]
