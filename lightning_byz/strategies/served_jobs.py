"""From the server's module, loader and Trainer to what each worker's process computes."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import lightning.pytorch as pl

from lightning_byz.flat import Layout
from lightning_byz.serving.engine import Engine
from lightning_byz.serving.processes import Processes
from lightning_byz.serving.ray_engine import Ray, RayEngine
from lightning_byz.strategies.inside_lightning import restore_before_transfer
from lightning_byz.strategies.module_job import ModuleJob, Pause
from lightning_byz.strategies.served_data import ServedData
from lightning_byz.strategies.training_data import TRANSFER_HOOKS
from lightning_byz.strategies.worker_trainer import facts_of


def jobs_of(strategy: Any, data: ServedData, layout: Layout) -> Mapping[int, ModuleJob]:
    """Return what each worker computes."""
    module, make = strategy.lightning_module, data.make
    forks = strategy.engine == "processes" and strategy.start_method == "fork"
    assert make is not None
    trainer, datamodule = module.trainer, getattr(module.trainer, "datamodule", None)
    known = [_overridden(datamodule, hook) for hook in TRANSFER_HOOKS]
    held = module if forks else _apart(module)
    hooks: Any = tuple(
        getattr(datamodule if there else held, hook) for hook, there in zip(TRANSFER_HOOKS, known, strict=True)
    )
    acting = strategy.plan.attackers.acting
    return {
        worker: ModuleJob(
            module=held,
            loader=make(worker),
            worker=worker,
            seed=int(strategy.seed),
            names=layout.names,
            layout=layout,
            hooks=hooks,
            precision=strategy.precision_plugin,
            device=strategy.root_device,
            facts=facts_of(trainer),
            attack=strategy.attack if worker in acting else None,
            pause=Pause(strategy.delays[worker] if strategy.delays else 0.0, strategy.delay_law),
        )
        for worker in range(strategy.workers)
    }


def engine_of(strategy: Any, jobs: Mapping[int, ModuleJob]) -> Engine:
    """Return what starts the workers of a strategy."""
    if strategy.engine == "processes":
        return Processes(jobs, method=strategy.start_method, threads=strategy.threads)
    options = strategy.engine if isinstance(strategy.engine, Ray) else Ray()
    return RayEngine(jobs, options, threads=strategy.threads)


def _apart(module: pl.LightningModule) -> pl.LightningModule:
    """Return a copy of a module that can travel to another process, without what the strategy has hung on it."""
    copy = deepcopy(module)
    vars(copy).pop("no_sync", None)
    restore_before_transfer(copy)
    return copy


def _overridden(datamodule: Any, hook: str) -> bool:
    own = None if datamodule is None else getattr(type(datamodule), hook, None)
    return own is not None and own is not getattr(pl.LightningDataModule, hook)
