"""Every name of Lightning that this package uses although it is not public, in one room.

A test per function says in a sentence which of them Lightning has moved.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import PurePath
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from lightning.pytorch.utilities.data import _update_dataloader
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from torchmetrics import Metric

WrappingCheckpointIO = _WrappingCheckpointIO
"""A way of writing files around another, such as ``AsyncCheckpointIO``; assigning its ``checkpoint_io`` fills it if it wraps none yet."""


def start_alike(module: nn.Module) -> None:
    """Give all ranks rank 0's parameters and buffers. Every rank must call it."""
    _sync_module_states(module)


def note_sigterm(trainer: pl.Trainer) -> None:
    """Let SIGTERM be noted and passed on, and no more: Lightning also broadcasts inside the handler, which falls between any two messages of a step.

    Lightning's loop tells all ranks at the next batch, and they stop together. To be called before Lightning registers its handlers.
    """
    connector = trainer._signal_connector

    def note(signum: int, _: Any) -> None:
        launcher = trainer.strategy.launcher
        if not connector.received_sigterm and launcher is not None:
            launcher.kill(signum)
        connector.received_sigterm = True

    connector._sigterm_notifier_fn = note  # type: ignore[method-assign]


def with_sampler(loader: DataLoader, sampler: Sampler) -> DataLoader:
    """Return the same loader with another sampler."""
    return _update_dataloader(loader, sampler)


def loss_of(step: Callable[..., Any], trainer: pl.Trainer, batch: Any, *rest: Any) -> Tensor | None:
    """Run a training step on one worker's batch, which gives logged values their batch size.

    Return the loss, divided by the number of accumulated batches; ``None`` where the step returned ``None``.
    """
    results = trainer._results
    assert results is not None
    results.batch, results.batch_size = batch, None
    return ClosureResult.from_training_step_output(step(batch, *rest), trainer.accumulate_grad_batches).closure_loss


def skips_backward(trainer: pl.Trainer) -> bool:
    """Whether Lightning runs this closure without a backward pass."""
    return trainer.fit_loop.epoch_loop.automatic_optimization._skip_backward


def accumulates(trainer: pl.Trainer) -> bool:
    """Whether the optimizer does not step on this batch."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def before_transfer(module: pl.LightningModule) -> Callable[..., Any]:
    """Return the module's hook before the transfer of a batch, as Lightning's loop calls it past the strategy."""
    return type(module)._on_before_batch_transfer.__get__(module)


def replace_before_transfer(module: pl.LightningModule, hook: Callable[..., Any]) -> None:
    """Let Lightning's loop call another hook, until :func:`restore_before_transfer`."""
    module._on_before_batch_transfer = hook  # type: ignore[method-assign]


def restore_before_transfer(module: pl.LightningModule) -> None:
    """Undo :func:`replace_before_transfer`."""
    module.__dict__.pop("_on_before_batch_transfer", None)


def synchronizes_layers(strategy: Any) -> bool:
    """Whether Lightning turns BatchNorm into SyncBatchNorm."""
    return strategy._layer_sync is not None


def logged_step(trainer: pl.Trainer) -> int:
    """Return the step number under which Lightning logs a training step's values."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def logged_hyperparameters(trainer: pl.Trainer) -> dict[str, Any]:
    """Return what Lightning logs of the module's and the data module's hyperparameters."""
    owners = [one for one in (trainer.lightning_module, trainer.datamodule) if one is not None]  # type: ignore[attr-defined]
    told = {key: value for one in owners if one._log_hyperparams for key, value in one.hparams_initial.items()}
    return {key: value for key, value in told.items() if key != "_class_path"} if trainer.enable_autolog_hparams else {}


Results = dict[str, Any]
"""What a trainer's loop has logged: a value by key, which names the hook and the value."""


def results_of(trainer: pl.Trainer) -> Results:
    """Return what the present loop has logged so far."""
    assert trainer._results is not None
    return trainer._results


@contextmanager
def keeping_values(trainer: pl.Trainer) -> Iterator[None]:
    """Keep Lightning, in the first batch of an epoch, from starting a hook's values anew when workers log from several hooks in turn."""
    connector = trainer._logger_connector
    first, connector._first_loop_iter = connector._first_loop_iter, False
    try:
        yield
    finally:
        connector._first_loop_iter = first


@contextmanager
def listening(results: Results, heard: Callable[[str], None], *, synchronized: bool) -> Iterator[None]:
    """Tell ``heard`` the key of each value that is logged in the block, which is reduced over ranks whatever its call says."""
    log = type(results).log  # type: ignore[attr-defined]

    def logged(fx: str, name: str, *values: Any, **options: Any) -> None:
        if options.get("rank_zero_only"):
            log(results, fx, name, *values, **options)
            return
        log(results, fx, name, *values, **{**options, "sync_dist": synchronized})
        heard(f"{fx}.{name}")

    results.log = logged  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del results.log  # type: ignore[attr-defined]


@contextmanager
def silent(module: pl.LightningModule) -> Iterator[None]:
    """Let nothing that the module logs or prints in the block arrive anywhere."""
    trainer = module.trainer
    results, loggers, connector = results_of(trainer), trainer.loggers, trainer._logger_connector
    batch, fx = (results.batch, results.batch_size), connector._current_fx  # type: ignore[attr-defined]
    said = vars(module).get("print")
    results.log = module.print = _nothing  # type: ignore[attr-defined, method-assign]
    trainer.loggers = [Deaf(logger) for logger in loggers]  # type: ignore[misc]
    try:
        with keeping_values(trainer):
            yield
    finally:
        del results.log, module.print  # type: ignore[attr-defined]
        vars(module).update({} if said is None else {"print": said})
        trainer.loggers = loggers
        connector._current_fx = fx
        results.batch, results.batch_size = batch  # type: ignore[attr-defined]


class Deaf:
    """Is of a logger's kind and knows where it writes; takes any call, and passes nothing on."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self.experiment = DummyLogger().experiment

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The logger's, to ``isinstance``."""
        return type(self._logger)

    def __getattr__(self, name: str) -> Any:
        """Return names, numbers and places as they are."""
        value = getattr(self._logger, name)
        if callable(value):
            return _nothing
        return value if isinstance(value, str | int | float | PurePath | None) else self.experiment


def _nothing(*_: Any, **__: Any) -> None:
    """Do nothing."""


def step_value(result: Any) -> Tensor | None:
    """Return the one number that a result has logged at this step; ``None`` where it logs no steps, or more than a number."""
    value = result._forward_cache if result.meta.on_step else None
    return value if isinstance(value, Tensor) and value.numel() == 1 else None


def set_step_value(result: Any, values: Tensor) -> None:
    """Give a result, for this step, the workers' values reduced as its call says."""
    reduced = getattr(torch, result.meta.reduce_fx.__name__)(values)
    result._forward_cache = reduced.to(torch.get_default_dtype())  # alike on all ranks, whatever each has logged


def description(result: Any) -> dict[str, Any]:
    """Return what another rank needs to know in order to log the same value: text, numbers and flags."""
    names = (
        "fx",
        "name",
        "prog_bar",
        "logger",
        "on_step",
        "on_epoch",
        "enable_graph",
        "metric_attribute",
        "add_dataloader_idx",
    )
    return {name: getattr(result.meta, name) for name in names} | {"reduce_fx": result.meta.reduce_fx.__name__}


def log_nothing(
    module: pl.LightningModule, results: Results, described: Mapping[str, Any], *, synchronized: bool
) -> None:
    """Take part in a value that was logged on other ranks only, without changing it."""
    attribute, op = described["metric_attribute"], described["reduce_fx"]
    neutral = {"max": float("-inf"), "min": float("inf")}.get(op, 0.0)
    own: Any = torch.tensor(neutral, device=module.device) if attribute is None else module.get_submodule(attribute)
    results.log(  # type: ignore[attr-defined]
        **{**described, "reduce_fx": getattr(torch, op)},
        value=own,
        batch_size=0,
        sync_dist=synchronized,
        sync_dist_fn=module.trainer.strategy.reduce,
    )


def own_values(trainer: pl.Trainer, dataloader_idx: int = 0) -> dict[str, Callable[[], Any]]:
    """Return what evaluation steps have logged so far on this rank, as functions; ask after each batch, for ranks then reduce sums in place."""
    values: dict[str, Callable[[], Any]] = {}
    for result in (trainer._results or {}).values():
        name, loader, own = result.meta.name, result.meta.dataloader_idx, result.value
        if loader not in (None, dataloader_idx):
            continue
        if isinstance(own, Metric):  # what an instance has as its compute reduces over ranks first
            compute = partial(type(own).compute, own)
        else:
            compute = partial(
                torch.div, own.clone(), result.cumulated_batch_size.clone() if result.meta.is_mean_reduction else 1
            )
        values[name if loader is None else f"{name}/dataloader_idx_{loader}"] = compute
    return values
