"""Under RobustStrategy, a step that the user's optimizer_step leaves out leaves nothing of the batch, nor its point."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_byz.aggregators import CoordinateMedian
from lightning_byz.estimators import Gradient, Storm, WorkerMomentum
from lightning_byz.strategies import RobustStrategy

BATCHES = torch.randn(6, 12, 4, generator=torch.Generator().manual_seed(1))


class Leaves(pl.LightningModule):
    """Runs the closure, and does not step, at one batch."""

    def __init__(self, left_out: int | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)
        self.left_out = left_out

    def training_step(self, batch, batch_idx):
        return (self.layer(batch[0]) - 1).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        if batch_idx == self.left_out:
            optimizer_closure()
        else:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


def trained(left_out, batches, **arguments):
    module = Leaves(left_out)
    strategy = RobustStrategy(f=0, aggregator=CoordinateMedian(), **arguments)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, strategy=strategy, max_epochs=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(batches.flatten(0, 1)), batch_size=12))
    return module.layer.weight.detach()


@pytest.mark.parametrize("estimator", [Gradient(), WorkerMomentum(0.5), Storm(0.3)], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("workers", [{"workers": 3, "split_batches": True}, {}], ids=["turns", "one per rank"])
def test_a_step_that_is_left_out_leaves_no_trace(estimator, workers) -> None:
    without = BATCHES[[0, 1, 3, 4, 5]]
    assert torch.equal(
        trained(2, BATCHES, estimator=estimator, **workers), trained(None, without, estimator=estimator, **workers)
    )
