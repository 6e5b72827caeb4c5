"""Files in LIBSVM's format, such as a9a, and logistic regression on them with a regulariser: what papers on compressed messages measure."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Metric
from torchmetrics.classification import BinaryAccuracy

from lightning_byz.demos.digits import Batch

STRENGTHS = {"l2": 0.00056, "nonconvex": 0.1}


class LogisticRegression(LightningModule):
    r"""Two classes told apart by a linear function without a constant, from zero.

    The loss of a batch is its mean :math:`\log(1 + e^{-y\,a \cdot x})` and a regulariser, :math:`\frac\lambda2 \|x\|^2` or
    :math:`\lambda \sum_j x_j^2 / (1 + x_j^2)`. Validation logs ``val_loss``, without the regulariser, and ``val_accuracy`` of the first loader, and
    ``gradient_norm``, the norm of the whole objective's gradient over all samples of a second one, which :class:`LibsvmData` has for the training
    samples; and ``tail_gradient_norm``, the mean of that over the later half of the evaluations so far.

    Args:
        features: Columns of the data; a9a has 123.
        regulariser: Which of the two.
        strength: :math:`\lambda`; ``None`` for 0.00056 of the first, as the code of Byz-EF21-SGDM has it, and 0.1 of the second.
        learning_rate: Step size of SGD.

    Raises:
        ValueError: If there are no columns, or the strength is negative.

    """

    def __init__(
        self,
        features: int = 123,
        *,
        regulariser: Literal["l2", "nonconvex"] = "l2",
        strength: float | None = None,
        learning_rate: float = 0.1,
    ) -> None:
        super().__init__()
        if features < 1 or regulariser not in STRENGTHS or (strength is not None and not strength >= 0):
            raise ValueError(
                f"LogisticRegression({features}, regulariser={regulariser!r}, strength={strength}): give the number of columns, 1 or more, the"
                " regulariser as 'l2' or 'nonconvex', and its strength as 0 or more, or None for the usual one."
            )
        self.save_hyperparameters()
        self.linear = nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.linear.weight)
        self.regulariser, self.learning_rate = regulariser, learning_rate
        self.strength = STRENGTHS[regulariser] if strength is None else strength
        self.val_accuracy, self.gradient = BinaryAccuracy(), MeanGradient(features)
        self.norms: list[Tensor] = []

    def forward(self, rows: Tensor) -> Tensor:
        """Return one logit per row."""
        return self.linear(rows)[:, 0]

    def penalty(self) -> Tensor:
        """Return the regulariser at the present weights."""
        squares = self.linear.weight.square()
        return self.strength * (squares.sum() / 2 if self.regulariser == "l2" else (squares / (1 + squares)).sum())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch, and log it where there is a logger: that takes as long as the rest of a worker's step."""
        loss = _losses(self(batch[0]), batch[1]) + self.penalty()
        if self.trainer.loggers:
            self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log loss and accuracy of the first loader, add up the gradients of the second."""
        rows, labels = batch
        logits = self(rows)
        if dataloader_idx:
            self.gradient.update(rows, logits, labels)
            return
        self.val_accuracy(logits.sigmoid(), labels)
        self.log("val_loss", _losses(logits, labels), sync_dist=True, add_dataloader_idx=False)
        self.log("val_accuracy", self.val_accuracy, prog_bar=True, add_dataloader_idx=False)

    def on_validation_epoch_end(self) -> None:
        """Log the norm of the gradient, and its mean over late evaluations, if there were samples for it."""
        if self.gradient.update_called:
            with torch.inference_mode(False), torch.enable_grad():
                (regular,) = torch.autograd.grad(self.penalty(), [self.linear.weight])
            norm = (self.gradient.compute() + regular[0]).norm().float()
            self.norms += [] if self.trainer.sanity_checking else [norm]
            tail = self.norms[len(self.norms) // 2 :]
            self.log("gradient_norm", norm, prog_bar=True, sync_dist=True)
            self.log("tail_gradient_norm", torch.stack(tail or [norm]).mean(), sync_dist=True)
            self.gradient.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


class MeanGradient(Metric):
    """The gradient of the mean logistic loss over all batches, of all ranks, in float64.

    Args:
        features: Columns of the data.

    """

    full_state_update = False
    sums: Tensor
    count: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(features, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, rows: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add the gradients of a batch."""
        self.sums += (logits.sigmoid() - labels).to(rows.dtype) @ rows
        self.count += len(rows)

    def compute(self) -> Tensor:
        """Return their mean."""
        return self.sums / self.count


class Rows(Dataset):
    """Rows and their labels; a batch of them is fetched at once, however large."""

    def __init__(self, rows: Tensor, labels: Tensor) -> None:
        self.rows, self.labels = rows, labels

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.labels)

    def __getitem__(self, index: int) -> list[Tensor]:
        """Return one of them."""
        return [self.rows[index], self.labels[index]]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        """Return some of them, as a batch."""
        return [self.rows[indices], self.labels[indices]]


class LibsvmData(LightningDataModule):
    """A file of two classes in LIBSVM's format, compressed or not, as dense rows with labels 0 and 1; split once with a seed of its own.

    The larger of the file's two labels becomes 1. The first validation loader has what was held out, the second all training samples, for
    ``gradient_norm``.

    With ``batch_size="full"``, a batch has room for all training samples: an epoch is one step, in which each worker has its whole shard as batch.
    That is so under any ``partition`` but ``IID``, which deals anew each epoch, since Lightning shuffles; ``GammaSimilarity(1)`` deals as evenly,
    once and for all.

    Args:
        path: Of the file.
        batch_size: Samples per batch; ``"full"`` for all of them.
        held: The part of the samples that is held out to validate, in (0, 1).
        seed: Of the order in which samples are split.
        dtype: Of the rows.

    Raises:
        ValueError: If ``held`` or ``batch_size`` is out of range; when the file is read, if it has not two classes.

    """

    def __init__(
        self,
        path: str,
        *,
        batch_size: int | Literal["full"] = 1,
        held: float = 0.2,
        seed: int = 0,
        dtype: Literal["float32", "float64"] = "float32",
    ) -> None:
        super().__init__()
        if not 0 < held < 1:
            raise ValueError(f"LibsvmData(held={held}): give the part of the samples to validate on, in (0, 1).")
        if batch_size != "full" and (isinstance(batch_size, str) or batch_size < 1):
            raise ValueError(f"LibsvmData(batch_size={batch_size}): give 1 or more samples, or 'full' for all.")
        self.path, self.batch_size, self.held, self.seed, self.dtype = path, batch_size, held, seed, dtype

    def setup(self, stage: str) -> None:
        """Read the file and split its samples."""
        rows, labels = read_libsvm(Path(self.path))
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed))
        rows, labels, held = rows[order].to(getattr(torch, self.dtype)), labels[order], round(self.held * len(labels))
        self.train, self.validation = Rows(rows[held:], labels[held:]), Rows(rows[:held], labels[:held])

    def train_dataloader(self) -> DataLoader:
        """Return the shuffled training samples."""
        size = len(self.train) if isinstance(self.batch_size, str) else self.batch_size
        return _loader(self.train, size, shuffle=True)

    def val_dataloader(self) -> list[DataLoader]:
        """Return what was held out, and the training samples."""
        return [_loader(part, 8192) for part in (self.validation, self.train)]


def read_libsvm(path: Path) -> tuple[Tensor, Tensor]:
    """Return the dense rows of a file, in float64, and for each whether it has the larger of the two labels.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has not two classes.

    """
    from sklearn.datasets import load_svmlight_file  # an extra of the package: only this demo reads it

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: give LibsvmData the path of one in LIBSVM's format.")
    rows, found = load_svmlight_file(str(path))[:2]
    labels = torch.tensor(found)
    classes = labels.unique()
    if len(classes) != 2:
        raise ValueError(f"{path} has the labels {classes.tolist()[:9]}, and LibsvmData reads files of two classes.")
    return torch.tensor(rows.toarray()), (labels == classes[1]).long()


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def _loader(samples: Rows, batch_size: int, *, shuffle: bool = False) -> DataLoader:
    return DataLoader(samples, batch_size=batch_size, shuffle=shuffle, collate_fn=_collated)


def _collated(batch: Any) -> list[Tensor]:
    """Return a batch that was fetched at once as it is."""
    return list(batch)
