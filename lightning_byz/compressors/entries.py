"""What is made of a vector on its way: bytes, cut where the slices of the coordinates are."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lightning_byz.compressors.packing import pack
from lightning_byz.compressors.wire import to_bytes


class Entries(ABC):
    """A compressed vector, before it is cut into the parts that travel."""

    @abstractmethod
    def part(self, start: int, stop: int) -> UInt8[Tensor, " b"]:
        """Return the bytes for the rules of the coordinates from ``start`` to ``stop``, ends of blocks, among all coordinates."""


@dataclass(frozen=True, eq=False)
class Dense(Entries):
    """A number for each coordinate.

    Args:
        values: The numbers; parts are views of them.
        start: The coordinate of the first.

    Example:
        >>> import torch
        >>> len(Dense(torch.ones(100), 0).part(64, 100))
        144

    """

    values: Float[Tensor, " s"]
    start: int

    def part(self, start: int, stop: int) -> UInt8[Tensor, " b"]:
        """Return the numbers from ``start`` to ``stop``."""
        return self.values[start - self.start : stop - self.start].contiguous().view(torch.uint8)


@dataclass(frozen=True, eq=False)
class Sparse(Entries):
    """Some coordinates and their numbers: values first, then int32 indices counted from where a part starts.

    Args:
        index: Which coordinates, counted from ``start``; rising.
        values: Their numbers.
        start: Where the vector begins among all coordinates.
        told: Whether indices travel; without, whoever decodes knows them.

    Example:
        >>> import torch
        >>> entries = Sparse(torch.tensor([1, 70]), torch.tensor([0.5, 2.0]), start=0)
        >>> entries.part(64, 128).view(torch.float32)[0], entries.part(64, 128).view(torch.int32)[1]
        (tensor(2.), tensor(6, dtype=torch.int32))

    """

    index: Int64[Tensor, " k"]
    values: Float[Tensor, " k"]
    start: int
    told: bool = True

    def part(self, start: int, stop: int) -> UInt8[Tensor, " b"]:
        """Return the entries from ``start`` to ``stop``."""
        low, high = between(self.index, start - self.start, stop - self.start)
        values = self.values[low:high]
        if not self.told:
            return to_bytes(values)
        return to_bytes(values, (self.index[low:high] - (start - self.start)).to(torch.int32))


def between(index: Int64[Tensor, " k"], low: int, high: int) -> tuple[int, int]:
    """Return from where to where the entries of rising ``index`` lie between two coordinates."""
    first, last = torch.searchsorted(index, torch.tensor([low, high], device=index.device)).tolist()
    return first, last


@dataclass(frozen=True, eq=False)
class Packed(Entries):
    """Codes of some bits behind the scales that they are parts of.

    Args:
        codes: One for each coordinate.
        bits: Of a code: 1, 2, 4 or 8.
        scales: Of the buckets that the vector has something of.
        bucket: How many coordinates a bucket has, counted from the first of all; the last one may have fewer.
        start: Where the vector begins among all coordinates.

    Example:
        >>> import torch
        >>> codes, scales = torch.tensor([1, 0, 0, 1], dtype=torch.uint8), torch.ones(1)
        >>> Packed(codes, 1, scales, bucket=4, start=0).part(0, 4).tolist()
        [0, 0, 128, 63, 9]

    """

    codes: UInt8[Tensor, " s"]
    bits: int
    scales: Float[Tensor, " c"]
    bucket: int
    start: int

    def part(self, start: int, stop: int) -> UInt8[Tensor, " b"]:
        """Return the codes from ``start`` to ``stop``, behind the scales of the buckets that these touch."""
        first = self.start // self.bucket
        low, high = touched(start, stop, self.bucket)
        codes = pack(self.codes[start - self.start : stop - self.start], self.bits)
        return to_bytes(self.scales[low - first : high - first], codes)


def touched(start: int, stop: int, bucket: int) -> tuple[int, int]:
    """Return the first bucket that coordinates from ``start`` to ``stop`` touch, and one past the last."""
    return start // bucket, -(-stop // bucket) if stop > start else start // bucket
