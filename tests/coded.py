"""Coded rounds for tests: single steps on gradients of parts written by hand, and fits whose parameters are noted along the way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_byz.aggregators import Mean
from lightning_byz.codes import Code
from lightning_byz.exchange import Local
from lightning_byz.memory import Memory
from lightning_byz.rounds import Attackers, Defence, Outcome, Sent
from lightning_byz.rounds.coded import Coded
from lightning_byz.strategies import RobustStrategy
from tests.scenarios import Classifier, Options, Points


@dataclass
class Steps:
    """The steps of a coded round in this process, without Lightning."""

    code: Code
    workers: int
    total: int = 50
    dtype: torch.dtype = torch.float32
    attackers: Attackers = field(default_factory=Attackers)
    draw: Callable[[], int] = lambda: 5

    def __post_init__(self) -> None:
        self.round = Coded(
            Defence(self.workers, self.code.s, Mean()), self.code, attackers=self.attackers, draw=self.draw
        )
        local, like = Local(), {"dtype": self.dtype, "device": torch.device("cpu")}
        self.wire = self.round.opened(local, self.total, placement=local.place(self.workers), **like)
        self.memory = Memory()
        parts = self.code.parts(self.workers)
        self.parts = 1 + max(map(max, parts))
        self.gradients = torch.randn(self.parts, self.total, generator=torch.Generator().manual_seed(1)).to(self.dtype)

    @property
    def mean(self) -> Tensor:
        return self.gradients.double().mean(0)

    def take(self, lie: Callable[[int, Tensor], Any] | None = None, *, scale: float | None = None) -> Outcome:
        """Take one step; ``lie`` writes to the row of a worker before it is sent."""
        sent = {}
        for worker, own in enumerate(self.code.parts(self.workers)):
            (row,) = self.round.told(worker, [self.gradients[part] * (scale or 1.0) for part in own], self.wire)
            if lie is not None:
                lie(worker, row)
            sent[worker] = Sent([row], [True])
        outcome = self.round.take(self.memory, sent, self.wire, parameters=1, scale=scale)
        self.memory = outcome.memory
        return outcome


def of(workers: Sequence[int], value: Any) -> Callable[[int, Tensor], None]:
    """Have these workers send a number everywhere, or what a function makes of their rows."""

    def lie(worker: int, row: Tensor) -> None:
        if worker in workers:
            row.copy_(value(row) if callable(value) else torch.tensor(value, dtype=torch.float64))

    return lie


class Noting(pl.Callback):
    """Notes the parameters, in one vector, after every so many steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.noted: dict[int, Tensor] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        if trainer.global_step and trainer.global_step % self.every == 0:
            self.noted[trainer.global_step] = torch.cat([one.detach().flatten() for one in pl_module.parameters()])


@dataclass
class Trained:
    """A fit in this process: the parameters along its way, the module in the end, and what it logged."""

    noted: dict[int, Tensor]
    module: Any
    trainer: pl.Trainer

    @property
    def loss(self) -> float:
        """The loss on all points in the end, without dropout."""
        points = Points()
        self.module.eval()
        with torch.no_grad():
            return float(nn.functional.cross_entropy(self.module(points.points), points.labels))


def train(
    strategy: dict[str, Any],
    options: Options | None = None,
    *,
    steps: int = 60,
    every: int = 20,
    module: type[Classifier] = Classifier,
    callbacks: Sequence[pl.Callback] = (),
    seed: int = 3,
    **rest: Any,
) -> Trained:
    """Fit in this process."""
    pl.seed_everything(seed, verbose=False)
    made, noting = module(options or Options()), Noting(every)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "limit_val_batches": 0, "max_epochs": -1, "max_steps": steps}
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=RobustStrategy(**strategy),
        callbacks=[noting, *callbacks],
        **{**quiet, **rest},  # type: ignore[arg-type]
    )
    trainer.fit(made)
    return Trained(noting.noted, made, trainer)


def apart(first: Trained, second: Trained) -> float:
    """How far two ways of parameters are apart at most, relative to the second one's length."""
    assert first.noted.keys() == second.noted.keys()
    assert first.noted, "something was noted"
    return max(
        float((own - second.noted[step]).norm() / second.noted[step].norm()) for step, own in first.noted.items()
    )
