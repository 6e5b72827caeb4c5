"""No compression."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lightning_byz.compressors.compressor import Compressor
from lightning_byz.compressors.coordinates import Coordinates
from lightning_byz.compressors.entries import Dense
from lightning_byz.compressors.wire import finite, from_bytes, kept, refused


@dataclass(frozen=True)
class Identity(Compressor):
    r"""Send the vector as it is: :math:`C(v) = v`.

    Contractive with :math:`\alpha = 1`, unbiased with :math:`\omega = 0`. Payload: all numbers, ``d`` times the size of the dtype.

    Cost: none to encode, whose entries are a view of the vector; two passes over d to decode.

    Example:
        >>> rule, coordinates, draws = Identity(), Coordinates([(3,)]), torch.Generator()
        >>> vector, out = torch.tensor([1.0, -2.0, 0.5]), torch.empty(3)
        >>> bool(rule.decode(rule.encode(vector, coordinates, generator=draws).part(0, 3), coordinates, generator=draws, out=out)), out
        (True, tensor([ 1.0000, -2.0000,  0.5000]))

    """

    draws: ClassVar[bool] = False

    def alpha(self, coordinates: Coordinates) -> float:
        """Return 1: nothing is lost."""
        return 1.0

    def omega(self, coordinates: Coordinates) -> float:
        """Return 0: nothing is drawn."""
        return 0.0

    def size(self, coordinates: Coordinates, dtype: torch.dtype) -> int:
        """Return the bytes of all numbers."""
        return (coordinates.stop - coordinates.start) * dtype.itemsize

    def encode(self, vector: Float[Tensor, " s"], coordinates: Coordinates, *, generator: torch.Generator) -> Dense:
        """Return the vector itself."""
        return Dense(vector, coordinates.start)

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
        out.copy_(from_bytes(part, 0, len(out), out.dtype))
        return kept(out, finite(out))
