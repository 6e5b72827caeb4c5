"""The whole aggregate from every rank's part of it."""

from math import isinf, isnan
from typing import NoReturn

import torch
from torch import Tensor

from lightning_byz.exchange import Wire
from lightning_byz.rounds.checks import share_memory
from lightning_byz.stack import Stack


def assembled(vector: Tensor | None, stack: Stack, wire: Wire, *, name: str) -> Tensor | None:
    """Return the whole aggregate; ``None`` if a rule refused on some rank. The first number of each slice carries the verdict everywhere.

    Every rank must call it.

    Args:
        vector: This rank's part; ``None`` where a rule refused.
        stack: What it was made of.
        wire: Brings the parts together.
        name: The rule that made it.

    Raises:
        RuntimeError: If a part is not finite.

    """
    part = stack.vectors[0]
    if vector is None:
        whole = wire.assemble(torch.full_like(part, float("inf")))
    elif bool(torch.stack(torch.aminmax(vector)).isfinite().all() if vector.numel() else True):
        held = [one for one in (stack.vectors, stack.reference) if one is not None and share_memory(vector, one)]
        whole = wire.assemble(vector.clone() if held else vector)
    else:
        whole = wire.assemble(torch.full_like(part, float("nan")))
    marks = whole[list(wire.starts)].tolist()
    if any(isnan(mark) for mark in marks):
        refuse_values(name)
    return None if any(isinf(mark) for mark in marks) else whole


def refuse_values(name: str) -> NoReturn:
    """Stop a run whose rule has returned what it must not."""
    raise RuntimeError(f"{name} returned values that are not finite from rows that all are.")
