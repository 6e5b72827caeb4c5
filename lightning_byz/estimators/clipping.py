"""Shortening of a worker's gradients, before its estimator sees them."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz import kernels
from lightning_byz.blocks import Blocks, block_size

CLIPPING = frozenset({"convergence", "coordinates", "scaling"})
"""Laws of the contract suite that shortened gradients do not keep: a length is of all coordinates, and in units of its own."""


def check_clip(estimator: object, clip: float | None) -> None:
    """Refuse what is no length."""
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, int | float) or not 0 < clip < math.inf):
        raise ValueError(
            f"{type(estimator).__name__}(clip={clip!r}): give the largest length of a gradient, finite and positive, or None."
        )


def clipped(gradient: Float[Tensor, " d"], clip: float | None) -> Float[Tensor, " d"]:
    """Return the gradient, shortened to the length ``clip`` if it is longer; its own memory where nothing changes.

    Example:
        >>> clipped(torch.tensor([3.0, 4.0]), 1.0), clipped(torch.tensor([0.3, 0.4]), 1.0)
        (tensor([0.6000, 0.8000]), tensor([0.3000, 0.4000]))

    """
    if clip is None:
        return gradient
    blocks = Blocks.of(len(gradient), block_size(len(gradient)))
    length = kernels.square_sums(gradient[None], None, blocks).sum(0).sqrt()
    return gradient * (clip / length.clamp(min=clip)).to(torch.promote_types(gradient.dtype, torch.float32))
