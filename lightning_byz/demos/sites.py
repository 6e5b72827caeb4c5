"""The same digits, as they would lie at several sites: each process has those of its own site and no others."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from lightning_byz.demos.digits import PIXELS


class DigitsSites(LightningDataModule):
    """The 1,797 digits of scikit-learn, shuffled once with a fixed seed and dealt to sites; each keeps a quarter of its own to validate.

    Args:
        sizes: The sites' sizes are in proportion to them; one number per process.
        batch_size: Images per batch and site.
    """

    def __init__(self, sizes: Sequence[int] = (5, 4, 3, 2, 1), *, batch_size: int = 16) -> None:
        super().__init__()
        self.sizes, self.batch_size = tuple(sizes), batch_size

    def setup(self, stage: str) -> None:
        """Read this site's images."""
        from sklearn.datasets import load_digits  # an extra of the package: only these demos read it

        site = self.trainer.global_rank if self.trainer is not None else 0
        images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        ends = [0, *(end * len(order) // sum(self.sizes) for end in accumulate(self.sizes))]
        own = order[ends[site] : ends[site + 1]]
        images, labels = images[own].float().view(-1, PIXELS) / 16, labels[own]
        held = len(own) // 4
        self.train = TensorDataset(images[held:], labels[held:])
        self.validation = TensorDataset(images[:held], labels[:held])

    def train_dataloader(self) -> DataLoader:
        """Return this site's shuffled training images."""
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return this site's validation images."""
        return DataLoader(self.validation, batch_size=self.batch_size)
