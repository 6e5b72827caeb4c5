"""Names that are not public are used in two rooms only, and each is looked at: a new version that has moved one fails here, in a sentence."""

import ast
import inspect
import os
import signal
import socket
from datetime import timedelta
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler
from torchmetrics.classification import MulticlassAccuracy

import lightning_byz
from lightning_byz.aggregators import Mean
from lightning_byz.inside_torch import (
    AskedByScalers,
    buffers_of,
    copy_each,
    parts_like,
    present_timeout,
    running_statistics,
    scalers_heard,
    version,
    wait_at_most,
    zero_each,
)
from lightning_byz.strategies import RobustStrategy, inside_lightning
from tests.scenarios import Classifier, Options

PACKAGE = Path(lightning_byz.__file__).parent
ROOMS = {"strategies/inside_lightning.py", "inside_torch.py"}
OURS = {"_run", "_data", "_cache", "_version_"}
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


class Looks(pl.Callback):
    """Asks every question of the room in the middle of a fit."""

    def __init__(self) -> None:
        self.seen: dict[str, list] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        for ask in (inside_lightning.accumulates, inside_lightning.logged_step):
            self.seen.setdefault(ask.__name__, []).append(ask(trainer))
        self.seen.setdefault("skips_backward", []).append(inside_lightning.skips_backward(trainer))


@pytest.fixture(scope="module")
def fitted() -> tuple[pl.Trainer, Classifier, Looks]:
    looks, module = Looks(), Classifier(Options())
    strategy = RobustStrategy(workers=2, f=0, aggregator=Mean())
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, strategy=strategy, max_epochs=1, accumulate_grad_batches=3, log_every_n_steps=2,
        limit_train_batches=8, callbacks=[looks], **QUIET,
    )  # fmt: skip
    trainer.fit(module)
    return trainer, module, looks


def moved(name: str) -> str:
    return f"Lightning has moved {name}, which strategies/inside_lightning.py uses: find its new place, and mend that function"


def test_accumulation(fitted) -> None:
    loop = fitted[0].fit_loop.epoch_loop
    assert hasattr(loop, "_should_accumulate"), moved("epoch_loop._should_accumulate")
    expected = [True, True, False, True, True, False, True, False]
    assert fitted[2].seen["accumulates"] == expected, moved("the meaning of epoch_loop._should_accumulate")


def test_skipped_backward_passes(fitted) -> None:
    optimization = fitted[0].fit_loop.epoch_loop.automatic_optimization
    assert hasattr(optimization, "_skip_backward"), moved("automatic_optimization._skip_backward")
    assert fitted[2].seen["skips_backward"] == [False] * 8


def test_under_which_step_values_are_logged(fitted) -> None:
    trainer, _, looks = fitted
    assert hasattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped"), moved("epoch_loop._batches_that_stepped")
    assert looks.seen["logged_step"] == [0, 0, 0, 1, 1, 1, 2, 2], moved("the meaning of _batches_that_stepped")


def test_hyperparameters_that_lightning_logs(fitted) -> None:
    trainer, module, _ = fitted
    assert hasattr(module, "_log_hyperparams"), moved("_log_hyperparams")
    assert inside_lightning.logged_hyperparameters(trainer) == {}
    module.save_hyperparameters({"width": 3, "_class_path": "cli"})
    assert inside_lightning.logged_hyperparameters(trainer) == {"width": 3}
    module.save_hyperparameters(logger=False)
    assert inside_lightning.logged_hyperparameters(trainer) == {}


def test_the_loss_of_a_step(fitted) -> None:
    trainer = fitted[0]
    assert "training_step_output" in inspect.signature(ClosureResult.from_training_step_output).parameters, moved(
        "ClosureResult.from_training_step_output"
    )
    assert isinstance(type(trainer)._results, property), moved("Trainer._results")
    assert {"batch", "batch_size"} <= set(vars(trainer.fit_loop.epoch_loop._results)), moved("_ResultCollection.batch")


def test_hooks_before_the_transfer(fitted) -> None:
    module = fitted[1]
    assert hasattr(pl.LightningModule, "_on_before_batch_transfer"), moved("LightningModule._on_before_batch_transfer")
    assert "_on_before_batch_transfer" not in vars(module), "put back after the fit"
    inside_lightning.replace_before_transfer(module, lambda batch, dataloader_idx=0: "replaced")
    assert module._on_before_batch_transfer(1) == "replaced"
    assert inside_lightning.before_transfer(module)(1) == 1
    inside_lightning.restore_before_transfer(module)
    assert module._on_before_batch_transfer(1) == 1


def test_loaders_with_another_sampler() -> None:
    loader = DataLoader(range(4), batch_size=2, shuffle=True, drop_last=True)
    other = inside_lightning.with_sampler(loader, SequentialSampler(range(3)))
    assert [batch.tolist() for batch in other] == [[0, 1]], moved("utilities.data._update_dataloader")


class Signalled(pl.Callback):
    """Sends itself a SIGTERM in the third batch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 2:
            (own,) = signal.getsignal(signal.SIGTERM).signal_handlers
            assert own.__name__ == "note", moved("_HandlersCompose.signal_handlers")
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_is_noted_and_ends_the_run_between_two_batches() -> None:
    before = signal.getsignal(signal.SIGTERM)
    strategy = RobustStrategy(workers=2, f=0, aggregator=Mean())
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, strategy=strategy, max_epochs=1, callbacks=[Signalled()], **QUIET
    )
    with pytest.raises(SystemExit):
        trainer.fit(Classifier(Options()))
    assert trainer.global_step == 3
    assert signal.getsignal(signal.SIGTERM) == before


def test_files_written_by_another_thread() -> None:
    wraps = AsyncCheckpointIO()
    assert isinstance(wraps, inside_lightning.WrappingCheckpointIO), moved("plugins.io.wrapper._WrappingCheckpointIO")
    first, second = TorchCheckpointIO(), TorchCheckpointIO()
    wraps.checkpoint_io = first
    wraps.checkpoint_io = second
    assert wraps.checkpoint_io is first, moved("the meaning of _WrappingCheckpointIO.checkpoint_io")


def test_layers_that_synchronize(fitted) -> None:
    assert inside_lightning.synchronizes_layers(fitted[0].strategy) is False, moved("DDPStrategy._layer_sync")
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, strategy=RobustStrategy(f=0, aggregator=Mean()), sync_batchnorm=True, **QUIET
    )
    assert inside_lightning.synchronizes_layers(trainer.strategy) is True, moved("DDPStrategy._layer_sync")


class Logs(Classifier):
    """Logs a number and a metric for the epoch."""

    def validation_step(self, batch, batch_idx) -> None:
        self.log("number", float(batch_idx), batch_size=3 if batch_idx else 1)
        self.log("largest", float(batch_idx), reduce_fx="max")
        self.right(self(batch[0]), batch[1])
        self.log("right", self.right)

        self.found = {name: float(value()) for name, value in inside_lightning.own_values(self.trainer).items()}


def test_values_before_ranks_reduce_them() -> None:
    module = Logs(Options())
    module.right = MulticlassAccuracy(2, average="micro")
    pl.Trainer(
        accelerator="cpu", devices=1, strategy=RobustStrategy(f=0, aggregator=Mean()), max_epochs=1, **QUIET
    ).fit(module)
    assert set(module.found) == {"number", "largest", "right"}, moved("_ResultMetric.meta")
    assert module.found["number"] == pytest.approx(3 * (1 + 2 + 3) / 10), moved("_ResultMetric.cumulated_batch_size")
    assert module.found["largest"] == 3
    assert module.found["right"] == pytest.approx(float(module.trainer.callback_metrics["right"]))


def test_names_of_torch() -> None:
    values = [torch.zeros(2), torch.zeros(3)]
    before = [version(value) for value in values]
    copy_each(values, [torch.ones(2), torch.ones(3)])
    assert all(bool(value.all()) for value in values), "torch has moved _foreach_copy_"
    zero_each(values)
    assert not any(bool(value.any()) for value in values), "torch has moved _foreach_zero_"
    parts = parts_like(torch.arange(5.0), values)
    assert [part.tolist() for part in parts] == [[0, 1], [2, 3, 4]], "torch has moved _unflatten_dense_tensors"
    assert [version(value) for value in values] > before, "torch has moved Tensor._version"
    norm = nn.BatchNorm1d(2)
    assert [name for name, _ in buffers_of(norm)] == ["running_mean", "running_var", "num_batches_tracked"]
    assert running_statistics(nn.Sequential(norm)) == {"0.running_mean", "0.running_var", "0.num_batches_tracked"}, (
        "torch has moved _NormBase"
    )
    assert not running_statistics(nn.BatchNorm1d(2, track_running_stats=False))
    assert not running_statistics(nn.LayerNorm(2))


def test_gradient_scalers_are_heard_while_one_listens() -> None:
    scale, loss = torch.amp.GradScaler.scale, torch.ones(())
    on, off = torch.amp.GradScaler("cpu", init_scale=4.0), torch.amp.GradScaler("cpu", enabled=False)
    with scalers_heard() as heard:
        assert (float(on.scale(loss)), float(off.scale(loss)), float(on.scale([loss])[0])) == (4.0, 1.0, 4.0)
    assert [one is on for one in heard] == [True]
    on.scale(loss)
    assert len(heard) == 1
    assert torch.amp.GradScaler.scale is scale
    with pytest.raises(ZeroDivisionError), scalers_heard():
        1 / 0  # noqa: B018
    assert torch.amp.GradScaler.scale is scale


class Asked(AskedByScalers):
    """Notes whether gradients were asked for before anybody looked."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.inner, self.calls = optimizer, 0
        self.param_groups = optimizer.param_groups

    def asked(self) -> torch.optim.Optimizer:
        self.calls += 1
        if self.calls > 1:
            raise AttributeError("lost")
        self.inner.param_groups[0]["params"][0].grad = torch.ones(2)
        return self.inner

    def step(self, closure=None):
        return self.inner.step()


@pytest.mark.parametrize("fused", [False, True])
def test_gradient_scalers_ask_before_they_look(fused) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    asked, scaler = (
        Asked(torch.optim.SGD([parameter], lr=1.0, fused=fused)),
        torch.amp.GradScaler("cpu", init_scale=1.0),
    )
    scaler.scale(torch.ones(()))
    scaler.step(asked)
    moved = "torch has moved what GradScaler.step asks first (_step_supports_amp_scaling), or fused optimizers no longer say it"
    assert asked.calls == 1, moved
    assert torch.equal(parameter.data, -torch.ones(2)), moved
    assert hasattr(asked, "found_inf") is False
    with pytest.raises(RuntimeError, match="lost"):
        asked._step_supports_amp_scaling  # noqa: B018


def test_how_long_messages_wait() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    dist.init_process_group("gloo", init_method=address, rank=0, world_size=1, timeout=timedelta(seconds=40))
    assert present_timeout() == timedelta(seconds=40), "torch has moved the timeout of gloo's options"
    wait_at_most(timedelta(seconds=20))
    assert present_timeout() == timedelta(seconds=20), "torch has moved _set_pg_timeout"


def own_private_names(tree: ast.Module) -> set[str]:
    """Return the private names that a file defines itself, as attributes of self, methods, fields or functions."""
    stored = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    fields = {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return stored | defined | fields


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_of_others_stay_in_their_rooms(path: Path) -> None:
    if str(path.relative_to(PACKAGE)) in ROOMS:
        return
    tree = ast.parse(path.read_text())
    imported = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("torch", "lightning")
        for alias in node.names
        if alias.name.startswith("_")
    }
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
        and node.attr != "_exit"
    }  # fmt: skip  # os._exit is documented under this name
    assert not imported, "not public: import it in inside_torch.py or strategies/inside_lightning.py"
    assert not used - own_private_names(tree), "another's private name"
