"""Only the signs, and one size for all."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lightning_byz.compressors.compressor import Compressor
from lightning_byz.compressors.coordinates import Coordinates
from lightning_byz.compressors.entries import Packed
from lightning_byz.compressors.packing import packed_size, unpack
from lightning_byz.compressors.wire import at_least_single, from_bytes, kept, refused, saturated


@dataclass(frozen=True)
class ScaledSign(Compressor):
    r"""Send each coordinate's sign, one bit, and the mean absolute value: :math:`C(v) = (\|v\|_1 / d) \operatorname{sign}(v)`.

    Zeros count as positive. Contractive with :math:`\alpha = 1 / d` at worst, :math:`\|v\|_1^2 / (d \|v\|_2^2)` for a given vector (2 / pi for
    normal numbers), and biased. Payload: 4 bytes of the mean (8 for float64) and a bit per coordinate, 3.13 % of dense float32.

    Cost: a pass for the sum, by block in float64, one for the signs, and one to write them; one byte per coordinate of memory.

    References:
        Bernstein, Wang, Azizzadenesheli, Anandkumar. signSGD: Compressed Optimisation for Non-Convex Problems. ICML 2018, arXiv 1802.04434.
        Karimireddy, Rebjock, Stich, Jaggi. Error Feedback Fixes SignSGD and Other Gradient Compression Schemes. ICML 2019, arXiv 1901.09847.

    Example:
        >>> rule, coordinates, draws = ScaledSign(), Coordinates([(3,)]), torch.Generator()
        >>> entries, out = rule.encode(torch.tensor([1.0, -3.0, 0.5]), coordinates, generator=draws), torch.empty(3)
        >>> bool(rule.decode(entries.part(0, 3), coordinates, generator=draws, out=out)), out
        (True, tensor([ 1.5000, -1.5000,  1.5000]))

    """

    draws: ClassVar[bool] = False

    def alpha(self, coordinates: Coordinates) -> float:
        """Return what holds for every vector: one coordinate at least is met."""
        return 1.0 / max(coordinates.total, 1)

    def omega(self, coordinates: Coordinates) -> None:
        """Return nothing: a sign is biased."""
        return

    def size(self, coordinates: Coordinates, dtype: torch.dtype) -> int:
        """Return the bytes of the mean and the bits."""
        count = coordinates.stop - coordinates.start
        return (at_least_single(dtype).itemsize if count else 0) + packed_size(count, 1)

    def encode(self, vector: Float[Tensor, " s"], coordinates: Coordinates, *, generator: torch.Generator) -> Packed:
        """Return the signs; draws nothing."""
        blocks = coordinates.blocks
        sums = torch.zeros(len(blocks), dtype=torch.float64, device=vector.device)
        for place, (low, high) in enumerate(blocks.bounds):
            sums[place] = torch.linalg.vector_norm(vector[low:high], ord=1, dtype=torch.float64)
        mean = coordinates.gather(sums).sum(0, keepdim=True) / max(coordinates.total, 1)
        scale = saturated(mean, at_least_single(vector.dtype))[: len(vector)]
        return Packed((vector < 0).view(torch.uint8), 1, scale, max(coordinates.total, 1), coordinates.start)

    def decode(
        self,
        part: UInt8[Tensor, " b"],
        coordinates: Coordinates,
        *,
        generator: torch.Generator,
        out: Float[Tensor, " s"],
    ) -> Bool[Tensor, ""]:
        """Write the signs times the mean, or zeros where it is no finite size or there are not as many."""
        if part.numel() != self.size(coordinates, out.dtype):
            return refused(out)
        if not len(out):
            return torch.ones((), dtype=torch.bool, device=out.device)
        wide = at_least_single(out.dtype)
        scale = from_bytes(part, 0, 1, wide)[0].to(out.dtype)
        negative, clean = unpack(part[wide.itemsize :], 1, len(out))
        torch.where(negative.view(torch.bool), -scale, scale, out=out)
        return kept(out, clean & scale.isfinite() & (scale >= 0))
