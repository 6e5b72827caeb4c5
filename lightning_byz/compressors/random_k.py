"""Only coordinates drawn at random."""

from dataclasses import KW_ONLY, dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from lightning_byz.compressors.budget import Per, budgets, check_budget, check_enough, most, parts_kept, runs, sizes
from lightning_byz.compressors.compressor import Compressor
from lightning_byz.compressors.coordinates import Coordinates
from lightning_byz.compressors.entries import Sparse, between
from lightning_byz.compressors.sparse import INDEX, read_sparse, write
from lightning_byz.compressors.wire import at_least_single, from_bytes, refused, saturated
from lightning_byz.random import distinct


@dataclass(frozen=True)
class RandomK(Compressor):
    r"""Keep ``k`` coordinates drawn at random, times :math:`d / k`; the others are zero.

    Every set of ``k`` is as likely. Unbiased with :math:`\omega = d / k - 1`, of the tensor of which the smallest part is kept for
    ``per="tensor"``; without the factor (``scaled=False``) biased, and contractive with :math:`\alpha = k / d`. What the factor would take out of
    the dtype's finite numbers stays at the largest of them. Payload: a value and an int32 index per coordinate that is kept; with a ``shared``
    mask a value alone, since who decodes draws the mask again.

    Cost: ``k`` draws, sorted, at each end that needs them, and at the other a pass that writes zeros.

    Args:
        ratio: Which part is kept, in (0, 1]; ``max(1, round(ratio * d))`` coordinates.
        k: How many are kept; either this or ``ratio``. With ``per="tensor"`` tensors that have fewer are sent whole.
        per: Whether ratio or k hold for the whole ``"vector"`` or for each parameter ``"tensor"``.
        shared: Whether all workers keep the same coordinates at a step, as RoSDHB (arXiv 2508.17129) has it.
        scaled: Whether values are multiplied, so that they are right on average. ``EF21`` needs them as they are.

    Raises:
        ValueError: If neither or both of ratio and k are given, or either is outside its range.

    References:
        Stich, Cordonnier, Jaggi. Sparsified SGD with Memory. NeurIPS 2018, arXiv 1809.07599.
        Wangni, Wang, Liu, Zhang. Gradient Sparsification for Communication-Efficient Distributed Optimization. NeurIPS 2018, arXiv 1710.09854.

    Example:
        >>> rule, coordinates = RandomK(k=2), Coordinates([(4,)])
        >>> entries = rule.encode(torch.ones(4), coordinates, generator=torch.Generator().manual_seed(0))
        >>> entries.values, len(entries.part(0, 4))
        (tensor([2., 2.]), 16)

    """

    ratio: float | None = None
    _: KW_ONLY
    k: int | None = None
    per: Per = "vector"
    shared: bool = False  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
    scaled: bool = True

    varies: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what keeps nothing, or more than all."""
        check_budget(self)

    def alpha(self, coordinates: Coordinates) -> float | None:
        """Return the smallest part that is kept; scaled, what the variance leaves, if anything."""
        smallest = min(parts_kept(self, coordinates), default=1.0)
        left = 2.0 - 1.0 / smallest if self.scaled else smallest
        return left if left > 0.0 else None

    def omega(self, coordinates: Coordinates) -> float | None:
        """Return the variance of what is scaled."""
        return 1.0 / min(parts_kept(self, coordinates), default=1.0) - 1.0 if self.scaled else None

    def size(self, coordinates: Coordinates, dtype: torch.dtype) -> int:
        """Return the bytes of as many entries as the coordinates may have; all of them have so many."""
        return most(self, coordinates) * (dtype.itemsize + (0 if self.shared else INDEX.itemsize))

    def check(self, coordinates: Coordinates) -> None:
        """Refuse to keep more coordinates than there are.

        Raises:
            ValueError: If ``k`` is above d, or above what any tensor has.

        """
        check_enough(self, coordinates)

    def encode(self, vector: Float[Tensor, " s"], coordinates: Coordinates, *, generator: torch.Generator) -> Sparse:
        """Return the drawn coordinates that lie here."""
        index = self._mask(coordinates, generator, vector.device)
        values = vector[index]
        if self.scaled:
            wide = at_least_single(vector.dtype)
            values = saturated(values.to(wide) * self._factors(coordinates, index).to(wide), vector.dtype)
        return Sparse(index, values, coordinates.start, told=not self.shared)

    def decode(
        self,
        part: UInt8[Tensor, " b"],
        coordinates: Coordinates,
        *,
        generator: torch.Generator,
        out: Float[Tensor, " s"],
    ) -> Bool[Tensor, ""]:
        """Write at most ``k`` finite values whose indices rise, or those of the shared mask, and zeros elsewhere; else zeros."""
        if not self.shared:
            limits = budgets(self, coordinates)
            own = [(high, min(limits[group], high - low)) for group, low, high in runs(self, coordinates)]
            return read_sparse(part, own, out=out)
        index = self._mask(coordinates, generator, out.device)
        if part.numel() != len(index) * out.element_size():
            return refused(out)
        values = from_bytes(part, 0, len(index), out.dtype)
        return write(values, index, values.isfinite().all(), out)

    def _mask(self, coordinates: Coordinates, generator: torch.Generator, device: torch.device) -> Int64[Tensor, " k"]:
        """Return the drawn coordinates that lie here, counted from the vector's start."""
        groups = zip(sizes(self, coordinates), budgets(self, coordinates), strict=True)
        starts = accumulate(sizes(self, coordinates), initial=0)
        drawn = [
            start + distinct(count, size, generator).sort().values
            for start, (size, count) in zip(starts, groups, strict=False)
        ]
        whole = torch.cat(drawn).to(device) if drawn else torch.zeros(0, dtype=torch.int64, device=device)
        low, high = between(whole, coordinates.start, coordinates.stop)
        return whole[low:high] - coordinates.start

    def _factors(self, coordinates: Coordinates, index: Int64[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Return what each value is multiplied by."""
        groups = list(zip(sizes(self, coordinates), budgets(self, coordinates), strict=True))
        factors = torch.tensor([size / max(count, 1) for size, count in groups], dtype=torch.float64)
        ends = torch.tensor(list(accumulate(size for size, _ in groups)), device=index.device)
        return factors.to(index.device)[torch.searchsorted(ends, index + coordinates.start, right=True)]
