"""Only the largest coordinates."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lightning_byz.compressors.agreement import among_all
from lightning_byz.compressors.budget import Per, budgets, check_budget, check_enough, most, parts_kept, runs, sizes
from lightning_byz.compressors.compressor import Compressor
from lightning_byz.compressors.coordinates import Coordinates
from lightning_byz.compressors.entries import Sparse
from lightning_byz.compressors.selection import largest, magnitudes
from lightning_byz.compressors.sparse import INDEX, read_sparse


@dataclass(frozen=True)
class TopK(Compressor):
    r"""Keep the ``k`` coordinates of the largest absolute value, exactly ``k``, ties to the lowest index; the others are zero.

    Contractive with :math:`\alpha = k / d`, of the tensor of which the smallest part is kept for ``per="tensor"``, and biased. Payload: a value
    and an int32 index per coordinate that is kept, ``k`` times (size of the dtype + 4) bytes, 2 % of dense float32 for ``TopK(0.01)``. A slice
    has as many of them as lie in it, so that lengths travel first.

    Cost: encode and decode together about 2.5 copies of the vector for ``TopK(0.01)`` of 10 million float32 on a CPU, also of ties; see
    ``benchmarks/compressors.py``. Memory: ``k`` and a few buffers that fit the cache. On slices, each brings its own best, and three sums of
    counts of float32 (two of 16-bit numbers, six of float64) and one gathering of counts agree on the best of all.

    Args:
        ratio: Which part is kept, in (0, 1]; ``max(1, round(ratio * d))`` coordinates.
        k: How many are kept; either this or ``ratio``. With ``per="tensor"`` tensors that have fewer are sent whole.
        per: Whether ratio or k hold for the whole ``"vector"`` or for each parameter ``"tensor"``, as the code of Byz-EF21-SGDM (arXiv
            2409.08640) has it. The vector's largest keep more of what tensors of different scales hold.

    Raises:
        ValueError: If neither or both of ratio and k are given, or either is outside its range.

    References:
        Stich, Cordonnier, Jaggi. Sparsified SGD with Memory. NeurIPS 2018, arXiv 1809.07599.

    Example:
        >>> rule, coordinates, draws = TopK(k=2), Coordinates([(4,)]), torch.Generator()
        >>> entries, out = rule.encode(torch.tensor([1.0, -3.0, 0.5, 3.0]), coordinates, generator=draws), torch.empty(4)
        >>> bool(rule.decode(entries.part(0, 4), coordinates, generator=draws, out=out)), out
        (True, tensor([ 0., -3.,  0.,  3.]))

    """

    ratio: float | None = None
    _: KW_ONLY
    k: int | None = None
    per: Per = "vector"

    varies: ClassVar[bool] = True
    draws: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse what keeps nothing, or more than all."""
        check_budget(self)

    def alpha(self, coordinates: Coordinates) -> float:
        """Return the smallest part that is kept."""
        return min(parts_kept(self, coordinates), default=1.0)

    def omega(self, coordinates: Coordinates) -> None:
        """Return nothing: what is left out is biased."""
        return

    def size(self, coordinates: Coordinates, dtype: torch.dtype) -> int:
        """Return the bytes of as many entries as the coordinates may have; all of them have so many."""
        return most(self, coordinates) * (dtype.itemsize + INDEX.itemsize)

    def check(self, coordinates: Coordinates) -> None:
        """Refuse to keep more coordinates than there are.

        Raises:
            ValueError: If ``k`` is above d, or above what any tensor has.

        """
        check_enough(self, coordinates)

    def encode(self, vector: Float[Tensor, " s"], coordinates: Coordinates, *, generator: torch.Generator) -> Sparse:
        """Return the largest of the whole vector that lie here; draws nothing."""
        limits = budgets(self, coordinates)
        own = [low + largest(vector[low:high], limits[group]) for group, low, high in runs(self, coordinates)]
        index = torch.cat(own) if own else torch.zeros(0, dtype=torch.int64, device=vector.device)
        if coordinates.slice is not None:
            keys, bits = magnitudes(vector[index]).long(), 8 * vector.element_size() - 1
            index = index[among_all(keys, index, sizes(self, coordinates), limits, coordinates, bits=bits)]
        return Sparse(index, vector[index], coordinates.start)

    def decode(
        self,
        part: UInt8[Tensor, " b"],
        coordinates: Coordinates,
        *,
        generator: torch.Generator,
        out: Float[Tensor, " s"],
    ) -> Bool[Tensor, ""]:
        """Write at most ``k`` finite values whose indices rise, and zeros elsewhere; else zeros."""
        limits = budgets(self, coordinates)
        own = [(high, min(limits[group], high - low)) for group, low, high in runs(self, coordinates)]
        return read_sparse(part, own, out=out)
