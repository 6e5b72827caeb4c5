"""Handwritten digits of 8 x 8 pixels, which come with scikit-learn, and a small network that reads them."""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

Batch = tuple[Tensor, Tensor] | list[Tensor]
PIXELS, CLASSES, VALIDATION = 64, 10, 360


class DigitsClassifier(LightningModule):
    """A network of one hidden layer on 8 x 8 images of digits.

    Args:
        hidden: Width of the hidden layer.
        learning_rate: Step size of SGD.
        weight_decay: Weight decay of SGD.
    """

    def __init__(self, hidden: int = 128, *, learning_rate: float = 0.5, weight_decay: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(PIXELS, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.val_accuracy = MulticlassAccuracy(CLASSES, average="micro")
        self.test_accuracy = MulticlassAccuracy(CLASSES, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        return self.layers(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return and log the loss of one batch."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of one batch."""
        images, labels = batch
        logits = self(images)
        self.val_accuracy(logits, labels)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels), sync_dist=True)
        self.log("val_accuracy", self.val_accuracy, prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the accuracy of one batch."""
        images, labels = batch
        self.test_accuracy(self(images), labels)
        self.log("test_accuracy", self.test_accuracy)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the most likely digit of each image."""
        return self(batch[0]).argmax(1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)


class DigitsData(LightningDataModule):
    """The 1,797 digits of scikit-learn, shuffled once with a fixed seed: 1,437 to train, 360 to validate, to test and to predict.

    Args:
        batch_size: Images per batch.
    """

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Read the images and split them."""
        from sklearn.datasets import load_digits  # an extra of the package: only this demo reads it

        images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        images, labels = images[order].float() / 16, labels[order]
        self.train = TensorDataset(images[VALIDATION:], labels[VALIDATION:])
        self.validation = TensorDataset(images[:VALIDATION], labels[:VALIDATION])

    def train_dataloader(self) -> DataLoader:
        """Return the shuffled training images."""
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return the validation images."""
        return DataLoader(self.validation, batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader:
        """Return the validation images: nothing is chosen by them in training."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        """Return the validation images."""
        return self.val_dataloader()
