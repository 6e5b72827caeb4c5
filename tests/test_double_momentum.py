"""mu^2 through the Trainer, beside a statement of it in numpy that shares no code with the library."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_byz import RobustStrategy
from lightning_byz.aggregators import Aggregator, CoordinateMedian, Mean
from lightning_byz.attacks import SignFlip
from lightning_byz.estimators import Storm
from lightning_byz.optimizers import Anytime

WORKERS, BATCH, STEPS, ATTACKER = 7, 3, 30, 6
START = [-1.0, -0.5, 0.25, 1.0]
REFUSED, ABSENT = (2, 5), (3, 8)  # worker and step

THEORY = (Storm(), Anytime(), 0.003, lambda t: 1 / t, lambda t: 2 / (t + 2), lambda t: t)
CONSTANT = (Storm(0.25), Anytime(0.1), 0.1, lambda _: 0.25, lambda _: 0.1, lambda _: 1)
RELEASED = (
    Storm("released"),
    Anytime("released"),
    0.05,
    lambda t: max(round(1 / t, 3), 0.01),
    lambda t: max(round(2 / (t + 1), 3), 0.01),
    lambda _: 1,
)
SCHEDULES = {"theory": THEORY, "constant": CONSTANT, "released": RELEASED}


class Squares(pl.LightningModule):
    """Least squares, which notes each worker's batch; one worker's loss may be NaN, or none, at a step."""

    def __init__(self, learning_rate: float, *, faults: bool) -> None:
        super().__init__()
        self.solution = nn.Parameter(torch.tensor(START))
        self.learning_rate, self.faults = learning_rate, faults
        self.batches: list[tuple[int, int, np.ndarray, np.ndarray]] = []
        self.points: list[np.ndarray] = []
        self.iterates: list[np.ndarray] = []

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor | None:
        inputs, targets = batch
        at = self.trainer.strategy.worker, self.trainer.global_step
        self.batches.append((*at, inputs.numpy(), targets.numpy()))
        loss = (inputs @ self.solution - targets).square().mean() / 2
        if self.faults and at == ABSENT:
            return None
        return loss * float("nan") if self.faults and at == REFUSED else loss

    def on_train_batch_end(self, *_: Any) -> None:
        self.points.append(self.solution.detach().numpy().copy())
        (optimizer,) = self.trainer.optimizers
        self.iterates.append(optimizer.state[self.solution]["anytime_iterate"].numpy().copy())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


def trained(schedule: str, aggregator: Aggregator, *, faults: bool = False) -> Squares:
    estimator, anytime, rate, *_ = SCHEDULES[schedule]
    draws = torch.Generator().manual_seed(3)
    inputs = torch.randn(WORKERS * BATCH * STEPS, 4, generator=draws, dtype=torch.float64)
    targets = inputs @ torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    targets += 0.3 * torch.randn(targets.shape, generator=draws, dtype=torch.float64)
    strategy = RobustStrategy(
        workers=WORKERS,
        f=2,
        aggregator=aggregator,
        estimator=estimator,
        anytime=anytime,
        attackers=[ATTACKER],
        attack=SignFlip(),
        seed=1,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        precision="64-true",
        strategy=strategy,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Squares(rate, faults=faults)
    trainer.fit(module, DataLoader(TensorDataset(inputs, targets), batch_size=BATCH))
    assert len(module.points) == STEPS
    return module


def stated(module: Squares, schedule: str, middle: Any, *, faults: bool = False, own: bool = True) -> tuple[list, list]:
    """Return the points and iterates as the definition has them, from the batches that the workers had; or with everybody's last point."""
    *_, rate, beta, gamma, alpha = SCHEDULES[schedule]
    x = w = last = np.array(START)
    estimates: dict[int, np.ndarray] = {}
    places: dict[int, np.ndarray] = {}
    counts = dict.fromkeys(range(WORKERS), 0)
    points, iterates = [], []
    for step in range(STEPS):
        rows, proposed = {}, {}
        for worker, at, inputs, targets in module.batches:
            if at != step or (faults and (worker, step) in (REFUSED, ABSENT)):
                continue

            def slope(where: np.ndarray, inputs: np.ndarray = inputs, targets: np.ndarray = targets) -> np.ndarray:
                return inputs.T @ (inputs @ where - targets) / len(targets)

            estimate = slope(x)
            if worker in estimates:
                weight = 1 - beta(counts[worker] + 1)
                estimate = estimate + weight * (estimates[worker] - slope(places[worker] if own else last))
            proposed[worker] = estimate
            rows[worker] = -estimate if worker == ATTACKER else estimate
        for worker, estimate in proposed.items():
            estimates[worker], places[worker] = estimate, x
            counts[worker] += 1
        last = x
        w = w - rate * alpha(step + 1) * middle(np.array(list(rows.values())), 0)
        x = x + gamma(step + 1) * (w - x)
        points.append(x)
        iterates.append(w)
    return points, iterates


@pytest.mark.parametrize(
    ("aggregator", "middle", "faults"),
    [(Mean(), np.mean, False), (CoordinateMedian(), np.median, False), (CoordinateMedian(), np.median, True)],
    ids=["mean", "median", "median and faults"],
)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.filterwarnings("ignore:1 workers attack:UserWarning", "ignore:Mean:UserWarning")
def test_points_and_iterates_are_those_of_the_definition(
    schedule: str, aggregator: Aggregator, middle: Any, faults: bool
) -> None:
    module = trained(schedule, aggregator, faults=faults)
    points, iterates = stated(module, schedule, middle, faults=faults)
    assert np.abs(points[-1] - points[0]).max() > 0.05  # it went somewhere
    np.testing.assert_allclose(module.points, points, rtol=0, atol=1e-10)
    np.testing.assert_allclose(module.iterates, iterates, rtol=0, atol=1e-10)


def test_a_worker_left_behind_needs_its_own_point() -> None:
    """The statement with everybody's last point is another one, so that the test above tells."""
    module = trained("constant", CoordinateMedian(), faults=True)
    wrong, _ = stated(module, "constant", np.median, faults=True, own=False)
    assert np.abs(np.array(wrong) - np.array(module.points)).max() > 1e-6
