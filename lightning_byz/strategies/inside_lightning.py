"""Every name of Lightning that this package uses although it is not public, in one room.

A test per function says in a sentence which of them Lightning has moved.
"""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from lightning.pytorch.utilities.data import _update_dataloader
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

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


def logs_now(trainer: pl.Trainer) -> bool:
    """Whether ``log_every_n_steps`` makes this step's values due."""
    return trainer._logger_connector.should_update_logs


def logged_step(trainer: pl.Trainer) -> int:
    """Return the step number under which Lightning logs a training step's values."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped
