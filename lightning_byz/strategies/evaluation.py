"""What a run shows outside its training steps: to evaluation, to checkpoints, to values that are reduced over ranks."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_byz.exchange import Exchange
from lightning_byz.rounds.checkpoint import KEY
from lightning_byz.strategies.reliable import ReliableDDPStrategy
from lightning_byz.strategies.run import Run


class EvaluationStrategy(ReliableDDPStrategy):
    """Shows what all workers' buffers have in common, and keeps their memories in files."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data = "shared"
        """Whether all ranks' loaders have the same data, or each its own (``"local"``)."""
        self._run: Run | None = None
        self._saved: Mapping[str, Any] | None = None
        self._at_own_batch = False
        self._showing_consensus = False

    @property
    def worker(self) -> int | None:
        """The logical worker whose training step runs now; ``None`` between steps."""
        return None if self._run is None else self._run.loop.worker

    @property
    def exchange_in_use(self) -> Exchange | None:
        """How messages reach the rules of the present run."""
        return None if self._run is None else self._run.exchange

    # ------------------------------------------------------------------ values over ranks

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

    @property
    def _in_fit(self) -> bool:
        module = self.lightning_module
        return module is not None and module.trainer.state.fn == TrainerFn.FITTING

    def _show_consensus(self) -> bool:
        if not self._in_fit or self._run is None:
            return False
        self._run.buffers.show(self._run.consensus())
        return True
