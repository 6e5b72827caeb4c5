"""Plain loops of stale workers, and the fit by Lightning that they are to equal. Everything is importable by ranks."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_byz.memory import Memory
from lightning_byz.strategies import RobustStrategy
from tests.plain import SMALL, Fitted, Loop, copied, data

Batches = dict[tuple[int, int], list[Any]]


class Recorded(Fitted):
    """Writes down the batches of each step, ``None`` for who does not compute."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: Batches = {}

    def on_train_batch_start(self, batch, batch_idx) -> None:
        self.batches[self.current_epoch, batch_idx] = list(batch)


class Kept(RobustStrategy):
    """Keeps what is remembered after the last step."""

    memory = Memory()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        output = super().optimizer_step(*args, **kwargs)
        run: Any = self._run
        self.memory = run.aggregation(0).memory
        return output


def fitted(**arguments: Any) -> tuple[dict[str, Tensor], Memory, Batches]:
    """Return what Lightning trains in two epochs, what it remembers then, and the batches of each step."""
    module, strategy = Recorded(), Kept(**SMALL, **arguments)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, strategy=strategy, max_epochs=2, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data(2), batch_size=8, shuffle=True))
    return copied(module.network), strategy.memory, module.batches


class Stale(Loop):
    """A loop in which each batch is drawn by its worker and step, and calls are made for all workers."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.called: list[tuple[int, int]] = []

    @property
    def memory(self) -> Memory:
        return self.robust._run.aggregation.memory

    def backward(self, epoch: int, index: int, *, absent: Sequence[int] = ()) -> None:
        step = 6 * epoch + index
        for worker in (worker for worker in self.robust.local if worker not in absent):
            draws = torch.Generator().manual_seed(100 * step + worker)
            inputs, labels = torch.randn(8, 8, generator=draws), torch.randint(0, 3, (8,), generator=draws)
            batch = self.robust.poisoned(worker, (inputs + labels[:, None], labels))

            def closure(worker=worker, batch=batch):
                self.called.append((step, worker))
                return self.loss(*batch)

            self.robust.backward(worker, closure)

    def run(self, start: int = 0, stop: int = 12, *, absent: Sequence[tuple[int, int]] = ()) -> "Stale":
        super().run(start, stop, absent=absent)
        return self

    @property
    def status(self) -> tuple[str, ...]:
        """What became of each worker's message at the last step."""
        assert self.robust.report is not None
        return self.robust.report.status

    def replay(self, batches: Batches) -> "Stale":
        """Take the steps that Lightning has taken."""
        for position, parts in batches.items():
            given = {worker: batch for worker, batch in enumerate(parts) if batch is not None}
            assert list(given) == list(self.robust.computing)
            for worker, batch in given.items():
                own = self.robust.poisoned(worker, batch, position=position)
                self.robust.backward(worker, lambda own=own: self.loss(*own), position=position)
            self.robust.step()
        return self


def alike(first: Memory, second: Memory) -> bool:
    """Whether two runs remember the same, bit for bit."""
    return not different(_flat(first), _flat(second))


def different(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    """Return the names under which two runs remember something else."""
    names = first.keys() ^ second.keys()
    return names | {name for name in first.keys() & second.keys() if not _equal(first[name], second[name])}


def _equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def _flat(memory: Memory) -> dict[str, Any]:
    workers = {
        f"{worker} {stage} {name}": value
        for worker, stages in memory.workers.items()
        for stage, values in stages.items()
        for name, value in values.items()
    }
    rules = {f"{stage} {name}": value for stage, part in memory.rules.items() for name, value in part.values.items()}
    counts = {kind: list(values) for kind, values in memory.counts.items()}
    points = {f"point {step}": point for step, point in memory.points.items()}
    return {**workers, **rules, **counts, **points, "step": memory.step, "faults": memory.faults}
