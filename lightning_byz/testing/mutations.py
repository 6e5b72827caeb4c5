"""Bytes that no honest peer sends: a message's own, changed in some way."""

import torch
from jaxtyping import UInt8
from torch import Tensor

_WORDS = (
    0,
    1,
    0x7F800000,
    0x7FC00000,
    0x7FF00000,
    0x7F7FFFFF,
    0x80000000,
    0xFF800000,
    0xFFFFFFFF,
    0x7FFFFFFF,
    0x7BFF7C00,
)


def mutated(part: UInt8[Tensor, " b"], generator: torch.Generator) -> UInt8[Tensor, " c"]:
    """Return bytes near ``part``, or none at all like it: some changed, words repeated, swapped or made of telling bits, cut, lengthened, random."""

    def below(limit: int) -> int:
        return int(torch.randint(max(limit, 1), (), generator=generator))

    kind, bytes_ = below(8), part.clone()
    count = len(part)
    if kind == 0:
        return torch.randint(256, (below(2 * count + 9),), dtype=torch.uint8, generator=generator)
    if kind == 1:
        return bytes_[: below(count)]
    if kind == 2:
        return torch.cat([bytes_, bytes_[: below(count)]])
    if kind == 3:
        return torch.randint(256, (count,), dtype=torch.uint8, generator=generator)
    for _ in range(1 + below(4)):
        size = (1, 2, 4, 8)[below(4)]
        if count < size:
            return bytes_
        first, second = (below(count // size) * size for _ in range(2))
        if kind == 4:
            bytes_[first] ^= 1 << below(8)
        elif kind == 5:
            bytes_[first : first + size] = bytes_[second : second + size].clone()
        elif kind == 6:
            one, other = bytes_[first : first + size].clone(), bytes_[second : second + size].clone()
            bytes_[first : first + size], bytes_[second : second + size] = other, one
        else:
            word = _WORDS[below(len(_WORDS))].to_bytes(4, "little") * 2
            bytes_[first : first + size] = torch.tensor(list(word[-size:]), dtype=torch.uint8)
    return bytes_
