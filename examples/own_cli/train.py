"""A user's own LightningCLI script. It knows nothing of this package: config.yaml names the strategy by its class path.

cd examples/own_cli
python train.py fit --config config.yaml
python train.py fit --config config.yaml --trainer.strategy.aggregator=lightning_byz.aggregators.Mean
python train.py fit --config config.yaml --trainer.strategy=ddp
"""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Line(LightningModule):
    """A linear model, trained by the optimizer that the command line or the config names."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_error", nn.functional.l1_loss(self.layer(batch[0]), batch[1]), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        print(f"error {float(self.trainer.callback_metrics['val_error']):.3f}")


class Points(LightningDataModule):
    """Points near a plane."""

    def __init__(self, batch_size: int = 8) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        draws = torch.Generator().manual_seed(0)
        inputs = torch.randn(600, 4, generator=draws)
        targets = inputs @ torch.tensor([[1.0], [-2.0], [3.0], [0.5]]) + 0.05 * torch.randn(600, 1, generator=draws)
        self.train, self.val = TensorDataset(inputs[:480], targets[:480]), TensorDataset(inputs[480:], targets[480:])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=120)


if __name__ == "__main__":
    LightningCLI(Line, Points, save_config_callback=None)
