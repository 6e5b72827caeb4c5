"""Codes of 1, 2, 4 or 8 bits as bytes and back."""

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor


def packed_size(count: int, bits: int) -> int:
    """Return how many bytes so many codes take."""
    return -(-count * bits // 8)


def pack(codes: UInt8[Tensor, " s"], bits: int) -> UInt8[Tensor, " b"]:
    """Return the codes, the first one in the lowest bits; zeros behind the last one."""
    if bits == 1 and codes.device.type == "cpu":
        return torch.from_numpy(np.packbits(codes.numpy(), bitorder="little"))
    each = 8 // bits
    rows = torch.nn.functional.pad(codes, (0, -len(codes) % each)).view(-1, each)
    packed = rows[:, 0].clone()
    for place in range(1, each):
        packed |= rows[:, place] << (bits * place)
    return packed


def unpack(packed: UInt8[Tensor, " b"], bits: int, count: int) -> tuple[UInt8[Tensor, " s"], Bool[Tensor, ""]]:
    """Return the first ``count`` codes, and whether nothing but zeros is behind them."""
    if bits == 1 and packed.device.type == "cpu":
        codes = torch.from_numpy(np.unpackbits(packed.numpy(), bitorder="little"))
    else:
        rows = packed.new_empty(len(packed), 8 // bits)
        for place in range(8 // bits):
            rows[:, place] = (packed >> (bits * place)) & (2**bits - 1)
        codes = rows.view(-1)
    return codes[:count], (codes[count:] == 0).all()
