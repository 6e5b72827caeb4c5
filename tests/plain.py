"""Plain loops around a RobustOptimizer, and the fit by Lightning that they are to equal. Everything is importable by ranks."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_byz.optimizers import RobustOptimizer
from lightning_byz.strategies import RobustStrategy

BATCH, WORKERS = 32, 4
SMALL: dict[str, Any] = {"workers": WORKERS, "f": 1}


class Network(nn.Module):
    """With whatever draws and remembers: dropout and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))

    def forward(self, points: Tensor) -> Tensor:
        return self.layers(points)


class Fitted(pl.LightningModule):
    """The same network for Lightning."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self.network)


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.1)


def data(batches: int = 6) -> TensorDataset:
    draws = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (batches * BATCH,), generator=draws)
    return TensorDataset(torch.randn(len(labels), 8, generator=draws) + labels[:, None], labels)


def fitted(epochs: int = 2, **arguments: Any) -> dict[str, Tensor]:
    """Return what Lightning trains with a RobustStrategy, whose workers share each batch."""
    module = Fitted()
    strategy = RobustStrategy(**SMALL, split_batches=True, **arguments)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, strategy=strategy, max_epochs=epochs, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data(), batch_size=BATCH))
    return copied(module.network)


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


class Loop:
    """A user's loop."""

    def __init__(
        self,
        *,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
        network: Callable[[], nn.Module] = Network,
        **arguments: Any,
    ) -> None:
        self.module = network()
        self.robust = RobustOptimizer(optimizer(self.module), self.module, **{**SMALL, **arguments})
        self.calls = 0

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.cross_entropy(self.module(inputs), labels)

    def backward(self, epoch: int, index: int, *, absent: Sequence[int] = ()) -> None:
        """Let all workers but the absent compute on their parts of a batch."""
        inputs, labels = data()[index * BATCH : (index + 1) * BATCH]
        each = BATCH // WORKERS
        for worker in (worker for worker in self.robust.local if worker not in absent):
            part = slice(worker * each, (worker + 1) * each)
            batch = self.robust.poisoned(worker, (inputs[part], labels[part]), position=(epoch, index))
            self.robust.backward(worker, lambda batch=batch: self.loss(*batch), position=(epoch, index))

    def run(self, start: int = 0, stop: int = 12, *, absent: Sequence[tuple[int, int]] = ()) -> "Loop":
        """Take some of 12 steps, two epochs of six batches each; ``absent`` names steps and workers."""
        for step in range(start, stop):
            self.backward(*divmod(step, 6), absent=[worker for at, worker in absent if at == step])
            self.robust.step()
        return self

    def left(self) -> dict[str, Tensor]:
        """What training has left in the module, with what the workers' buffers have in common."""
        with self.robust.evaluation():
            return copied(self.module)


def linear(**arguments: Any) -> tuple[nn.Linear, RobustOptimizer]:
    """Return a linear module, and its optimizer."""
    torch.manual_seed(0)
    module = nn.Linear(5, 2, bias=False)
    return module, RobustOptimizer(sgd(module), module, **arguments)


def in_a_world(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in the process group of a world's ranks."""
    dist.init_process_group("gloo")
    try:
        return function(*arguments)
    finally:
        dist.destroy_process_group()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)
