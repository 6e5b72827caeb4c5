"""What the strategy did with each worker: to the loggers while it trains, and as a table at the end."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float64
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.optim import Optimizer

from lightning_byz.census import Arrival
from lightning_byz.rounds import Report
from lightning_byz.strategies import RobustStrategy
from lightning_byz.strategies.inside_lightning import logged_step, logs_now


@dataclass(frozen=True)
class _Tally:
    """Sums over the steps so far, per worker; the means of the table are their quotients."""

    steps: int
    left_out: Float64[Tensor, " n"]
    broken: Float64[Tensor, " n"]
    absent: Float64[Tensor, " n"]
    coefficients: Float64[Tensor, " n"]
    coefficient_steps: int
    distances: Float64[Tensor, " n"]
    distance_steps: Float64[Tensor, " n"]

    @classmethod
    def empty(cls, n: int) -> "_Tally":
        zero = torch.zeros(n, dtype=torch.float64)
        return cls(0, zero, zero, zero, coefficients=zero, coefficient_steps=0, distances=zero, distance_steps=zero)

    def add(self, report: Report) -> "_Tally":
        arrival = report.census.arrival
        tally = replace(
            self,
            steps=self.steps + 1,
            left_out=self.left_out + torch.tensor(report.left_out),
            broken=self.broken + torch.tensor([word is Arrival.BROKEN for word in arrival]),
            absent=self.absent + torch.tensor([word is Arrival.ABSENT for word in arrival]),
        )
        if report.coefficients is not None:
            tally = replace(
                tally,
                coefficients=self.coefficients + report.coefficients,
                coefficient_steps=self.coefficient_steps + 1,
            )
        if report.distances is not None:
            known = report.distances.isfinite()
            distances = torch.where(known, report.distances, 0.0)
            tally = replace(tally, distances=self.distances + distances, distance_steps=self.distance_steps + known)
        return tally


class WorkerMonitor(Callback):
    """Log each worker's norm, distance and share of the aggregate, and print a table of the workers after the fit.

    With every ``log_every_n_steps``-th optimizer step, each logger receives, for worker i, ``worker_norm/i`` (Euclidean norm of its message as
    the rules saw it), ``worker_distance/i`` (Euclidean distance of that message from the aggregate), ``worker_coefficient/i`` (its share of the
    aggregate, absent where the rule is no weighted sum of messages) and ``worker_accepted/i`` (1 where a message arrived that the rules could
    use; else ``worker_broken/i`` or ``worker_absent/i`` is 1) and ``worker_left_out/i`` (1 where something was sent and had no share in the
    aggregate); norm and distance are NaN where no message arrived; and for rank 0, ``exchange/bytes_received``, ``exchange/seconds`` and
    ``rule/seconds``. The table counts every step, shows weights where they are unequal, and how often a worker was broken or absent where that
    happened. A worker without a share in the aggregate of a step is *left out* of it; that says nothing about why.

    Cost: the distances of n messages from one vector per step, :math:`O(n d)`.

    Raises:
        MisconfigurationException: At the start of a fit whose strategy is no :class:`~lightning_byz.RobustStrategy`.

    Example::

        strategy = RobustStrategy(workers=8, f=2, aggregator=CTMA(CoordinateMedian()))
        trainer = Trainer(devices=1, strategy=strategy, callbacks=[WorkerMonitor()])
    """

    def __init__(self) -> None:
        self._tally: _Tally | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask the strategy for distances and coefficients, and start counting."""
        if stage == "fit":
            _robust(trainer).diagnose = True
            self._tally = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Count the step whose aggregate the optimizer is about to take, and log it if it is due."""
        report = _robust(trainer).report
        if report is None:
            return
        self._tally = (self._tally or _Tally.empty(len(report.status))).add(report)
        if trainer.is_global_zero and logs_now(trainer):
            metrics = _metrics(report)
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=logged_step(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table on rank 0."""
        if trainer.is_global_zero and self._tally is not None:
            console = Console()
            with console.capture() as text:
                console.print(
                    _table(
                        self._tally, attackers=list(_robust(trainer).attackers), weights=_robust(trainer).worker_weights
                    )
                )
            print(
                text.get(), end=""
            )  # through sys.stdout, which a progress bar that is still up redirects to above itself

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far, so that the table survives a resume."""
        return {} if self._tally is None else asdict(self._tally)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from ``state_dict``."""
        self._tally = replace(_Tally.empty(len(state_dict["left_out"])), **state_dict) if state_dict else None


def _robust(trainer: Trainer) -> RobustStrategy:
    if not isinstance(trainer.strategy, RobustStrategy):
        raise MisconfigurationException(
            f"WorkerMonitor shows what RobustStrategy does with each worker, but the trainer's strategy is a {type(trainer.strategy).__name__}; "
            "give Trainer(strategy=RobustStrategy(...)) or leave the callback out."
        )
    return trainer.strategy


def _metrics(report: Report) -> dict[str, float]:
    arrival = report.census.arrival
    per_worker: dict[str, Tensor | Sequence[bool] | None] = {
        "worker_norm": report.norms,
        "worker_distance": report.distances,
        "worker_coefficient": report.coefficients,
        "worker_accepted": [word is Arrival.ARRIVED for word in arrival],
        "worker_broken": [word is Arrival.BROKEN for word in arrival],
        "worker_absent": [word is Arrival.ABSENT for word in arrival],
        "worker_left_out": report.left_out,
    }
    metrics = {
        f"{name}/{worker}": float(value)
        for name, row in per_worker.items()
        if row is not None
        for worker, value in enumerate(row)
    }
    metrics["exchange/bytes_received"] = float(report.bytes_received)
    return metrics | {"exchange/seconds": report.exchange_seconds, "rule/seconds": report.rule_seconds}


def _table(tally: _Tally, *, attackers: list[int], weights: Sequence[float | int] | None = None) -> Table:
    table = Table(
        title=f"Workers over {tally.steps} steps",
        caption="left out: no share in the aggregate of a step",
        title_justify="left",
    )
    table.add_column("worker")
    happened = {
        f"times {name}": times for name, times in (("broken", tally.broken), ("absent", tally.absent)) if times.any()
    }
    for column in (*(["weight"] if weights else []), "mean coefficient", "times left out", *happened, "mean distance"):
        table.add_column(column, justify="right")
    for worker in range(len(tally.left_out)):
        share = f"{tally.coefficients[worker] / tally.coefficient_steps:.4f}" if tally.coefficient_steps else "-"
        steps = tally.distance_steps[worker]
        distance = f"{tally.distances[worker] / steps:.4g}" if steps else "-"
        name = f"{worker} (attacks)" if worker in attackers else str(worker)
        weight = [f"{weights[worker]:.4g}"] if weights else []
        times = [f"{count[worker]:.0f}" for count in (tally.left_out, *happened.values())]
        table.add_row(name, *weight, share, *times, distance)
    return table
