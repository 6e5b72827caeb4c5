"""Numbers that no rule can use: not finite, or so large that their squares overflow float64."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from lightning_byz.blocks import Blocks
from lightning_byz.facts import counted
from lightning_byz.kernels.blocks import columns, on_blocks
from lightning_byz.kernels.paths import compiled

_CHUNK = 32768
_SQUARABLE = 2.0**480  # float64 only: squares of larger numbers, summed, can overflow


def suspects(vectors: Tensor) -> Tensor:
    """Which rows may hold numbers that are not usable."""
    fast = compiled(vectors)
    return fast.suspects(vectors) if fast else _tallied(_doubts, vectors)


def unusable(vectors: Float[Tensor, "n d"], among: Shaped[Tensor, " n"] | None = None) -> Int64[Tensor, " n"]:
    """How many coordinates of each row no rule can use: not finite, or so large that their squares overflow float64.

    The rows of which that is not zero are ``among`` these, if they are known.
    """
    counts = torch.zeros(vectors.shape[0], dtype=torch.int64, device=vectors.device)
    for row in counted(suspects(vectors) if among is None else among):
        counts[row] = _tallied(lambda part: (~_usable(part)).sum(1), vectors[row : row + 1])[0]
    return counts


def _tallied(tally: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
    """The sum of what ``tally`` says of the rows of each part."""
    parts = Blocks.of(vectors.shape[1], _CHUNK)
    found = torch.zeros(len(parts), vectors.shape[0], dtype=torch.int64, device=vectors.device)

    def look(first: int, last: int) -> None:
        for low, high in columns(vectors, parts, first, last):
            found[low // _CHUNK] = tally(vectors[:, low:high])

    on_blocks(look, vectors, parts)
    return found.sum(0)


def usable_up_to(dtype: torch.dtype) -> float:
    """The largest number that rules can use."""
    return _SQUARABLE if dtype == torch.float64 else torch.finfo(dtype).max


def _usable(values: Tensor) -> Tensor:
    return values.abs() <= usable_up_to(values.dtype)


def _doubts(part: Tensor) -> Tensor:
    """A cheap first look in one reading pass: a row of usable numbers is cleared, unless its sum overflows by itself."""
    if part.dtype == torch.float64:
        return ~_usable(torch.linalg.vector_norm(part, ord=torch.inf, dim=1))
    return ~part.sum(1, dtype=torch.float32).isfinite()
