"""One of four workers sends values that are not numbers: what plain DDP makes of it, and what this run does.

    python benchmarks/one_nan.py

Each strategy runs in processes of its own, by Lightning's launcher, as a user would run it.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_byz.aggregators import CoordinateMedian
from lightning_byz.strategies import RobustStrategy

RANKS, BROKEN = 4, 2


class OneIsBroken(pl.LightningModule):
    """A classifier whose loss is not a number on one rank."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
        return loss * float("nan") if self.global_rank == BROKEN else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(strategy: str) -> None:
    """Train on this rank, and say on rank 0 what has become of the parameters."""
    pl.seed_everything(0, verbose=False)
    points = torch.randn(256, 8)
    data = TensorDataset(points, (points.sum(1) > 0).long())
    chosen = DDPStrategy() if strategy == "ddp" else RobustStrategy(f=1, aggregator=CoordinateMedian())
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=RANKS,
        strategy=chosen,
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    module = OneIsBroken()
    trainer.fit(module, DataLoader(data, batch_size=8))
    if trainer.is_global_zero:
        finite = all(bool(parameter.isfinite().all()) for parameter in module.parameters())
        named = ""
        if isinstance(chosen, RobustStrategy) and chosen.report is not None:
            broken = [worker for worker, word in enumerate(chosen.report.status) if word == "broken"]
            named = f", workers whose values were not finite: {broken}"
        print(f"parameters {'finite' if finite else 'NaN'} after {trainer.global_step} steps{named}", end="")


def main() -> None:
    """Run both, and print how each ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--train", choices=["ddp", "robust"])
    options = parser.parse_args()
    if options.train:
        train(options.train)
        return
    for strategy in ("ddp", "robust"):
        command = [sys.executable, str(Path(__file__).resolve()), "--train", strategy]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        print(f"{strategy}: {done.stdout}, exit code {done.returncode}", flush=True)


if __name__ == "__main__":
    main()
