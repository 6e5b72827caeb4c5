"""How well the model serves each site: a table at the end of a fit, the worst served first."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from lightning_byz.strategies import RobustStrategy
from lightning_byz.strategies.inside_lightning import own_values


class SiteTable(Callback):
    """Print after the fit what each site's own validation said last, the worst first.

    The metric is one that ``validation_step`` logs for the epoch, as it stands on each rank before ranks reduce it: of numbers their mean over the
    site's own samples, whether or not ``sync_dist`` then makes one mean of all sites'; of a torchmetrics ``Metric`` what it computes from the site's
    own state. Values that ``on_validation_epoch_end`` logs are not seen. One number per site travels, once.

    Args:
        metric: The name under which it is logged.
        mode: ``"max"`` where more is better, ``"min"`` where less is.

    Raises:
        MisconfigurationException: At the start of a fit whose strategy is no ``RobustStrategy(data="local")``, and after the first validation in
            which the metric was not logged.

    Example::

        strategy = RobustStrategy(data="local", weights="samples", f=1, aggregator=CTMA(CoordinateMedian()))
        trainer = Trainer(devices=5, strategy=strategy, callbacks=[SiteTable("val_accuracy")])
    """

    def __init__(self, metric: str, mode: Literal["max", "min"] = "max") -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode={mode!r}: give 'max' where more of the metric is better, or 'min'.")
        self.metric = metric
        self.mode = mode
        self.values: Sequence[float] = ()
        """Each site's value, after the fit; NaN where a site has not validated."""
        self._own = math.nan
        self._logged: dict[str, Callable[[], Any]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a run without sites."""
        if stage == "fit":
            _sites(trainer)
            self.values, self._own, self._logged = (), math.nan, {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what this site's steps have logged, before ranks reduce it."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._logged.update(own_values(trainer, dataloader_idx))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep this site's own value."""
        logged, self._logged = self._logged, {}
        if not logged:
            return
        if self.metric not in logged:
            raise MisconfigurationException(
                f"SiteTable(metric={self.metric!r}): validation_step logged {sorted(logged)} for the epoch. Give one of these, or log it there."
            )
        self._own = float(logged[self.metric]())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather one number per site, and print the table on rank 0."""
        strategy = _sites(trainer)
        table = torch.zeros(trainer.world_size, device=strategy.root_device)
        table[trainer.global_rank] = self._own
        self.values = strategy.reduce(table, reduce_op="sum").tolist()
        if not trainer.is_global_zero or all(map(math.isnan, self.values)):
            return
        console = Console()
        with console.capture() as text:
            console.print(self._table(strategy))
        print(text.get(), end="")  # through sys.stdout, as WorkerMonitor does

    def _table(self, strategy: RobustStrategy) -> Table:
        attackers = strategy.attackers if strategy.attack is not None else ()
        table = Table(title="Sites, the worst served first", title_justify="left")
        table.add_column("site")
        for column in (*(["weight"] if strategy.worker_weights else []), self.metric):
            table.add_column(column, justify="right")
        for site in _worst_first(self.values, self.mode):
            weight = [f"{strategy.worker_weights[site]:.4g}"] if strategy.worker_weights else []
            value = "-" if math.isnan(self.values[site]) else f"{self.values[site]:.4f}"
            table.add_row(f"{site} (attacks)" if site in attackers else str(site), *weight, value)
        return table


def _worst_first(values: Sequence[float], mode: str) -> list[int]:
    """Return the sites in the order of their values; those without come last."""
    sign = 1 if mode == "max" else -1
    return sorted(range(len(values)), key=lambda site: (math.isnan(values[site]), sign * values[site], site))


def _sites(trainer: Trainer) -> RobustStrategy:
    if not isinstance(trainer.strategy, RobustStrategy) or trainer.strategy.data != "local":
        raise MisconfigurationException(
            f"SiteTable shows how well the model serves each site's own data, and the trainer's strategy is a {type(trainer.strategy).__name__}"
            ' without sites: give Trainer(strategy=RobustStrategy(data="local", ...)) or leave the callback out.'
        )
    return trainer.strategy
