"""The turns of a worker that goes at its own pace: the user's module and loader in a process of their own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import sleep
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import Metric

from lightning_byz.attacks import Attack
from lightning_byz.flat import Layout
from lightning_byz.random import Streams, generator
from lightning_byz.rounds.earlier import copied
from lightning_byz.rounds.unseen import Unseen
from lightning_byz.serving.job import Computed, Job
from lightning_byz.strategies.arriving_loaders import PacedLoader
from lightning_byz.strategies.digests import digests_of
from lightning_byz.strategies.worker_trainer import Notes, WorkerTrainer

Hooks = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]


@dataclass(frozen=True)
class Pause:
    """Seconds for which a worker sleeps before each turn, to see in an experiment what slow workers do.

    Args:
        seconds: How long, on average.
        law: ``"constant"``, or ``"exponential"`` for a time that is drawn.

    """

    seconds: float = 0.0
    law: str = "constant"

    def length(self, seed: int, worker: int, turn: int) -> float:
        """Return how long the worker sleeps before a turn."""
        if self.law == "constant" or self.seconds == 0:
            return self.seconds
        draw = torch.rand((), generator=generator(seed, "pause", worker, turn), dtype=torch.float64)
        return float(-self.seconds * torch.log1p(-draw))


@dataclass(eq=False)
class ModuleJob(Job):
    """Runs a module's training step in a worker.

    Args:
        module: The module, as it is at the start.
        loader: The worker's endless loader.
        worker: The worker.
        seed: The run's seed.
        names: The parameters that train, in the order of the layout.
        layout: Where they lie in a vector.
        hooks: The hooks around the transfer of a batch, the module's or the data module's.
        precision: Says in which precision a step computes.
        device: Where it computes.
        facts: What the module may know of the Trainer.
        attack: What the worker does to its batches; ``None`` for nothing.
        pause: For how long it sleeps before each turn.

    """

    module: pl.LightningModule
    loader: DataLoader
    worker: int
    seed: int
    names: Sequence[str]
    layout: Layout
    hooks: Hooks
    precision: Precision
    device: torch.device
    facts: Mapping[str, Any]
    attack: Attack | None
    pause: Pause
    _held: list[Tensor] = field(default_factory=list)

    @property
    def digests(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the module and the libraries, as they are in the process that asks."""
        return digests_of(self.module)

    def begin(self, turn: int) -> None:
        """Take the module apart from the server's, and give it what stands for the Trainer."""
        module = self.module
        for one in (*module.parameters(), *module.buffers()):
            one.data = one.data.to(self.device, copy=True)
            one.grad = None
        for part in module.modules():
            if isinstance(part, Metric):
                part.distributed_available_fn = _never
        self._trainer = WorkerTrainer(self.facts)
        self._notes = Notes(module)
        module.trainer = self._trainer  # type: ignore[assignment]
        module.train()
        parameters = dict(module.named_parameters())
        self._parameters = [parameters[name] for name in self.names]
        self._buffers = list(module.buffers())
        self._unseen = Unseen(module)
        self._streams = Streams(self.device)
        known: Any = {"worker": self.worker, "streams": self._streams, "seed": self.seed, "epoch": _first}
        self._batches = PacedLoader(self.loader, **known).fetches_from(turn)

    def compute(
        self, turn: int, point: Tensor, earlier: Tensor | None, *, epoch: int, step: int, points: int
    ) -> Computed | None:
        """Take a turn at a point, after one at the earlier point that leaves nothing but its gradient."""
        vars(self._trainer).update(current_epoch=epoch, global_step=step)
        sleep(self.pause.length(self.seed, self.worker, turn))
        batch = self._batch(turn)
        self._held = [buffer.clone() for buffer in self._buffers]
        gradients = []
        if points > 1 and earlier is not None:
            self._move(earlier)
            with self._unseen.after(self._parameters):
                lossless = self._step(copied(batch), turn) is None
            gradients = [self._flat()]
            self._notes.taken()
            if lossless:
                return None
        self._move(point)
        loss = self._step(batch, turn)
        logged = self._notes.taken()
        if loss is None:
            self.settle(accepted=False)
            return None
        used = [parameter.grad is not None for parameter in self._parameters]
        first = self._flat()
        seconds = gradients or [first.clone()] * (points - 1)
        return Computed([first, *seconds], used, self._numbers(), loss, logged)

    def settle(self, *, accepted: bool) -> None:
        """Put the buffers back as they were before a turn that was not accepted."""
        for buffer, held in zip(self._buffers, self._held if not accepted else (), strict=False):
            buffer.copy_(held)
        self._held = []

    def _step(self, batch: Any, turn: int) -> float | None:
        """Run training step and backward pass; return the loss."""
        module = self.module
        for parameter in module.parameters():
            parameter.grad = None
        with self._streams.inside(self.seed, "step", "turn", turn, self.worker):
            if self.attack is not None:
                draws = generator(self.seed, "poison", "turn", turn, self.worker)
                batch = self.attack.poison(batch, generator=draws)
            numbered = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
            with self.precision.train_step_context():
                output = module.training_step(batch, *((turn,) if numbered else ()))
            loss = output.get("loss") if isinstance(output, Mapping) else output
            if loss is None:
                return None
            if not isinstance(loss, Tensor):
                raise TypeError(
                    f"{type(module).__name__}.training_step returned {output!r:.100}: return a loss, a dict with one as 'loss', or None."
                )
            module.on_before_backward(loss)
            module.backward(loss)
            module.on_after_backward()
        return float(loss.detach())

    def _batch(self, turn: int) -> Any:
        """Return the batch of a turn, through the hooks around its transfer."""
        with self._streams.together() as enter:
            batch = self.precision.convert_input(next(self._batches)(enter))
            enter(self.seed, "transfer", "turn", turn, self.worker)
            before, transfer, after = self.hooks
            return after(transfer(before(batch, 0), self.device, 0), 0)

    def _move(self, point: Tensor) -> None:
        values = self.layout.values(point.to(self.device), self._parameters)
        with torch.no_grad():
            for parameter, value in zip(self._parameters, values, strict=True):
                parameter.data.copy_(value)

    def _flat(self) -> Tensor:
        vector = torch.empty(self.layout.total, dtype=self.layout.dtype)
        self.layout.flatten([parameter.grad for parameter in self._parameters], out=self.layout.views(vector))
        return vector

    def _numbers(self) -> np.ndarray:
        parts = [buffer.detach().double().cpu().reshape(-1) for buffer in self._buffers]
        return torch.cat(parts).numpy() if parts else np.zeros(0)


def _first() -> int:
    """Return the epoch of an endless loader."""
    return 0


def _never() -> bool:
    """Whether a metric may wait for others."""
    return False
