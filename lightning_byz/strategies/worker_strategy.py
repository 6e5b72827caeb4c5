"""A DDP strategy whose steps belong to logical workers; which rules meet their gradients is the subclass's choice."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_byz.rounds import Report
from lightning_byz.rounds.checkpoint import KEY
from lightning_byz.strategies.inside_lightning import before_transfer, start_alike
from lightning_byz.strategies.loaders import RunSeed
from lightning_byz.strategies.refusals import check_digest_every
from lightning_byz.strategies.reliable import ReliableDDPStrategy
from lightning_byz.strategies.run import Run
from lightning_byz.strategies.synchronization import Synchronization
from lightning_byz.strategies.training_data import TrainingData, holds_worker_batches


class WorkerStrategy(ReliableDDPStrategy):
    """Hands Lightning's calls to a :class:`Run` between ``setup`` and the next one; outside a fit it is DDP.

    The module is not wrapped and the user's optimizer not replaced: the closure is, so that hooks, clipping and precision see the aggregate.
    """

    def __init__(self, *, digest_every: int | None = 50, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_digest_every(digest_every)
        self.digest_every = digest_every
        self.diagnose = False
        """Whether reports carry norms and distances; ``WorkerMonitor`` sets it."""
        self.report: Report | None = None
        """What the last step did with each worker."""
        self.data = "shared"
        """Whether all ranks' loaders have the same data, or each its own (``"local"``)."""
        self._at_own_batch = False
        self._run: Run | None = None
        self._data: TrainingData | None = None
        self._saved: Mapping[str, Any] | None = None
        self._showing_consensus = False
        self._synchronization = Synchronization()
        self._unstepped: Report | None = None

    @property
    @abstractmethod
    def seed(self) -> RunSeed:
        """The seed of the run."""

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
        """Lightning's own, with the seed of the run; a site's data are not split among ranks."""
        alone = {"num_replicas": 1, "rank": 0} if self.data == "local" else {}
        return {**super().distributed_sampler_kwargs, **alone, "seed": self.seed}

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
        vars(self).pop("backward", None)
        if not holds_worker_batches(batch):
            with run.by_hand.batch():
                output = run.loop.run_one(run.aggregation(0), step, batch, *rest)
        else:
            optimizer = self.optimizers[0]
            ready = run.ready(0, optimizer)
            output = run.loop.run_each(*ready, step, partial(backward, optimizer=optimizer), batch, *rest)
        if run.loop.finished:
            self.backward = self._backward_is_done
        return output

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Begin the backward pass of the only worker; Lightning calls it for those of several too, which the loop prepares itself."""
        super().pre_backward(closure_loss)
        run = self._run
        if run is not None and not run.loop.apart:
            synchronized = self._synchronization.on
            run.backward_pass.begin(closure_loss, partial(self._aggregate, run) if synchronized else None)

    def post_backward(self, closure_loss: Tensor) -> None:
        """End it."""
        if self._run is not None and not self._run.loop.apart:
            self._run.backward_pass.end()
        super().post_backward(closure_loss)

    def _backward_is_done(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Aggregate what several workers have left, or a worker without a loss."""
        assert self._run is not None
        if self._synchronization.on:
            self._aggregate(self._run)
        return closure_loss

    def _aggregate(self, run: Run) -> None:
        """Replace the gradients of this backward pass by the aggregate."""
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

        output = super().optimizer_step(optimizer, aggregated, model, **kwargs)
        run.steps += 1
        if run.steps == 1:
            self.settle()
        if self.digest_every is not None and run.steps % self.digest_every == 0:
            run.refuse_drifted(self.optimizers)
        return output

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Let gradients accumulate on each worker for the length of the block."""
        with self._synchronization.no_sync():
            yield

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the validation step; sites have unequal numbers of batches, so that its values are reduced at the end only."""
        with self._with_own_batch():
            return super().validation_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the test step, as :meth:`validation_step`."""
        with self._with_own_batch():
            return super().test_step(*args, **kwargs)

    @contextmanager
    def _with_own_batch(self) -> Iterator[None]:
        self._at_own_batch = self.data == "local"
        try:
            yield
        finally:
            self._at_own_batch = False

    def reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:
        """Reduce over ranks, but not while several workers take their turns: what they log is reduced when all are done."""
        run = self._run
        if self._at_own_batch or (run is not None and run.loop.apart):
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
