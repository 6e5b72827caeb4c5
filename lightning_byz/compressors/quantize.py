"""Few levels between zero and a norm, rounded at random."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lightning_byz.compressors.buckets import length, norms, over
from lightning_byz.compressors.compressor import Compressor
from lightning_byz.compressors.coordinates import Coordinates
from lightning_byz.compressors.entries import Packed, touched
from lightning_byz.compressors.packing import packed_size, unpack
from lightning_byz.compressors.wire import at_least_single, from_bytes, kept, refused, saturated
from lightning_byz.random import by_block


@dataclass(frozen=True)
class Quantize(Compressor):
    r"""Round each coordinate at random to one of :math:`L = 2^{b-1} - 1` levels of either sign between zero and the norm of its bucket.

    .. math:: C(v)_i = \|v\| \operatorname{sign}(v_i)\, \xi_i / L, \qquad \xi_i \in \{\lfloor x_i \rfloor, \lceil x_i \rceil\},\ E\,\xi_i = x_i
        = L |v_i| / \|v\|

    Unbiased with :math:`\omega = \min(B / (4 L^2), \sqrt{B} / L)` for buckets of :math:`B` coordinates, and contractive with :math:`1 - \omega`
    where that is positive, up to the rounding of the dtype. Payload: ``bits`` per coordinate and 4 bytes (8 for float64) per bucket that a part
    touches: 12.7 % of dense float32 for 4 bits and buckets of 512.

    Cost: a draw per coordinate, each block of them from a generator of its own, which is most of it: about 25 copies of a vector of 10
    million float32 to encode, 8 to decode; see ``benchmarks/compressors.py``. One byte per coordinate of memory.

    Args:
        bits: Per coordinate, sign included: 2, 4 or 8.
        norm: ``"l2"``, as in the reference, or ``"max"``, the largest absolute value, whose error is smaller wherever values are alike.
        bucket: How many coordinates share a norm, at least: the smallest divisor of a block of coordinates that is no smaller, or as many
            whole blocks. None for the whole vector, the definition, with an :math:`\omega` that grows with d. The reference runs 512.

    Raises:
        ValueError: If ``bits``, ``norm`` or ``bucket`` is none of these.

    References:
        Alistarh, Grubic, Li, Tomioka, Vojnovic. QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding. NeurIPS 2017, arXiv
        1610.02132; Lemma 3.1 with 1/4 as the largest variance of a coordinate.

    Example:
        >>> rule, coordinates, draws = Quantize(4, norm="max"), Coordinates([(3,)]), torch.Generator()
        >>> entries, out = rule.encode(torch.tensor([7.0, -3.0, 0.0]), coordinates, generator=draws), torch.empty(3)
        >>> bool(rule.decode(entries.part(0, 3), coordinates, generator=draws, out=out)), out.round()
        (True, tensor([ 7., -3.,  0.]))

    """

    bits: int = 4
    _: KW_ONLY
    norm: Literal["l2", "max"] = "l2"
    bucket: int | None = 512

    def __post_init__(self) -> None:
        """Refuse other numbers of bits, other norms and empty buckets."""
        if isinstance(self.bits, bool) or self.bits not in (2, 4, 8):
            raise ValueError(f"Quantize(bits={self.bits}): bits must be 2, 4 or 8, sign included; 1 is ScaledSign().")
        if self.norm not in ("l2", "max"):
            raise ValueError(f"Quantize(norm={self.norm!r}): norm must be 'l2' or 'max'.")
        whole = isinstance(self.bucket, int) and not isinstance(self.bucket, bool)
        if self.bucket is not None and not (whole and self.bucket >= 1):
            raise ValueError(
                f"Quantize(bucket={self.bucket}): bucket must be a whole number of coordinates from 1 on, or None for all."
            )

    @property
    def levels(self) -> int:
        """How many of either sign."""
        return 2 ** (self.bits - 1) - 1

    def alpha(self, coordinates: Coordinates) -> float | None:
        """Return what the variance leaves, if anything."""
        left = 1.0 - self.omega(coordinates)
        return left if left > 0.0 else None

    def omega(self, coordinates: Coordinates) -> float:
        """Return the bound on the variance for a bucket."""
        size = min(length(coordinates, self.bucket), coordinates.total)
        return min(size / (4 * self.levels**2), size**0.5 / self.levels)

    def size(self, coordinates: Coordinates, dtype: torch.dtype) -> int:
        """Return the bytes of codes and norms."""
        first, last = touched(coordinates.start, coordinates.stop, length(coordinates, self.bucket))
        count = coordinates.stop - coordinates.start
        return (last - first) * at_least_single(dtype).itemsize + packed_size(count, self.bits)

    def encode(self, vector: Float[Tensor, " s"], coordinates: Coordinates, *, generator: torch.Generator) -> Packed:
        """Return the levels, with a draw for each coordinate."""
        bucket, wide = length(coordinates, self.bucket), at_least_single(vector.dtype)
        scales = saturated(norms(vector, coordinates, self.norm, bucket), wide)
        divisors = torch.where(scales > 0, scales, 1.0)
        codes = torch.empty(len(vector), dtype=torch.uint8, device=vector.device)
        for low, high, draws in by_block(generator, coordinates.blocks):
            chances = torch.rand(high - low, generator=draws, dtype=wide, device=draws.device).to(vector.device)
            own = vector[low:high].to(wide)
            exact = (
                (own.abs() / over(divisors, coordinates, low, high, bucket)).mul_(self.levels).clamp_(max=self.levels)
            )
            level = exact.floor()
            level += chances < exact.sub_(level)
            codes[low:high] = level.copysign_(own).add_(self.levels)
        return Packed(codes, self.bits, scales, bucket, coordinates.start)

    def decode(
        self,
        part: UInt8[Tensor, " b"],
        coordinates: Coordinates,
        *,
        generator: torch.Generator,
        out: Float[Tensor, " s"],
    ) -> Bool[Tensor, ""]:
        """Write the levels, or zeros where a norm is no finite size, a code means nothing or there are not as many."""
        if part.numel() != self.size(coordinates, out.dtype):
            return refused(out)
        bucket, wide = length(coordinates, self.bucket), at_least_single(out.dtype)
        first, last = touched(coordinates.start, coordinates.stop, bucket)
        scales = from_bytes(part, 0, last - first, wide)
        codes, clean = unpack(part[(last - first) * wide.itemsize :], self.bits, len(out))
        for low, high in coordinates.blocks.bounds:
            level = codes[low:high].to(wide).sub_(self.levels).div_(self.levels)
            out[low:high] = saturated(level.mul_(over(scales, coordinates, low, high, bucket)), out.dtype)
        known = (codes <= 2 * self.levels).all()
        return kept(out, clean & known & scales.isfinite().all() & (scales >= 0).all())
