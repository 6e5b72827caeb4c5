"""Shortening of a worker's gradients, before its estimator sees them."""

import math
from dataclasses import fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.blocks import Blocks, block_size
from lightning_byz.kernels import square_sums

CLIPPING = frozenset({"convergence", "coordinates", "scaling"})
"""Laws of the contract suite that shortened gradients do not keep: a length is of all coordinates, and in units of its own."""


def check_clip(estimator: object, clip: float | None) -> None:
    """Refuse what is no length."""
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, int | float) or not 0 < clip < math.inf):
        raise ValueError(
            f"{type(estimator).__name__}(clip={clip!r}): give the largest length of a gradient, finite and positive, or None."
        )


def shown(estimator: Any) -> str:
    """Return the ``repr`` of a frozen dataclass without what is not given.

    Example:
        >>> from lightning_byz.estimators import WorkerMomentum
        >>> WorkerMomentum(), WorkerMomentum(clip=2.0)
        (WorkerMomentum(beta=0.9), WorkerMomentum(beta=0.9, clip=2.0))

    """
    given = {field.name: getattr(estimator, field.name) for field in fields(estimator)}
    return f"{type(estimator).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items() if value is not None)})"


def clipped(
    gradient: Float[Tensor, " d"], clip: float | None, *, out: Float[Tensor, " d"] | None = None
) -> Float[Tensor, " d"]:
    """Return the gradient, shortened to the length ``clip`` if it is longer, in memory of its own or in ``out``; without a ``clip`` itself.

    Example:
        >>> clipped(torch.tensor([3.0, 4.0]), 1.0), clipped(torch.tensor([0.3, 0.4]), 1.0)
        (tensor([0.6000, 0.8000]), tensor([0.3000, 0.4000]))

    """
    if clip is None:
        return gradient
    blocks = Blocks.of(len(gradient), block_size(len(gradient)))
    length = square_sums(gradient[None], None, blocks).sum(0).sqrt()
    return torch.mul(gradient, clip / length.clamp(min=clip)[0], out=out)
