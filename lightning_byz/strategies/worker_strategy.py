"""A DDP strategy whose steps belong to logical workers; which rules meet their gradients is the subclass's choice."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_byz.rounds import Report
from lightning_byz.rounds.checkpoint import KEY
from lightning_byz.strategies.inside_lightning import before_transfer, start_alike
from lightning_byz.strategies.loaders import RunSeed
from lightning_byz.strategies.run import Run
from lightning_byz.strategies.synchronization import Synchronization
from lightning_byz.strategies.training_data import TrainingData, holds_worker_batches


class WorkerStrategy(DDPStrategy):
    """Hands Lightning's calls to a :class:`Run` between ``setup`` and the next one; outside a fit it is DDP.

    The module is not wrapped and the user's optimizer not replaced: the closure is, so that hooks, clipping and precision see the aggregate.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.diagnose = False
        """Whether the next step's report carries what is measured of rows; alike on all ranks. ``WorkerMonitor`` sets it before each."""
        self.report: Report | None = None
        """What the last step did with each worker."""
        self._run: Run | None = None
        self._data: TrainingData | None = None
        self._saved: Mapping[str, Any] | None = None
        self._showing_consensus = False
        self._synchronization = Synchronization()
        self._unstepped: Report | None = None

    @property
    def seed(self) -> RunSeed:
        """The seed of the run."""
        raise NotImplementedError

    @property
    def worker(self) -> int | None:
        """The logical worker whose training step runs now; ``None`` between steps."""
        return None if self._run is None else self._run.loop.worker

    def configure_ddp(self) -> None:
        """Start all ranks from rank 0's parameters; the module is not wrapped."""
        assert self.lightning_module is not None
        start_alike(self.lightning_module)
        if not hasattr(self.lightning_module, "no_sync"):
            self.lightning_module.no_sync = self._synchronization.no_sync  # type: ignore[assignment] - as DDP's wrapper has it

    def teardown(self) -> None:
        """End a run; memories stay until the next one, so that a checkpoint can still be saved."""
        if self._data is not None:
            self._data.remove()
            self._data = None
        if self._run is not None:
            self._run.by_hand.remove()
            self._run.module.__dict__.pop("no_sync", None)
        self._saved = None
        super().teardown()

    # ------------------------------------------------------------------ data

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Lightning's own, with the seed of the run."""
        return {**super().distributed_sampler_kwargs, "seed": self.seed}

    def process_dataloader(self, dataloader: object) -> object:
        """Give each local worker its loader."""
        return dataloader if self._data is None else self._data.process(dataloader)

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Run the module's transfer hooks for each worker's batch."""
        run, transfer = self._run, super().batch_to_device
        if run is None or self._data is None or not run.module.trainer.training:
            return transfer(batch, device, dataloader_idx)
        if not self._data.hooks_transfer:
            return run.loop.each(lambda part: transfer(part, device, dataloader_idx), batch)
        before = before_transfer(run.module)
        return run.loop.each(
            lambda part: transfer(before(part, dataloader_idx), device, dataloader_idx), batch, purpose="transfer"
        )

    # ------------------------------------------------------------------ steps

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the training step of each local worker."""
        run, step, backward = self._run, super().training_step, super().backward
        assert run is not None
        batch, *rest = args
        if not holds_worker_batches(batch):
            with run.by_hand.batch():
                return run.loop.run_one(run.aggregation(0), step, batch, *rest)
        optimizer = self.optimizers[0]
        ready = run.ready(0, optimizer)
        return run.loop.run_each(*ready, step, partial(backward, optimizer=optimizer), batch, *rest)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Run the backward pass of the only worker, those of several are done by now; then aggregate, unless gradients go on accumulating.

        As under DDP, ``on_after_backward`` of the only worker sees the result.
        """
        run, module, plugin = self._run, self.lightning_module, self.precision_plugin
        assert run is not None
        assert module is not None
        if run.loop.finished:
            self._aggregate(run)
            return closure_loss

        def passed() -> Tensor:
            self.pre_backward(closure_loss)
            loss = plugin.pre_backward(closure_loss, module)
            with run.by_hand.backward():
                plugin.backward(loss, module, optimizer, *args, **kwargs)
            self._aggregate(run)
            loss = plugin.post_backward(loss, module)
            self.post_backward(loss)
            return loss

        return run.loop.backward_of_one(passed)

    def _aggregate(self, run: Run) -> None:
        """Replace the gradients of this backward pass by the aggregate."""
        if not self._synchronization.on:
            return
        scaler = getattr(self.precision_plugin, "scaler", None)
        for index in [0] if run.module.automatic_optimization else run.by_hand.due():
            report = run.aggregate(index, self.optimizers[index], scaler, diagnose=self.diagnose)
            self.report = report or self.report
            self._unstepped = report

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: nn.Module | None = None, **kwargs: Any
    ) -> Any:
        """Step the user's optimizer on the aggregate."""
        run = self._run
        assert run is not None

        def aggregated() -> Any:
            output = closure()
            run.stepped(self.optimizers.index(optimizer))
            report, self._unstepped = self._unstepped, None
            # None tells a gradient scaler that there was no backward pass
            return None if report is not None and report.without_gradients else output

        return super().optimizer_step(optimizer, aggregated, model, **kwargs)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Let gradients accumulate on each worker for the length of the block."""
        with self._synchronization.no_sync():
            yield

    def reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:
        """Reduce over ranks, but not while several workers take their turns: what they log is reduced when all are done."""
        run = self._run
        if run is not None and run.loop.apart:
            return tensor
        if run is not None and not run.placement.one_per_rank and reduce_op in ("mean", "avg", None):
            counts = isinstance(tensor, Tensor) and not tensor.is_floating_point()
            tensor = tensor.double() if counts else tensor  # a mean of batch sizes must not be cut to a whole number
        return super().reduce(tensor, group, reduce_op)

    # ------------------------------------------------------------------ evaluation and checkpoints

    def on_validation_start(self) -> None:
        """Validate with what all workers' buffers have in common."""
        self._showing_consensus = self._show_consensus()

    def on_validation_end(self) -> None:
        """Let the workers go on with their own buffers."""
        self._showing_consensus = False

    def on_train_end(self) -> None:
        """Leave the module with what all workers' buffers have in common."""
        self._show_consensus()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the module's state, with what all workers' buffers have in common."""
        state = super().lightning_module_state_dict()
        if self._run is not None and not self._showing_consensus:
            state.update({name: value for name, value in self._run.consensus().items() if name in state})
        return state

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save the workers' memories in the same file."""
        if self._run is not None and "optimizer_states" in checkpoint:
            checkpoint[KEY] = self._run.memories()
        super().save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load the module; the file's seed counts from now on."""
        super().load_model_state_dict(checkpoint, strict=strict)
        self._saved = checkpoint.get(KEY) if self._in_fit else None
        if self._in_fit and self._saved is None:
            rank_zero_warn(
                "The checkpoint was saved without lightning_byz: the workers start with empty memories and a new seed."
            )

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load optimizers and the workers' memories; only the seed of the file is kept."""
        super().load_optimizer_state_dict(checkpoint)
        if self._saved is not None and self._run is not None:
            self._run.restore(self._saved)
            self._saved = {"seed": self._saved["seed"]}

    def all_gather(self, tensor: Tensor, group: Any | None = None, sync_grads: bool = False) -> Tensor:
        """Gather over ranks, but not from one of several workers' steps, which ranks run in turn and in unequal numbers."""
        self._refuse_inside_a_step("all_gather")
        return super().all_gather(tensor, group, sync_grads)

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for all ranks, but not in one of several workers' steps."""
        self._refuse_inside_a_step("barrier")
        super().barrier(*args, **kwargs)

    def _refuse_inside_a_step(self, call: str) -> None:
        if self.worker is not None and self._run is not None and not self._run.placement.one_per_rank:
            raise RuntimeError(
                f"{call} in the training step of worker {self.worker}: with several workers per rank the steps run in turn, and ranks may host"
                " unequal numbers of workers, so they would wait for ever. Run one worker per rank, or gather after the epoch."
            )

    @property
    def _in_fit(self) -> bool:
        module = self.lightning_module
        return module is not None and module.trainer.state.fn == TrainerFn.FITTING

    def _show_consensus(self) -> bool:
        if not self._in_fit or self._run is None:
            return False
        self._run.buffers.show(self._run.consensus())
        return True
