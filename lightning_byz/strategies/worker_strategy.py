"""A DDP strategy whose steps belong to logical workers; which rules meet their gradients is the subclass's choice."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from os import environ
from typing import Any

import lightning.pytorch as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_byz.optimizers import Anytime
from lightning_byz.optimizers.averaging import Averaging
from lightning_byz.rounds import Report
from lightning_byz.rounds.arguments import check_digest_every, check_stages
from lightning_byz.strategies.evaluation import EvaluationStrategy
from lightning_byz.strategies.inside_lightning import before_transfer, start_alike
from lightning_byz.strategies.loaders import RunSeed
from lightning_byz.strategies.run import Run
from lightning_byz.strategies.synchronization import Synchronization
from lightning_byz.strategies.training_data import TrainingData, holds_worker_batches


class WorkerStrategy(EvaluationStrategy):
    """Hands Lightning's calls to a :class:`Run` between ``setup`` and the next one; outside a fit it is DDP.

    The module is not wrapped and the user's optimizer not replaced: the closure is, so that hooks, clipping and precision see the aggregate.
    """

    def __init__(
        self, *, seed: int | None = None, digest_every: int | None = 50, anytime: Anytime | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_digest_every(digest_every)
        check_stages(("anytime", stage, Anytime) for stage in [anytime] if stage is not None)
        self.digest_every = digest_every
        self._seed = seed
        self.anytime = anytime
        self.diagnose = False
        """Whether the next step's report carries what is measured of rows; alike on all ranks. ``WorkerMonitor`` sets it before each."""
        self.report: Report | None = None
        """What the last step did with each worker."""
        self._data: TrainingData | None = None
        self._synchronization = Synchronization()
        self._unstepped: Report | None = None
        self._looked = 0
        self._averaging: list[Averaging] = []
        self._announced = ""

    @property
    def seed(self) -> RunSeed:
        """The seed of the run: the checkpoint's, else the argument, else ``PL_GLOBAL_SEED``, else 0."""
        if self._saved is not None:
            return RunSeed(self._saved["seed"])
        return RunSeed(int(environ.get("PL_GLOBAL_SEED", 0)) if self._seed is None else self._seed)

    def configure_ddp(self) -> None:
        """Start all ranks from rank 0's parameters; the module is not wrapped."""
        assert self.lightning_module is not None
        start_alike(self.lightning_module)
        known = getattr(self.lightning_module, "no_sync", None)
        if known is None or isinstance(getattr(known, "__self__", None), Synchronization):
            self.lightning_module.no_sync = self._synchronization.no_sync  # type: ignore[assignment] - as DDP's wrapper has it

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        """Let Lightning make the optimizers; each steps as ``anytime`` says."""
        super().setup_optimizers(trainer)
        self._announced = ""
        if self.anytime is not None:
            self._step_alone()
            self._averaging += map(self.anytime.attach, self.optimizers)

    def teardown(self) -> None:
        """End a run; memories stay until the next one, so that a checkpoint can still be saved."""
        if self._data is not None:
            self._data.remove()
            self._data = None
        if self._run is not None:
            self._run.end()
            vars(self._run.module).pop("no_sync", None)
        self._step_alone()
        self._saved = None
        super().teardown()

    def _step_alone(self) -> None:
        """Leave the optimizers without averaging."""
        while self._averaging:
            self._averaging.pop().remove()

    def _announce(self, line: str) -> None:
        """Say a run's line on rank 0, once."""
        if line != self._announced:
            rank_zero_info(line)
        self._announced = line

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
                aggregation = run.aggregation(0)
                if aggregation.round.points > 1:
                    run.ready(0, self.optimizers[0])  # before an earlier point is visited, also after a resume
                output = run.loop.run_one(aggregation, step, batch, *rest)
            if not run.module.automatic_optimization:
                self._look_after(run)
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
        self._aggregate_each(run, [0] if run.module.automatic_optimization else run.by_hand.due())

    def _aggregate_each(self, run: Run, indices: Iterable[int]) -> None:
        scaler = getattr(self.precision_plugin, "scaler", None)
        for index in indices:
            report = run.aggregate(index, self.optimizers[index], scaler, diagnose=self.diagnose)
            self.report = report or self.report
            self._unstepped = report

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: nn.Module | None = None, **kwargs: Any
    ) -> Any:
        """Step the user's optimizer on the aggregate."""
        run, evaluated = self._run, False
        assert run is not None

        def aggregated() -> Any:
            nonlocal evaluated
            index = self.optimizers.index(optimizer)
            if evaluated:
                run.refuse_second_evaluation(index, optimizer)
            output, evaluated = closure(), True
            self._aggregate_each(run, run.by_hand.unseen(index))
            if run.module.automatic_optimization:  # by hand the optimizer itself says so, whoever steps it
                run.stepped(index)
            report, self._unstepped = self._unstepped, None
            # None tells a gradient scaler that there was no backward pass
            return None if report is not None and report.without_gradients else output

        output = super().optimizer_step(optimizer, aggregated, model, **kwargs)
        if run.module.automatic_optimization:
            self._look_after(run)
        return output

    def _look_after(self, run: Run) -> None:
        """Let the timeout count once there was a step, and compare the ranks' parameters now and then."""
        before, self._looked = self._looked, run.steps
        if before == 0 < run.steps:
            self.settle()
        if self.digest_every is not None and before // self.digest_every < run.steps // self.digest_every:
            run.refuse_drifted(self.optimizers)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Let gradients accumulate on each worker for the length of the block."""
        with self._synchronization.no_sync():
            yield
