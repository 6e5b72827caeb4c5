"""Fewer bits per number."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lightning_byz.compressors.compressor import Compressor
from lightning_byz.compressors.coordinates import Coordinates
from lightning_byz.compressors.entries import Dense
from lightning_byz.compressors.wire import finite, from_bytes, kept, refused, saturated

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Cast(Compressor):
    r"""Send each number in 16 bits, rounded to the nearest; what is beyond their finite range becomes the largest of it.

    Contractive with :math:`\alpha = 1 - u^2`, where :math:`u` is :math:`2^{-8}` for bfloat16 and :math:`2^{-11}` for float16, on numbers in the
    normal range of the 16 bits: from 1e-38 to 3e38, and from 6e-5 to 65504. Smaller ones lose up to half the smallest number that there is
    (3e-8 in float16), larger ones what is beyond. Biased. Payload: 2 bytes per coordinate.

    Cost: about four passes over d to encode and three to decode. PyTorch's ``bf16_compress_hook`` and ``fp16_compress_hook`` do the same to DDP's
    gradients, without a limit at the largest number.

    Args:
        dtype: ``"bfloat16"``, which has the range of float32, or ``"float16"``, which has three more bits of precision.

    Raises:
        ValueError: If ``dtype`` is neither.

    Example:
        >>> rule, coordinates, draws = Cast("float16"), Coordinates([(3,)]), torch.Generator()
        >>> entries, out = rule.encode(torch.tensor([1.0, 0.1, -1e9]), coordinates, generator=draws), torch.empty(3)
        >>> bool(rule.decode(entries.part(0, 3), coordinates, generator=draws, out=out)), out
        (True, tensor([ 1.0000e+00,  9.9976e-02, -6.5504e+04]))

    """

    dtype: Literal["bfloat16", "float16"] = "bfloat16"

    draws: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse other dtypes."""
        if self.dtype not in _DTYPES:
            raise ValueError(f"Cast({self.dtype!r}): dtype must be 'bfloat16' or 'float16', the name of one.")

    def alpha(self, coordinates: Coordinates) -> float:
        """Return what rounding leaves of numbers in the normal range."""
        return 1.0 - (torch.finfo(_DTYPES[self.dtype]).eps / 2) ** 2

    def omega(self, coordinates: Coordinates) -> None:
        """Return nothing: rounding is biased."""
        return

    def size(self, coordinates: Coordinates, dtype: torch.dtype) -> int:
        """Return 2 bytes per coordinate."""
        return 2 * (coordinates.stop - coordinates.start)

    def encode(self, vector: Float[Tensor, " s"], coordinates: Coordinates, *, generator: torch.Generator) -> Dense:
        """Return the rounded numbers; draws nothing."""
        return Dense(saturated(vector, _DTYPES[self.dtype]), coordinates.start)

    def decode(
        self,
        part: UInt8[Tensor, " b"],
        coordinates: Coordinates,
        *,
        generator: torch.Generator,
        out: Float[Tensor, " s"],
    ) -> Bool[Tensor, ""]:
        """Write the numbers, or zeros where there are not as many or one is not finite."""
        if part.numel() != self.size(coordinates, out.dtype):
            return refused(out)
        values = from_bytes(part, 0, len(out), _DTYPES[self.dtype])
        out.copy_(
            values if torch.finfo(out.dtype).max >= torch.finfo(values.dtype).max else saturated(values, out.dtype)
        )
        return kept(out, finite(values))
