"""The network and the images of the study of double momentum."""

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from images import read
from torch import Tensor, nn


class Data(NamedTuple):
    """Images and labels."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def data_of(
    folder: Path | None,
    *,
    dtype: torch.dtype = torch.float32,
    test: Literal["last", "first", "drawn"] = "last",
    normalised: bool = True,
) -> Data:
    """Return training and test images of 28 by 28; scikit-learn's digits of 8 by 8 lie in the middle of zeros.

    Args:
        folder: Of MNIST's 10 000 test images in IDX; without it, the digits.
        dtype: Of the images.
        test: Where the fifth for tests lies among the images: the last, the first, or drawn once.
        normalised: Whether pixels are shifted and scaled by MNIST's mean and deviation, or lie in [0, 1].

    """
    parts = [part.tensors for part in read(folder)]
    images, labels = (torch.cat([part[place] for part in parts]) for place in (0, 1))
    side = round(images.shape[1] ** 0.5)
    images = nn.functional.pad(images.view(-1, 1, side, side), ((28 - side) // 2,) * 4).to(dtype)
    images = (images - 0.1307) / 0.3081 if normalised else images
    total, tests = len(labels), len(parts[1][1])
    order = torch.arange(total)
    if test == "drawn":
        order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    elif test == "first":
        order = order.roll(-tests)
    train, held = order[: total - tests], order[total - tests :]
    return Data(images[train], labels[train], images[held], labels[held])


def network(*, momentum: float = 0.1) -> nn.Sequential:
    """Return the network of 29 034 parameters, whose batch norm's running statistics forget at this rate."""
    first = (nn.Conv2d(1, 16, 5, padding=2), nn.BatchNorm2d(16, momentum=momentum), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(16, 32, 5, padding=2), nn.BatchNorm2d(32, momentum=momentum), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(1568, 10))
