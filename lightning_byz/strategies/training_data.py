"""Gives each logical worker its loader, inside Lightning's own handling of loaders and batches."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import lightning.pytorch as pl
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_byz.data import IID, Partition
from lightning_byz.exchange import Exchange, Placement
from lightning_byz.random import Streams, derive
from lightning_byz.strategies.arriving_loaders import ArrivingLoaders, Pace, PacedLoader, paced
from lightning_byz.strategies.coded_loaders import CODED, CodedLoaders
from lightning_byz.strategies.inside_lightning import before_transfer, replace_before_transfer, restore_before_transfer
from lightning_byz.strategies.loaders import (
    KeyedLoader,
    RunSeed,
    WorkerBatches,
    WorkerLoaders,
    carries_run_seed,
    refuse_small_dataset,
    shard_size,
    split_loader,
)
from lightning_byz.strategies.sites import (
    Site,
    gathered_sites,
    refuse_half_known,
    refuse_unequal,
    site_loader,
    steps_of,
)
from lightning_byz.strategies.splitting import SplitLoader

Keyed = TypeVar("Keyed", bound=KeyedLoader)
TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class TrainingData:
    """Tells training loaders from others, and makes them the loaders of logical workers.

    Lightning hands every loader to the strategy without saying what it is for, and calls one of the module's batch hooks past the strategy; both are
    mended on the trainer's and the module's instances for the length of a run.

    Args:
        trainer: The trainer of the run.
        module: The user's module.
        placement: Which workers live here.
        exchange: Tells ranks how much data the others have.
        partition: Which samples belong to which worker.
        streams: The global random streams.
        seed: The run's seed.
        local: Whether each rank's loader has data of its own.
        split: Whether the workers of a rank share the batches of the user's loader, rather than each having a loader of its own.
        pace: Which workers compute at a step, where not all do.
        parts: The parts that each worker computes, where workers compute the same ones.

    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        placement: Placement,
        exchange: Exchange,
        *,
        local: bool,
        split: bool,
        pace: Pace | None = None,
        parts: Sequence[Sequence[int]] | None = None,
        partition: Partition,
        streams: Streams,
        seed: RunSeed,
    ) -> None:
        self._trainer = trainer
        self._module = module
        self._placement = placement
        self._exchange = exchange
        self._local = local
        self._split = split
        self._pace = pace
        self._parts = parts
        self._partition = partition
        self._streams = streams
        self._seed = seed
        self._setting_up = False
        self._sizes: dict[int, int | None] = {}
        self._loaders = 0

    def install(self, ready: Callable[[Mapping[int, int | None]], None] | None = None) -> None:
        """Mark the set-up of training loaders, and leave training batches' hook before the transfer to the strategy, which keys it by worker.

        Args:
            ready: Called when loaders were set up, with the number of samples in the shards of this rank's workers, over all loaders; ``None``
                where it cannot be known.

        """
        set_up = self._trainer.fit_loop.setup_data

        def marked() -> None:
            self._setting_up = True
            self._sizes, self._loaders = {}, 0
            try:
                set_up()
            finally:
                self._setting_up = False
            if self._sizes:
                self._check_lengths()
            if self._sizes and ready is not None:
                ready(self._sizes)

        self._trainer.fit_loop.setup_data = marked  # type: ignore[method-assign]
        before = before_transfer(self._module)
        replace_before_transfer(
            self._module,
            lambda batch, dataloader_idx=0: batch if self._trainer.training else before(batch, dataloader_idx),
        )

    @cached_property
    def hooks_transfer(self) -> bool:
        """Whether the module or the data module overrides a hook around the transfer of a batch, which may draw."""
        owners = (
            (self._module, pl.LightningModule),
            (getattr(self._trainer, "datamodule", None), pl.LightningDataModule),
        )
        return any(
            is_overridden(hook, owner, parent)
            for owner, parent in owners
            if owner is not None
            for hook in TRANSFER_HOOKS
        )

    def remove(self) -> None:
        """Undo :meth:`install`."""
        self._trainer.fit_loop.__dict__.pop("setup_data", None)
        restore_before_transfer(self._module)

    def process(self, loader: Any) -> Any:
        """Return the keyed loader(s) in place of a training loader; any other loader as it is."""
        if not self._setting_up:
            return loader
        self._loaders += 1
        workers = self._placement.workers
        sites = gathered_sites(Site.of(loader), self._exchange, self._placement, self._trainer.strategy.root_device)
        if self._local:
            return self._site(loader, sites)
        refuse_half_known(sites)
        if self._pace is not None:
            return self._paced(loader, self._pace)
        if self._parts is not None:
            return self._coded(loader, self._parts)
        if self._placement.one_per_rank and type(self._partition) is IID:
            if carries_run_seed(loader):
                refuse_small_dataset(loader.dataset, workers)
            return self._keyed(loader, self._placement.local[0])
        if self._split:
            return SplitLoader(self._keyed(loader, self._placement.local[0]), parts=len(self._placement.local))
        make, batches = split_loader(loader, self._partition, workers=workers, seed=self._seed)
        if self._placement.one_per_rank:
            return self._keyed(make(self._placement.local[0]), self._placement.local[0])
        return WorkerLoaders([self._keyed(make(worker), worker) for worker in self._placement.local], batches=batches)

    def _paced(self, loader: Any, pace: Pace) -> ArrivingLoaders:
        """Return the loaders of workers that each go at their own pace."""
        workers, per_step = self._placement.workers, pace.per_step
        make, batches = paced(loader, self._partition, workers=workers, per_step=per_step, seed=self._seed)
        loaders = [self._keyed(make(worker), worker, kind=PacedLoader) for worker in self._placement.local]
        return ArrivingLoaders(loaders, batches=batches, pace=pace)

    def _coded(self, loader: Any, parts: Sequence[Sequence[int]]) -> CodedLoaders:
        """Return the loaders of the parts that this rank's workers compute."""
        here, count = [part for worker in self._placement.local for part in parts[worker]], 1 + max(map(max, parts))
        make, batches = split_loader(loader, self._partition, workers=count, seed=self._seed, because=CODED)
        loaders = {part: self._keyed(make(part), part) for part in dict.fromkeys(here)}
        return CodedLoaders(loaders, here, batches=batches)

    def _site(self, loader: Any, sites: Sequence[Site]) -> KeyedLoader:
        """Return the keyed loader of this rank's own data."""
        trainer, worker = self._trainer, self._placement.local[0]
        bounded = trainer.max_steps != -1 or isinstance(trainer.limit_train_batches, int)
        steps, restarts = steps_of(sites, bounded=bounded), bool(getattr(trainer, "overfit_batches", 0))
        own = site_loader(loader, steps=steps, worker=worker, seed=self._seed, restarts=restarts)
        return self._keyed(own, worker, size=sites[self._placement.rank].samples)

    def _check_lengths(self) -> None:
        """Refuse ranks that would wait for each other for ever."""
        trainer = self._trainer
        enough = float("inf") if trainer.max_steps == -1 else trainer.max_steps * trainer.accumulate_grad_batches
        device, batches = trainer.strategy.root_device, trainer.fit_loop.max_batches
        refuse_unequal(batches, self._exchange, self._placement, device=device, enough=enough)

    def _keyed(self, loader: Any, worker: int, *, size: int | None = None, kind: type[Keyed] = KeyedLoader) -> Keyed:
        """Return the keyed loader, and count its shard: ``size``, negative where nothing tells, of a site's loader."""
        size, known = shard_size(loader) if size is None else size if size >= 0 else None, self._sizes.get(worker, 0)
        self._sizes[worker] = None if size is None or known is None else known + size
        progress: Any = self._trainer.fit_loop.epoch_progress
        return kind(
            loader,
            worker=worker,
            streams=self._streams,
            seed=self._seed if self._loaders == 1 else derive(self._seed, "loader", self._loaders),
            epoch=lambda: progress.current.processed,
            own=self._local,
        )


def holds_worker_batches(batch: Any) -> bool:
    """Whether a batch, or a collection of batches of several loaders, has one part per worker."""
    if isinstance(batch, WorkerBatches):
        return True
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    return any(holds_worker_batches(part) for part in parts)
