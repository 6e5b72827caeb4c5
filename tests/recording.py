"""Fits whose gradients are written down beforehand, and the record of what happened in them.

The module is one vector of weights w, its loss w . x, so the gradient is the sample itself. Sample ``t n + k`` is what worker k gets in step t, in
batches of one and an order that is not shuffled: a plan's ``rows[t][k]``, a number, stands for x = (1, 2, ..., d) times that number. Everything else
in a record is such a number, too: w, gradients, running means, rows. With a step of 1, each of them can be computed by hand.
"""

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_byz.aggregators import Aggregator
from lightning_byz.attacks import Attack
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.strategies import RobustStrategy

NAN, ABSENT = float("nan"), float("inf")
"""In a plan: a row whose last coordinate is not a number; a training step that returns None."""


@dataclass(frozen=True)
class Plan:
    """One fit."""

    rows: Sequence[Sequence[float]]
    strategy: Mapping[str, Any]
    trainer: Mapping[str, Any] = field(default_factory=dict)
    coordinates: int = 1
    module: "type[Line] | None" = None
    start: float = 0.0
    loader: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Sequence[pl.Callback] = ()
    shuffled: bool = False
    """Whether Lightning shuffles: it does whatever ``shuffle=`` says, as for DDP, unless it overfits."""
    save: Mapping[int, str] = field(default_factory=dict)
    """Where to save after how many batches."""
    checkpoint: str | None = None
    may_fail: bool = False
    """Whether an error is written down instead of raised."""

    def but(self, **changes: Any) -> "Plan":
        return replace(self, **changes)

    def under(self, **changes: Any) -> "Plan":
        return replace(self, strategy={**self.strategy, **changes})


class Samples(Dataset):
    """The rows of a plan, each with its number as its label and three draws."""

    def __init__(self, rows: Sequence[Sequence[float]], coordinates: int) -> None:
        self.values = [value for step in rows for value in step]
        self.ramp = torch.arange(1.0, coordinates + 1)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        value = self.values[index]
        x = self.ramp * (1.0 if value != value else value)
        x[-1] = value * self.ramp[-1]
        draws = [float(torch.rand(())), float(np.random.rand()), random.random()]  # noqa: NPY002 - as users do
        return {"x": x, "index": torch.tensor(index), "label": torch.tensor(index), "fetch": torch.tensor(draws)}


class Line(pl.LightningModule):
    """Knows nothing of workers, but writes down whose step it runs."""

    exact = True
    """Whether its gradients are multiples of (1, 2, ..., d)."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.samples = Samples(plan.rows, plan.coordinates)
        self.weight = nn.Parameter(plan.start * self.samples.ramp)
        self.norm = nn.BatchNorm1d(plan.coordinates, momentum=0.5, affine=False)
        self.seen: list[dict[str, Any]] = []
        self.validated: list[float] = []

    def train_dataloader(self) -> Any:
        return DataLoader(self.samples, **{"batch_size": 1, "shuffle": False, **self.plan.loader})

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "before": self.draw_for(batch)} if self.trainer.training else batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "after": self.draw_for(batch)} if self.trainer.training else batch

    def draw_for(self, batch: Any) -> Tensor:
        return torch.rand(1).expand(len(batch["x"]) if "x" in batch else 1)  # as long as all else in the batch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        x = batch["x"]
        self.seen.append(
            {
                "worker": self.trainer.strategy.worker,
                "key": (self.current_epoch, batch_idx),
                "index": batch["index"].tolist(),
                "label": batch["label"].tolist(),
                "mean": self.norm.running_mean[0].item(),
                "fetch": batch["fetch"][0].tolist(),
                "transfer": [batch["before"][0].item(), batch["after"][0].item()],
                "step": [torch.rand(()).item(), np.random.rand(), random.random()],  # noqa: NPY002
            }
        )
        self.norm(torch.cat([x, x]))  # takes half of the old mean and half of x
        return None if bool(x.isinf().any()) else self.loss(x)

    def loss(self, x: Tensor) -> Tensor:
        return (self.weight * x).sum(1).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Notes(pl.Callback):
    """Writes down what callbacks see, and saves where the plan says."""

    def __init__(self, save: Mapping[int, str]) -> None:
        self.save = save
        self.steps: list[dict[str, Any]] = []
        self.gradient: Any = None
        self.batches = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for rule in (trainer.strategy.aggregator, *trainer.strategy.preaggregators):
            getattr(rule, "seen", []).clear()  # what was tried before the first step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        gradient = pl_module.weight.grad
        self.gradient = None if gradient is None else number(gradient) if pl_module.exact else gradient.tolist()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        report = trainer.strategy.report
        told = {} if report is None else {name: getattr(report, name) for name in REPORTED}
        told = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in told.items()}
        mine = {"weight": number(pl_module.weight), "loss": float(outputs["loss"]), "gradient": self.gradient}
        self.steps.append({**told, **mine, "between": trainer.strategy.worker})
        self.batches += 1
        if self.batches in self.save:
            trainer.save_checkpoint(self.save[self.batches])


REPORTED = ("step", "taken", "reason", "coefficients", "norms", "distances", "bytes_received")


def train(plan: Plan, devices: int = 1) -> dict[str, Any]:
    """Run the fit on this rank and return its record."""
    torch.manual_seed(0)
    module, notes, error = (plan.module or Line)(plan), Notes(plan.save), ""
    strategy = RobustStrategy(**plan.strategy)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=devices,
            strategy=strategy,
            default_root_dir=folder,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            callbacks=[notes, *plan.callbacks],
            **{**quiet, **({} if plan.shuffled else {"overfit_batches": len(plan.rows)}), **plan.trainer},
        )
        try:
            trainer.fit(module, ckpt_path=plan.checkpoint)
        except Exception as raised:
            if not plan.may_fail:
                raise
            error = f"{type(raised).__name__}: {raised}"
    return {
        "error": error,
        "steps": notes.steps,
        "seen": module.seen,
        "weight": number(module.weight),
        "parameters": {name: value.tolist() for name, value in module.named_parameters()},
        "mean": module.norm.running_mean[0].item(),
        "buffers": {name: value.tolist() for name, value in module.named_buffers()},
        "validated": module.validated,
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "rule": list(getattr(strategy.aggregator, "seen", [])),
        "attack": list(getattr(strategy.attack, "seen", [])),
    }


def column(record: Mapping[str, Any], name: str) -> list[Any]:
    """Return one entry of each step."""
    return [step[name] for step in record["steps"]]


def by_worker(record: Mapping[str, Any], name: str) -> dict[int, list[Any]]:
    """Return one entry of each training step, per worker."""
    workers = sorted({seen["worker"] for seen in record["seen"]})
    return {worker: [seen[name] for seen in record["seen"] if seen["worker"] == worker] for worker in workers}


def joined(lists: Sequence[Sequence[Any]]) -> list[Any]:
    return [item for items in lists for item in items]


def number(vector: Tensor) -> float:
    """Return the number of which a vector is the multiple, and make sure that it is one."""
    vector = vector.detach().double().cpu()
    ramp = torch.arange(1.0, len(vector) + 1, dtype=torch.float64)
    torch.testing.assert_close(vector, vector[0] * ramp, rtol=1e-5, atol=1e-6, equal_nan=True)
    return vector[0].item()


class Noting(Aggregator):
    """The weighted mean of its rows; notes what it is shown, and draws."""

    random = True

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def __call__(self, stack, *, generator=None):
        draw, reference = torch.rand((), generator=self.drawing(generator)).item(), stack.reference
        shown = {"rows": stack.vectors[:, 0].tolist(), "weights": stack.weights.tolist(), "f": stack.f, "draw": draw}
        self.seen.append({**shown, "reference": None if reference is None else reference[0].item()})
        return stack.combination(stack.weights / stack.weights.sum())


class Referring(Noting):
    """Asks for the last aggregate."""

    uses_reference = True


class Passes(PreAggregator):
    """Changes nothing, and draws."""

    random = True

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self, stack, *, generator=None):
        self.seen.append(torch.rand((), generator=self.drawing(generator)).item())
        return stack


class Sends(Attack):
    """An attacker that notes what it is shown, and sends what a function of that makes.

    This is the one place that knows how the strategy calls an attack of one's own.
    """

    def __init__(self, make: Callable[[Any, list[int], torch.Generator], Tensor] | None = None) -> None:
        self.make = make
        self.seen: list[dict[str, Any]] = []
        self.poisoned: list[float] = []

    def poison(self, batch, *, generator):
        self.poisoned.append(torch.rand((), generator=generator).item())
        return batch

    def replace(self, sight):
        stack, attackers = sight.stack, list(sight.attackers)
        shown = {"rows": stack.vectors[:, 0].tolist(), "weights": stack.weights.tolist(), "attackers": attackers}
        self.seen.append({**shown, "f": stack.f, "draw": torch.rand((), generator=sight.generator).item()})
        return sight.own if self.make is None else self.make(stack, attackers, sight.generator)
