"""Matrices of low rank."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lightning_byz.compressors.compressor import Compressor
from lightning_byz.compressors.coordinates import Coordinates
from lightning_byz.compressors.entries import Entries
from lightning_byz.compressors.wire import at_least_single, finite, from_bytes, kept, refused, saturated, to_bytes


@dataclass(frozen=True)
class LowRank(Compressor):
    r"""Send each matrix :math:`M` as :math:`P` and :math:`M^\top P`, where :math:`P` is an orthonormal basis of :math:`M Q` for a random :math:`Q`.

    .. math:: C(M) = P P^\top M

    One power iteration from normal numbers, drawn anew each time: the ``Q`` of the last step is not kept as the reference keeps it (a warm start),
    since a message is then a function of its arguments. Tensors of more than two dimensions are seen as (first, rest). Vectors, scalars and
    matrices that two factors would not make smaller are sent as they are. Contractive with :math:`\alpha = r / \min(m, n)` of the matrix where
    that is smallest, equal for a matrix of equal singular values, and nearer 1 the faster they fall; biased. Payload: :math:`r (m + n)` numbers
    per matrix. Factors cannot be cut by coordinates: ``Local`` and ``AllGather`` only.

    Cost: two products, :math:`O(r m n)` each, and an orthonormalisation, :math:`O(r^2 m)`, to encode; a product to decode; in float32 or wider.

    Args:
        rank: :math:`r`, from 1 on. The reference runs 1, 2 and 4.

    Raises:
        ValueError: If ``rank`` is not from 1 on.

    References:
        Vogels, Karimireddy, Jaggi. PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization. NeurIPS 2019, arXiv
        1905.13727, without the error feedback, which ``ErrorFeedback`` adds.

    Example:
        >>> rule, coordinates, draws = LowRank(1), Coordinates([(4, 3), (2,)]), torch.Generator()
        >>> matrix, out = torch.outer(torch.arange(4.0), torch.ones(3)), torch.empty(14)
        >>> part = rule.encode(torch.cat([matrix.flatten(), torch.ones(2)]), coordinates, generator=draws).part(0, 14)
        >>> len(part), bool(rule.decode(part, coordinates, generator=draws, out=out)), out[:12].view(4, 3).round()[3]
        (36, True, tensor([3., 3., 3.]))

    """

    rank: int = 4

    splits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse ranks below 1."""
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(
                f"LowRank(rank={self.rank}): rank must be a whole number from 1 on; 4 is what DDP's hook is used with."
            )

    def alpha(self, coordinates: Coordinates) -> float:
        """Return what is kept of equal singular values, of the matrix where that is least."""
        return min((self.rank / min(matrix) for matrix in self._matrices(coordinates) if matrix), default=1.0)

    def omega(self, coordinates: Coordinates) -> None:
        """Return nothing: a projection is biased."""
        return

    def size(self, coordinates: Coordinates, dtype: torch.dtype) -> int:
        """Return the bytes of the factors and of what is sent as it is."""
        return sum(self._numbers(coordinates)) * dtype.itemsize

    def check(self, coordinates: Coordinates) -> None:
        """Refuse parameters of which none would get smaller, and slices of them.

        Raises:
            ValueError: If no tensor is a matrix that has more numbers than its factors, or not all coordinates are here.

        """
        if not any(self._matrices(coordinates)):
            shapes = ", ".join(str(tuple(shape)) for shape in coordinates.shapes[:4])
            raise ValueError(
                f"LowRank(rank={self.rank}) compresses matrices of which rank * (rows + columns) is below rows * columns, and no parameter "
                f"tensor is one (their shapes: {shapes}, ...). Lower the rank, or take another compressor."
            )
        self._require_whole(coordinates)

    def encode(self, vector: Float[Tensor, " s"], coordinates: Coordinates, *, generator: torch.Generator) -> Entries:
        """Return the factors, from one draw per matrix."""
        self._require_whole(coordinates)
        matrices, wide, pieces = self._matrices(coordinates), at_least_single(vector.dtype), []
        for place, low, high in coordinates.runs():
            shape = matrices[place]
            if shape is None:
                pieces.append(vector[low:high])
                continue
            left, right = self._factors(vector[low:high].view(shape).to(wide), generator)
            pieces += [saturated(factor.reshape(-1), vector.dtype) for factor in (left, right)]
        return _Factors(to_bytes(vector[:0], *pieces))

    def decode(
        self,
        part: UInt8[Tensor, " b"],
        coordinates: Coordinates,
        *,
        generator: torch.Generator,
        out: Float[Tensor, " s"],
    ) -> Bool[Tensor, ""]:
        """Write the products of the factors, or zeros where one is not finite or there are not as many numbers."""
        if part.numel() != self.size(coordinates, out.dtype):
            return refused(out)
        matrices, counts, wide = self._matrices(coordinates), self._numbers(coordinates), at_least_single(out.dtype)
        values = from_bytes(part, 0, sum(counts), out.dtype)
        valid = finite(values)
        for (place, low, high), own in zip(coordinates.runs(), values.split(counts), strict=True):
            shape = matrices[place]
            if shape is None:
                out[low:high] = own
                continue
            left, right = own.to(wide).split([self.rank * side for side in shape])
            product = left.view(-1, self.rank) @ right.view(-1, self.rank).T
            valid = valid & product.isfinite().all()
            out[low:high] = saturated(product.view(-1), out.dtype)
        return kept(out, valid)

    def _factors(self, matrix: Float[Tensor, "m n"], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return an orthonormal basis, and what the matrix is in it; the matrix is scaled meanwhile, so that no product overflows."""
        drawn = torch.randn(
            matrix.shape[1], self.rank, generator=generator, dtype=matrix.dtype, device=generator.device
        )
        largest = matrix.abs().max()
        scaled = matrix / torch.where(largest > 0, largest, 1.0)
        left = torch.linalg.qr(scaled @ drawn.to(matrix.device)).Q
        return left, (scaled.T @ left) * largest

    def _matrices(self, coordinates: Coordinates) -> list[tuple[int, int] | None]:
        """Return rows and columns of each tensor, None for those that are sent as they are."""
        seen = [(shape[0], prod(shape[1:])) if len(shape) > 1 else (0, 0) for shape in coordinates.shapes]
        return [(rows, columns) if self.rank * (rows + columns) < rows * columns else None for rows, columns in seen]

    def _numbers(self, coordinates: Coordinates) -> list[int]:
        """Return how many numbers are sent of each tensor that is not empty."""
        matrices = self._matrices(coordinates)
        pairs = [(matrices[place], high - low) for place, low, high in coordinates.runs()]
        return [size if shape is None else self.rank * sum(shape) for shape, size in pairs]

    def _require_whole(self, coordinates: Coordinates) -> None:
        if coordinates.stop - coordinates.start != coordinates.total:
            raise ValueError(
                f"LowRank(rank={self.rank}) sends factors of whole matrices, which cannot be cut by coordinates; use AllGather or Local."
            )


@dataclass(frozen=True, eq=False)
class _Factors(Entries):
    """Bytes that cannot be cut."""

    bytes: UInt8[Tensor, " b"]

    def part(self, start: int, stop: int) -> UInt8[Tensor, " b"]:
        """Return them all, for the rules of all coordinates."""
        return self.bytes
