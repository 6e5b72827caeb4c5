"""Directions away from the honest mean, for attacks that go as far as they dare."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lightning_byz.attacks.sight import Sight
from lightning_byz.kernels import saturate
from lightning_byz.stack import Stack

Deviation = Literal["unit", "std", "sign"]
DEVIATIONS = ("unit", "std", "sign")
Reach = Callable[[Stack, Tensor, Tensor, Tensor], float]
"""How far to go: of a stack, which rows are honest and have weight, their mean, and a direction of length 1."""


def as_far_as(reach: Reach, sight: Sight, deviation: Deviation) -> Float[Tensor, "m d"]:
    """The mean of the honest rows and, from there, as far as ``reach`` says: the same row for every attacker.

    Their own rows where no honest row has weight.
    """
    honest = sight.honest_weights
    if not bool(honest.any()):
        return sight.own
    mean, direction = away(sight.stack, honest, deviation)
    distance = reach(sight.stack, honest > 0, mean, direction)
    return saturate(mean + distance * direction, sight.stack.vectors.dtype).repeat(len(sight.attackers), 1)


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
