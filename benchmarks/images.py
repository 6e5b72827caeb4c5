"""Images of digits: scikit-learn's, which are always there, or MNIST's from a folder."""

from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from lightning_byz.demos.mnist import read_idx


def read(folder: Path | None) -> tuple[TensorDataset, TensorDataset]:
    """Return training and test samples: of MNIST's files the last fifth is for tests, of the digits a fifth drawn once."""
    if folder is None:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).numpy()
        images, labels = images[order] / 16, labels[order]
    else:
        images, labels = (read_idx(folder, kind) for kind in ("images-idx3", "labels-idx1"))
        images = images.reshape(len(images), -1) / 255
    first = len(labels) * 4 // 5
    x, y = torch.tensor(images, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)
    return TensorDataset(x[:first], y[:first]), TensorDataset(x[first:], y[first:])
