"""MNIST's 10,000 test images, or scikit-learn's digits without them, and the small networks of Dahan & Levy."""

import gzip
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_byz.demos.digits import Batch

SIDE, MEAN, DEVIATION = 28, 0.1307, 0.3081


class MnistClassifier(LightningModule):
    """Two convolutions with batch norm and a linear layer on images of 28 x 28: 29,034 parameters.

    Args:
        learning_rate: Step size of SGD.
    """

    def __init__(self, *, learning_rate: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.layers = nn.Sequential(*self.network())
        self.val_accuracy = MulticlassAccuracy(10, average="micro")

    def network(self) -> Iterable[nn.Module]:
        """Return the layers."""
        first = (nn.Conv2d(1, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
        second = (nn.Conv2d(16, 32, 5, padding=2), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2))
        return *first, *second, nn.Flatten(), nn.Linear(1568, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        return self.layers(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of one batch."""
        images, labels = batch
        logits = self(images)
        self.val_accuracy(logits, labels)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels), sync_dist=True)
        self.log("val_accuracy", self.val_accuracy, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


class AsynchronousMnistClassifier(MnistClassifier):
    """The network of Dahan & Levy (NeurIPS 2024): two convolutions, two linear layers and one batch norm; 66,230 parameters.

    Args:
        learning_rate: Step size of SGD.
    """

    def __init__(self, *, learning_rate: float = 0.01) -> None:
        super().__init__(learning_rate=learning_rate)

    def network(self) -> Iterable[nn.Module]:
        """Return the layers."""
        first = (nn.Conv2d(1, 20, 5), nn.MaxPool2d(2))
        second = (nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten())
        return *first, *second, nn.Linear(800, 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Linear(50, 10)


class MnistData(LightningDataModule):
    """MNIST's 10,000 test images in the order of their file, the first four fifths to train and the last to validate.

    Args:
        folder: Of ``*images-idx3-ubyte.gz`` and ``*labels-idx1-ubyte.gz``; ``None`` for scikit-learn's 1,797 digits, shuffled once with a fixed
            seed and padded to 28 x 28.
        batch_size: Images per batch.
    """

    def __init__(self, folder: str | None = None, *, batch_size: int = 4) -> None:
        super().__init__()
        self.folder, self.batch_size = folder, batch_size

    def setup(self, stage: str) -> None:
        """Read the images and split them."""
        images, labels = _digits() if self.folder is None else _mnist(Path(self.folder))
        images, held = (images - MEAN) / DEVIATION, len(labels) - len(labels) * 4 // 5
        self.train = TensorDataset(images[:-held], labels[:-held])
        self.validation = TensorDataset(images[-held:], labels[-held:])

    def train_dataloader(self) -> DataLoader:
        """Return the shuffled training images."""
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return the validation images."""
        return DataLoader(self.validation, batch_size=250)


def read_idx(folder: Path, kind: str) -> np.ndarray:
    """Return the bytes of a folder's only gzipped IDX file of a kind: a magic number whose last byte counts the axes, their lengths, the values.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    paths = sorted(folder.glob(f"*{kind}-ubyte.gz"))
    if len(paths) != 1:
        raise FileNotFoundError(f"{folder} has {len(paths)} files *{kind}-ubyte.gz: give a folder with one.")
    content = gzip.decompress(paths[0].read_bytes())
    axes = content[3]
    shape = np.frombuffer(content, ">i4", count=axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _mnist(folder: Path) -> tuple[Tensor, Tensor]:
    images, labels = read_idx(folder, "images-idx3"), read_idx(folder, "labels-idx1")
    return torch.tensor(images[:, None] / 255, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)


def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # an extra of the package: only these demos read it

    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = images[order].float().view(-1, 1, 8, 8) / 16
    return nn.functional.pad(images, ((SIDE - 8) // 2,) * 4), labels[order]
