"""The Lightning strategy: an unchanged LightningModule trains through robust aggregation."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from os import environ
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.distributed.constants import default_pg_timeout
from torch.optim import Optimizer

from lightning_byz.aggregators import Aggregator, CoordinateMedian, Mean
from lightning_byz.attacks import Attack
from lightning_byz.data import IID, Partition
from lightning_byz.data.loaders import RunSeed
from lightning_byz.estimators import Estimator, Gradient
from lightning_byz.exchange import AllToAll, Exchange, Local, Placement
from lightning_byz.pipeline import Pipeline, Report
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.random import Streams
from lightning_byz.strategies.buffers import WorkerBuffers
from lightning_byz.strategies.checkpoint import KEY, refuse_other_run
from lightning_byz.strategies.refusals import check_arguments, check_attackers, check_module, check_optimizers, check_stages
from lightning_byz.strategies.run import Run
from lightning_byz.strategies.start_up import fitting_pipeline, start_up_line
from lightning_byz.strategies.training_data import TrainingData, holds_worker_batches

_BUFFER_RULES: dict[str, Aggregator] = {"median": CoordinateMedian(), "mean": Mean()}


class RobustStrategy(DDPStrategy):
    r"""Train an unchanged LightningModule through robust aggregation of the workers' gradients.

    Each logical worker's gradient becomes a message; the messages of one step meet the rules; the user's optimizer gets the aggregate where DDP would
    have given it the mean. Hooks, clipping, precision, schedulers and callbacks see it exactly as they see DDP's. With one worker per rank
    Lightning's own path is untouched; with more, each rank runs ``training_step`` for its workers in turn.

    Trusted: the launcher, the code, rank 0, the transport, and every rank as aggregator of its slice. Not trusted: the values that up to ``f``
    workers send.

    Args:
        f: How many workers may be Byzantine, in heads (may be fractional); ``"max"`` for the largest whole number that the rules tolerate.
        aggregator: The robust rule.
        preaggregators: Rules applied before it, in order.
        estimator: What a worker sends instead of its raw gradient.
        workers: Number of logical workers, at least one per rank; ``None`` for one per rank.
        partition: Which samples belong to which worker, where there are more workers than ranks.
        attackers: Ids of the workers that attack in this experiment; may exceed ``f``, with a warning.
        attack: What they do.
        exchange: How rows reach the rules; ``None`` for ``Local()`` on one rank and ``AllToAll()`` on several.
        buffers: What evaluation and checkpoints use of the workers' buffers: their coordinate-wise median, or their mean.
        seed: Keys every draw. A checkpoint's seed goes before it; ``None`` for ``PL_GLOBAL_SEED``, else 0.
        timeout: How long a collective waits for other ranks.
        accelerator: As for ``DDPStrategy``.
        parallel_devices: As for ``DDPStrategy``.
        cluster_environment: As for ``DDPStrategy``.
        checkpoint_io: As for ``DDPStrategy``.
        precision_plugin: As for ``DDPStrategy``.
        process_group_backend: As for ``DDPStrategy``.
        start_method: As for ``DDPStrategy``.

    Raises:
        ValueError: For arguments that no run can use; when the run starts, for a module, loader or checkpoint that does not fit.
        ToleranceError: When the run starts, if a rule cannot tolerate ``f``.
        TooManyFaults: After three steps in a row with more broken weight than ``f``.

    """

    def __init__(
        self,
        *,
        f: float | Literal["max"],
        aggregator: Aggregator,
        preaggregators: Sequence[PreAggregator] = (),
        estimator: Estimator = Gradient(),  # noqa: B008 - frozen
        workers: int | None = None,
        partition: Partition = IID(),  # noqa: B008 - frozen
        attackers: Sequence[int] = (),
        attack: Attack | None = None,
        exchange: Exchange | None = None,
        buffers: Literal["median", "mean"] = "median",
        seed: int | None = None,
        timeout: timedelta = default_pg_timeout,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        process_group_backend: str | None = None,
        start_method: Literal["popen", "spawn", "fork", "forkserver"] = "popen",
    ) -> None:
        check_arguments(f, workers, attackers, attack)
        check_stages([("aggregator", aggregator, Aggregator), ("estimator", estimator, Estimator), ("partition", partition, Partition)])
        check_stages(("preaggregators", stage, PreAggregator) for stage in preaggregators)
        check_stages(("attack", stage, Attack) for stage in [attack] if stage is not None)
        check_stages(("exchange", stage, Exchange) for stage in [exchange] if stage is not None)
        if buffers not in _BUFFER_RULES:
            raise ValueError(f"buffers={buffers!r}: give one of {sorted(_BUFFER_RULES)}.")
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
            process_group_backend=process_group_backend,
            timeout=timeout,
            start_method=start_method,
        )
        self.f = f
        self.aggregator = aggregator
        self.preaggregators = tuple(preaggregators)
        self.estimator = estimator
        self.workers = workers
        self.partition = partition
        self.attackers = tuple(attackers)
        self.attack = attack
        self.exchange = exchange
        self.buffers = buffers
        self.diagnose = False
        """Whether reports carry norms and distances; ``WorkerMonitor`` sets it."""
        self.report: Report | None = None
        """What the last step did with each worker."""
        self._seed = seed
        self._saved: Mapping[str, Any] | None = None
        self._run: Run | None = None
        self._data: TrainingData | None = None
        self._showing_consensus = False

    @property
    def seed(self) -> RunSeed:
        """The seed of the run: the checkpoint's, else the argument, else ``PL_GLOBAL_SEED``, else 0."""
        if self._saved is not None:
            return RunSeed(self._saved["seed"])
        return RunSeed(int(environ.get("PL_GLOBAL_SEED", 0)) if self._seed is None else self._seed)

    @property
    def worker(self) -> int | None:
        """The logical worker whose training step runs now; ``None`` between steps."""
        return None if self._run is None else self._run.loop.worker

    # ------------------------------------------------------------------ set-up

    def setup(self, trainer: pl.Trainer) -> None:
        """Prepare a run; refuse what cannot be right."""
        if trainer.state.fn != TrainerFn.FITTING:
            super().setup(trainer)
            return
        module = self.lightning_module
        assert module is not None
        exchange = self.exchange or (Local() if self.world_size == 1 else AllToAll())
        placement = exchange.place(self.workers or self.world_size)
        if self._saved is not None:
            refuse_other_run(self._saved, placement.workers)
        check_attackers(self.attackers, placement.workers)
        check_module(module, placement, synchronized=self._layer_sync is not None)
        pipeline = self._pipeline(placement)
        streams = Streams(self.root_device)
        self._data = TrainingData(trainer, module, placement, partition=self.partition, streams=streams, seed=self.seed)
        self._data.install()
        super().setup(trainer)
        check_optimizers(module, self.optimizers, has_memory=bool(self.estimator.init(1, dtype=torch.float32)))
        self.workers, self.f = placement.workers, pipeline.f
        buffers = WorkerBuffers(module, placement.local, rule=_BUFFER_RULES[self.buffers])
        self._run = Run(module, pipeline, exchange, placement, buffers=buffers, streams=streams)
        rank_zero_info(start_up_line(pipeline, exchange, placement))

    def configure_ddp(self) -> None:
        """Start all ranks from rank 0's parameters; the module is not wrapped."""
        assert self.lightning_module is not None
        _sync_module_states(self.lightning_module)

    def teardown(self) -> None:
        """End a run; memories stay until the next one, so that a checkpoint can still be saved."""
        if self._data is not None:
            self._data.remove()
            self._data = None
        super().teardown()

    def _pipeline(self, placement: Placement) -> Pipeline:
        """Return the chain of rules, tried on as many rows as there are workers; only rank 0 repeats its warnings."""

        def make(f: float) -> Pipeline:
            return Pipeline(
                placement.workers,
                f,
                self.aggregator,
                preaggregators=self.preaggregators,
                estimator=self.estimator,
                attackers=self.attackers,
                attack=self.attack,
                seed=self.seed,
            )

        with warnings.catch_warnings():
            if self.global_rank != 0:
                warnings.simplefilter("ignore")
            return fitting_pipeline(self.f, make, workers=placement.workers, sliced=placement.ranks > 1)

    # ------------------------------------------------------------------ data

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Lightning's own, with the seed of the run."""
        return {**super().distributed_sampler_kwargs, "seed": self.seed}

    def process_dataloader(self, dataloader: object) -> object:
        """Give each local worker its loader."""
        return dataloader if self._data is None else self._data.process(dataloader)

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:  # noqa: ANN401 - the user's batch
        """Run the module's transfer hooks for each worker's batch."""
        run, transfer = self._run, super().batch_to_device
        if run is None or self._data is None or not run.module.trainer.training:
            return transfer(batch, device, dataloader_idx)
        if not holds_worker_batches(batch):
            return run.loop.each(lambda part: transfer(part, device, dataloader_idx), batch, "transfer")
        before = partial(type(run.module)._on_before_batch_transfer, run.module)
        return run.loop.each(lambda part: transfer(before(part, dataloader_idx), device, dataloader_idx), batch, "transfer")

    # ------------------------------------------------------------------ steps

    def training_step(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the user's output
        """Run the training step of each local worker."""
        assert self._run is not None
        step, backward = super().training_step, super().backward
        batch, *rest = args
        if not holds_worker_batches(batch):
            return self._run.loop.run_one(step, batch, *rest)
        return self._run.loop.run_each(step, lambda loss: backward(loss, self.optimizers[0]), batch, *rest)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Run the backward pass of the only worker; those of several are done by now."""
        assert self._run is not None
        backward = super().backward
        if self._run.loop.finished:
            return closure_loss
        return self._run.loop.backward_of_one(lambda: backward(closure_loss, optimizer, *args, **kwargs))

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: pl.LightningModule | None = None, **kwargs: Any
    ) -> Any:  # noqa: ANN401 - the optimizer's output
        """Step the user's optimizer on the aggregate."""
        run = self._run
        assert run is not None

        def aggregated() -> Any:  # noqa: ANN401
            output = closure()
            self.report = run.aggregate(self.optimizers.index(optimizer), optimizer, self.precision_plugin, diagnose=self.diagnose)
            return output

        return super().optimizer_step(optimizer, aggregated, model, **kwargs)

    def reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:  # noqa: ANN401 - Lightning's signature
        """Reduce over ranks, but not inside one of several workers' steps: ranks may host unequal numbers of workers."""
        if self.worker is not None and self._run is not None and not self._run.placement.one_per_rank:
            return tensor
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
        if self._in_fit and self._run is not None and not self._showing_consensus:
            state.update({name: value for name, value in self._run.consensus().items() if name in state})
        return state

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None) -> None:  # noqa: ANN401
        """Save the workers' memories in the same file."""
        if self._in_fit and self._run is not None and "optimizer_states" in checkpoint:
            checkpoint[KEY] = self._run.memories()
        super().save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load the module; the file's seed counts from now on."""
        super().load_model_state_dict(checkpoint, strict=strict)
        self._saved = checkpoint.get(KEY) if self._in_fit else None

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load optimizers and the workers' memories."""
        super().load_optimizer_state_dict(checkpoint)
        if self._saved is not None and self._run is not None:
            self._run.restore(self._saved)

    @property
    def _in_fit(self) -> bool:
        module = self.lightning_module
        return module is not None and module.trainer.state.fn == TrainerFn.FITTING

    def _show_consensus(self) -> bool:
        if not self._in_fit or self._run is None:
            return False
        self._run.buffers.show(self._run.consensus())
        return True
