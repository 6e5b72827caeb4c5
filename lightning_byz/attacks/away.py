"""Directions away from the honest mean, for attacks that go as far as they dare."""

from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from lightning_byz.stack import Stack

Deviation = Literal["unit", "std", "sign"]
DEVIATIONS = ("unit", "std", "sign")


def away(
    stack: Stack, honest: Float64[Tensor, " n"], deviation: Deviation
) -> tuple[Float64[Tensor, " d"], Float64[Tensor, " d"]]:
    """The mean of the rows by their ``honest`` weights, and a direction of length 1; of length 0 where the deviation is zero everywhere."""
    mean, variance = stack.moments(honest)
    direction = -(variance.sqrt_() if deviation == "std" else mean.sign() if deviation == "sign" else mean)
    length = float(Stack(direction[None], slice=stack.slice).squared_norms()[0]) ** 0.5
    return mean, direction.div_(length) if length > 0 else torch.zeros_like(mean)


def check(deviation: str) -> None:
    """Refuse an unknown ``deviation``."""
    if deviation not in DEVIATIONS:
        raise ValueError(f"deviation must be one of {', '.join(DEVIATIONS)}, not {deviation!r}")
