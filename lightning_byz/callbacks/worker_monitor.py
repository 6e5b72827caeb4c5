"""What the strategy did with each worker: to the loggers while it trains, and as a table at the end."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from torch.optim import Optimizer
from torchmetrics import Metric, MetricCollection

from lightning_byz.callbacks import summary
from lightning_byz.callbacks.hyperparameters import log_hyperparameters
from lightning_byz.callbacks.table import delivered_table, table
from lightning_byz.metrics import AggregationError, Deliveries, Exclusion, Traffic, WorkerMeans
from lightning_byz.strategies import AsyncRobustStrategy, RobustStrategy
from lightning_byz.strategies.inside_lightning import logged_step

_NAMES = {
    "bytes_received": "exchange/bytes_received",
    "bytes_total": "exchange/bytes_total",
    "bytes_sent": "exchange/bytes_sent",
    "bytes_sent_total": "exchange/bytes_sent_total",
    "uplink_bytes": "messages/uplink_bytes",
    "uplink_total": "messages/uplink_total",
    "downlink_bytes": "messages/downlink_bytes",
    "downlink_total": "messages/downlink_total",
    "exchange_seconds": "exchange/seconds",
    "rule_seconds": "rule/seconds",
    "error": "rule/error",
    "worst_error": "rule/worst_error",
    "kappa": "rule/kappa",
    "precision": "left_out/precision",
    "recall": "left_out/recall",
}


class WorkerMonitor(Callback):
    """Log what the rules do with the workers, and print a table of the workers after the fit.

    At the start of a fit each logger receives rules, ``f``, attack, exchange and versions as hyperparameters (``lightning_byz/aggregator`` and so
    on). With every ``log_every_n_steps``-th optimizer step each receives numbers on the steps since the last time, whatever the number of workers:

    * of ``honest`` workers and ``attackers``, or of all ``workers`` where nobody attacks in this run: ``honest/norm_mean``, ``honest/norm_max``,
      ``honest/distance_mean`` and ``honest/distance_max`` (Euclidean, of the messages as the rules saw them and from the aggregate),
      ``honest/share`` (the group's part of the aggregate, absent where the rule is no weighted sum of messages), and how many messages were
      ``honest/left_out`` (no share in the aggregate, broken ones among them), ``honest/broken`` and ``honest/absent``;
    * where somebody attacks, ``rule/error``, ``rule/worst_error`` and ``rule/kappa`` (:class:`~lightning_byz.metrics.AggregationError`) and
      ``left_out/precision`` and ``left_out/recall`` (:class:`~lightning_byz.metrics.Exclusion`);
    * under arrivals (:class:`~lightning_byz.metrics.Deliveries`) ``honest/delivered``, the messages accepted since the last time, ``honest/weight``,
      the group's part of all weight at the last step, and ``honest/age_mean`` and ``honest/age_max`` of the messages in use;
    * for rank 0, means per step ``exchange/bytes_received``, ``exchange/bytes_sent``, ``exchange/seconds`` and ``rule/seconds``, and
      ``exchange/bytes_total`` and ``exchange/bytes_sent_total`` of the fit;
    * what messages take on a wire wherever workers live, as if each were on a machine of its own: means per step ``messages/uplink_bytes`` of all
      workers and ``messages/downlink_bytes`` to one of them, and ``messages/uplink_total`` and ``messages/downlink_total`` of the fit.

    Under a code ``honest/named`` counts messages that did not fit what their group sent, which nothing but more than ``s`` liars can make wrong; they
    are those left out, and there is no distance.

    What is not known is not logged. Loggers with tables (W&B, TensorBoard) get one of the workers as ``workers``. The table at the end counts every
    step, and shows weights where they are unequal, and how often a worker was broken or absent where that happened. A worker without a share in the
    aggregate of a step is *left out* of it; that says nothing about why. Under arrivals a second table follows, of deliveries, weights and ages, and
    of messages per second where workers go at their own pace (:class:`~lightning_byz.strategies.AsyncRobustStrategy`).

    Norms, distances and errors are measured at the logged steps, and at the first one. Cost: there, four readings of the n rows, :math:`O(n d)`;
    at other steps, none.

    Args:
        per_worker: Whether to log each worker's numbers too: ``worker_coefficient/i``, ``worker_norm/i``, ``worker_distance/i``,
            ``worker_left_out/i``, ``worker_broken/i`` and ``worker_absent/i``, means and counts over the same steps; under arrivals also
            ``worker_delivered/i``, ``worker_age/i``, ``worker_oldest/i`` and ``worker_weight/i``.

    Raises:
        MisconfigurationException: At the start of a fit whose strategy is no :class:`~lightning_byz.RobustStrategy` and no
            :class:`~lightning_byz.strategies.AsyncRobustStrategy`.

    Example::

        strategy = RobustStrategy(workers=8, f=2, aggregator=CTMA(CoordinateMedian()))
        trainer = Trainer(devices=1, strategy=strategy, callbacks=[WorkerMonitor()])
    """

    def __init__(self, *, per_worker: bool = False) -> None:
        self.per_worker = per_worker
        self._interval: MetricCollection | None = None
        self._fit: MetricCollection | None = None
        self._saved: Mapping[str, Any] = {}
        self._stepped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start counting."""
        if stage == "fit":
            _robust(trainer)
            self._interval = self._fit = None
            self._saved = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the loggers what runs, and go on counting where a checkpoint stopped."""
        strategy = _robust(trainer)
        assert strategy.workers is not None
        self._interval, self._fit = (_collection(strategy.workers, strategy) for _ in range(2))
        for name, collection in (("interval", self._interval), ("fit", self._fit)):
            _restore(collection, self._saved.get(name, {}))
        if trainer.is_global_zero:
            log_hyperparameters(trainer, strategy)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Have this batch's step measured if it is logged, or the first; all ranks find the same."""
        _robust(trainer).diagnose, self._stepped = _due(trainer) or logged_step(trainer) == 0, False

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Count the step whose aggregate the optimizer is about to take."""
        report = _robust(trainer).report
        if report is None or self._interval is None or self._fit is None:
            return
        self._interval.update(report)
        self._fit.update(report)
        self._stepped = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the steps since the last time if this one is due, of all optimizers together."""
        if not self._stepped or not _due(trainer) or self._interval is None:
            return
        if trainer.is_global_zero:
            self._log(trainer, self._interval, _attacking(_robust(trainer)))
        self._interval.reset()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table on rank 0."""
        strategy = _robust(trainer)
        strategy.diagnose = False
        if not trainer.is_global_zero or self._fit is None or not _totals(self._fit).update_called:
            return
        console = Console()
        attackers = _attacking(strategy)
        shown = [table(_totals(self._fit), attackers=attackers, weights=strategy.worker_weights)]
        stale = [metric for metric in self._fit.values() if isinstance(metric, Deliveries)]
        rates = strategy.rates if isinstance(strategy, AsyncRobustStrategy) else None
        shown += [delivered_table(deliveries, attackers=attackers, rates=rates) for deliveries in stale]
        with console.capture() as text:
            for each in shown:
                console.print(each)
        print(text.get(), end="")  # through sys.stdout, which a progress bar that is still up redirects to above itself

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far, so that table and intervals survive a resume."""
        if self._interval is None or self._fit is None:
            return {}
        return {"interval": _states(self._interval), "fit": _states(self._fit)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from ``state_dict``, once the workers are known."""
        self._saved = state_dict

    def _log(self, trainer: Trainer, interval: MetricCollection, attackers: Sequence[int]) -> None:
        assert self._fit is not None
        means = {name: row for part in _by_worker(interval) for name, row in part.means().items()}
        told = {_NAMES[name]: value for metric in _others(interval) for name, value in metric.compute().items()}
        totals = self._fit["traffic"].compute()
        told |= {_NAMES[name]: value for name, value in totals.items() if name.endswith("_total")}
        workers = summary.of_workers(means) if self.per_worker else {}
        scalars = summary.known({**summary.of_groups(means, attackers), **told, **workers})
        step = logged_step(trainer)
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=step)
            summary.log_table(logger, means, attackers, step=step)


def _robust(trainer: Trainer) -> RobustStrategy | AsyncRobustStrategy:
    if not isinstance(trainer.strategy, RobustStrategy | AsyncRobustStrategy):
        raise MisconfigurationException(
            f"WorkerMonitor shows what RobustStrategy does with each worker, but the trainer's strategy is a {type(trainer.strategy).__name__}; "
            "give Trainer(strategy=RobustStrategy(...)) or leave the callback out."
        )
    return trainer.strategy


def _attacking(strategy: RobustStrategy | AsyncRobustStrategy) -> Sequence[int]:
    """Return who attacks in this run."""
    return () if strategy.attack is None else strategy.attackers


def _due(trainer: Trainer) -> bool:
    """Whether this step is logged by its number, which is alike on all ranks."""
    every: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue] - Lightning sets it elsewhere
    return every > 0 and (logged_step(trainer) + 1) % every == 0


def _collection(workers: int, strategy: RobustStrategy | AsyncRobustStrategy) -> MetricCollection:
    """Return the metrics of one rank's steps; those that need to know who attacks where somebody does, and of stale workers where they are."""
    attackers = _attacking(strategy)
    alone: dict[str, Any] = {"sync_on_compute": False}
    metrics: dict[str, Metric | MetricCollection] = {
        "workers": WorkerMeans(workers, **alone),
        "traffic": Traffic(**alone),
    }
    if attackers:
        metrics |= {"error": AggregationError(**alone), "exclusion": Exclusion(attackers, **alone)}
    if not strategy.plan.in_lock_step:
        metrics["deliveries"] = Deliveries(workers, **alone)
    return MetricCollection(metrics, compute_groups=False)


def _totals(collection: MetricCollection) -> WorkerMeans:
    totals = collection["workers"]
    assert isinstance(totals, WorkerMeans)
    return totals


def _others(collection: MetricCollection) -> list[Metric]:
    return [metric for name, metric in collection.items() if name not in ("workers", "deliveries")]


def _by_worker(collection: MetricCollection) -> list[WorkerMeans | Deliveries]:
    return [metric for metric in collection.values() if isinstance(metric, WorkerMeans | Deliveries)]


def _states(collection: MetricCollection) -> dict[str, dict[str, torch.Tensor]]:
    return {
        name: {key: torch.as_tensor(value).clone() for key, value in metric.metric_state.items()}
        for name, metric in collection.items()
    }


def _restore(collection: MetricCollection, saved: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Take over the states that a checkpoint has of these metrics."""
    for name in saved.keys() & set(collection.keys()):
        metric = collection[name]
        for key, value in saved[name].items():
            setattr(metric, key, value.clone())
