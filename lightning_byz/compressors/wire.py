"""Numbers as bytes and back, whatever the bytes are."""

import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor


def to_bytes(*tensors: Shaped[Tensor, " _"]) -> UInt8[Tensor, " b"]:
    """Return the bytes of some vectors, one behind the other."""
    return torch.cat([tensor.contiguous().view(torch.uint8) for tensor in tensors])


def from_bytes(part: UInt8[Tensor, " b"], start: int, count: int, dtype: torch.dtype) -> Shaped[Tensor, " c"]:
    """Return ``count`` numbers that begin at byte ``start``, a view of the bytes where they lie as numbers do."""
    piece = part[start : start + count * dtype.itemsize]
    if not piece.is_contiguous() or piece.storage_offset() % dtype.itemsize:
        piece = piece.clone(memory_format=torch.contiguous_format)
    return piece.view(dtype)


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which scales travel and products are made."""
    return torch.promote_types(dtype, torch.float32)


def saturated(values: Float[Tensor, "..."], dtype: torch.dtype) -> Float[Tensor, "..."]:
    """Return ``values`` in ``dtype``, those beyond its finite numbers as the nearest of them; what is no number stays none."""
    limit = torch.finfo(dtype).max
    if torch.finfo(values.dtype).max > limit:
        values = values.clamp(-limit, limit)
    return values.to(dtype).clamp(-limit, limit)


def refused(out: Float[Tensor, " s"]) -> Bool[Tensor, ""]:
    """Write zeros, and say so."""
    out.zero_()
    return torch.zeros((), dtype=torch.bool, device=out.device)


def kept(out: Float[Tensor, " s"], valid: Bool[Tensor, ""]) -> Bool[Tensor, ""]:
    """Write zeros unless ``valid``, which is read only where that waits for no device; return it."""
    if out.device.type != "cpu":
        out.masked_fill_(~valid, 0.0)
    elif not valid:
        out.zero_()
    return valid


def finite(values: Float[Tensor, " s"]) -> Bool[Tensor, ""]:
    """Return whether all numbers are finite, in one reading pass: the smallest and the largest are, and either is no number if any is none."""
    if not len(values):
        return torch.ones((), dtype=torch.bool, device=values.device)
    smallest, largest = values.aminmax()
    return smallest.isfinite() & largest.isfinite()
