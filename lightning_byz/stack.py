"""The messages of one step, and the arithmetic across their coordinates that every rule shares."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

import lightning_byz.kernels as kernels
from lightning_byz.errors import TooManyFaults
from lightning_byz.slice import Slice


@dataclass(frozen=True, eq=False, init=False)
class Stack:
    r"""The messages of one step: all their coordinates, or the slice of them that this rank holds.

    Args:
        vectors: One row per worker. Never written to.
        weights: One number >= 0 per worker, as a tensor or a list; None means 1 each. Afterwards always a float64 tensor beside ``vectors``.
        f: Weight that may be Byzantine, in the units of ``weights``; with unit weights, a number of workers. May be fractional.
        reference: The last committed aggregate, for rules that need a point of their own choosing.
        slice: Where these coordinates lie among all; None means they are all.
        mixing: Set by ``mix``.

    Raises:
        ValueError: If ``vectors`` is not a matrix of floating point numbers, or ``weights``, ``f``, ``reference`` or ``slice`` do not suit it.

    Example:
        >>> stack = Stack(torch.tensor([[1.0, 2.0], [1.0, 4.0], [9.0, 3.0]]), weights=[1, 2, 1], f=1)
        >>> stack.centre(), stack.total_weight
        (tensor([1.0000, 3.5000]), 4.0)
    """

    vectors: Float[Tensor, "n d"]
    weights: Float64[Tensor, " n"]
    f: float
    reference: Float[Tensor, " d"] | None
    slice: Slice | None
    mixing: Float64[Tensor, "n n"] | None
    """``vectors == mixing @ original rows``; None where they are the original rows."""
    _cache: dict[str, Any] = field(init=False, repr=False)

    def __init__(
        self,
        vectors: Tensor,
        weights: Tensor | Sequence[float] | None = None,
        f: float = 0,
        reference: Tensor | None = None,
        slice: Slice | None = None,
        *,
        mixing: Float64[Tensor, "n n"] | None = None,
    ) -> None:
        if not isinstance(vectors, Tensor) or vectors.ndim != 2 or not vectors.is_floating_point():
            given = (
                f"{tuple(vectors.shape)} of {vectors.dtype}" if isinstance(vectors, Tensor) else type(vectors).__name__
            )
            raise ValueError(f"vectors must be a floating point tensor with one row per worker (n, d), not {given}")
        if not 0 <= f < float("inf"):
            raise ValueError(f"f must be a finite weight >= 0, not {f}")
        if reference is not None and reference.shape != vectors.shape[1:]:
            raise ValueError(f"reference must have {vectors.shape[1]} coordinates, not shape {tuple(reference.shape)}")
        if slice is not None and slice.stop - slice.start != vectors.shape[1]:
            raise ValueError(f"the slice {slice.start}..{slice.stop} does not have {vectors.shape[1]} coordinates")
        values = {
            "vectors": vectors.detach(),
            "weights": _weights(weights, vectors),
            "f": float(f),
            "reference": reference,
        }
        for name, value in {**values, "slice": slice, "mixing": mixing, "_cache": {}}.items():
            object.__setattr__(self, name, value)

    # ---- shape and blocks

    @property
    def total(self) -> int:
        """Coordinates of the whole."""
        return self.vectors.shape[1] if self.slice is None else self.slice.total

    @property
    def total_weight(self) -> float:
        """The sum of the weights."""
        return self._once("total_weight", lambda: float(torch.tensor(self.masses, dtype=torch.float64).sum()))

    @property
    def masses(self) -> tuple[float, ...]:
        """The weights as numbers, read from their device once."""
        return self._once("masses", lambda: tuple(self.weights.tolist()))

    @property
    def _width(self) -> int:
        return kernels.block_size(self.total)

    def blocks(self) -> list[tuple[int, int]]:
        """``(low, high)`` of each block of coordinates, counted from the start of this slice."""
        length = self.vectors.shape[1]
        return [(low, min(low + self._width, length)) for low in range(0, length, self._width)]

    def _once(self, key: str, compute: Callable[[], Any]) -> Any:
        if key not in self._cache:
            self._cache[key] = compute()
        return self._cache[key]

    def _across(self, partials: Tensor) -> Tensor:
        """Sum block partials over all coordinates, in block order, so that slices add up to the bits of the whole."""
        return (partials if self.slice is None else self.slice.gather(partials)).sum(0)

    # ---- arithmetic across coordinates; every rank that holds a slice must call these in the same order

    def centre(self) -> Float[Tensor, " d"]:
        """The coordinate-wise weighted median: it lies in the honest range when f is below half of the weight. Not to be written to."""
        return self._once("centre", lambda: kernels.coordinate_median(self.vectors, self.weights))

    def gram(self) -> Float64[Tensor, "n n"]:
        """Inner products of the rows about ``centre()``: common parts, however large, cost no digits."""
        return self._once("gram", self._gram)

    def _gram(self) -> Tensor:
        return self.gram_about(self.centre())

    def gram_about(self, point: Float[Tensor, " d"]) -> Float64[Tensor, "n n"]:
        """Inner products of the rows about ``point``."""
        return self._summed(kernels.cross_products(self.vectors, point, self.blocks(), self._width))

    def sampled_gram(self, columns: Int64[Tensor, " k"]) -> Float64[Tensor, "n n"]:
        """Inner products over some coordinates, ascending and counted over the whole, about their median."""
        own = columns - (0 if self.slice is None else self.slice.start)
        own = own[(own >= 0) & (own < self.vectors.shape[1])]
        ends = torch.searchsorted(
            own, torch.tensor([0, *(high for _, high in self.blocks())], device=own.device)
        ).tolist()
        rows = self.vectors[:, own]
        origin = kernels.coordinate_median(rows, self.weights)
        return self._summed(kernels.cross_products(rows, origin, list(pairwise(ends)), self._width, together=False))

    def _summed(self, partials: Tensor) -> Tensor:
        gram = self._across(partials)
        return (gram + gram.T) / 2

    def squared_distances(self) -> Float64[Tensor, "n n"]:
        """Squared distances between rows: symmetric, zero on the diagonal."""
        return self._once(
            "squared_distances", self._cache.get("squared_distances of mixtures", self._squared_distances)
        )

    def _squared_distances(self) -> Tensor:
        squares = self.gram().diagonal()
        return kernels.symmetric(squares[:, None] + squares - 2 * self.gram())

    def squared_distances_to(self, point: Float[Tensor, " d"]) -> Float64[Tensor, " n"]:
        """Squared distance of each row from ``point``."""
        return self._across(kernels.square_sums(self.vectors, point, self.blocks(), self._width))

    def squared_norms(self) -> Float64[Tensor, " n"]:
        """Squared length of each row."""
        return self._once(
            "squared_norms", lambda: self._across(kernels.square_sums(self.vectors, None, self.blocks(), self._width))
        )

    # ---- sums of rows

    def combination(
        self, coefficients: Float64[Tensor, " n"], about: Float[Tensor, " d"] | None = None
    ) -> Float[Tensor, " d"]:
        """The sum of the rows times ``coefficients``, in float64, saturated to the dtype of the rows.

        Where ``about`` is given, it is taken off each row and added to the sum.
        """
        counted = coefficients.nonzero()[:, 0].tolist()
        if about is None and len(counted) == 1 and float(coefficients[counted[0]]) == 1.0:
            return self.vectors[counted[0]].clone()
        return kernels.weighted_rows(self.vectors, coefficients[None], self.blocks(), self._width, about)[0]

    def majority_signs(self) -> Float[Tensor, " d"]:
        """The sign for which more of the weight votes, at each coordinate; zero where they balance."""
        return kernels.majority_signs(self.vectors, self.weights, self.blocks(), self._width)

    def moments(self, coefficients: Float64[Tensor, " n"]) -> tuple[Float64[Tensor, " d"], Float64[Tensor, " d"]]:
        """Mean and variance of each coordinate over the rows, which count by ``coefficients`` (they sum to 1)."""
        return kernels.moments(self.vectors, coefficients, self.blocks(), self._width)

    def mix(self, matrix: Float64[Tensor, "n n"], *, f: float | None = None, hand_on: bool = True) -> "Stack":
        """The stack of ``matrix @ vectors``, with another ``f`` if given.

        Where each line of weight averages (sums to 1), distances are handed on: not to be done where huge rows may cancel in a line.
        """
        vectors = kernels.weighted_rows(self.vectors, matrix, self.blocks(), self._width)
        mixed = self._mixture(vectors, matrix, self.f if f is None else f)
        if hand_on and bool(((matrix.sum(1) - 1).abs() < 1e-9)[self.weights > 0].all()):
            mixed._cache["squared_distances of mixtures"] = lambda: kernels.mixed_distances(self.gram(), matrix)
        return mixed

    def shrink(self, factors: Float64[Tensor, " n"]) -> "Stack":
        """The stack of each row times its factor, from 0 to 1."""
        short = (factors < 1).nonzero()[:, 0].tolist()
        return (
            self._mixture(kernels.scaled_rows(self.vectors, factors, short), factors.diag(), self.f) if short else self
        )

    def _mixture(self, vectors: Tensor, matrix: Tensor, f: float) -> "Stack":
        mixed = replace(self, vectors=vectors, f=f, mixing=matrix if self.mixing is None else matrix @ self.mixing)
        if bool((matrix.abs().sum(1) < 1 + 1e-9).all()) and not bool(self.nonfinite().any()):
            mixed._cache["nonfinite"] = self.nonfinite()
        return mixed

    # ---- leaving rows out

    def nonfinite(self) -> Int64[Tensor, " n"]:
        """How many coordinates of each whole row no rule can use: not finite, or beyond 2**480 in float64."""
        return self._once("nonfinite", self._nonfinite)

    def _nonfinite(self) -> Tensor:
        counts = kernels.unusable(self.vectors)
        return counts if self.slice is None else self.slice.add(counts)

    def inspected(self, counts: Int64[Tensor, " n"]) -> "Stack":
        """The same stack, told what ``nonfinite()`` would find."""
        stack = replace(self)
        stack._cache.update(self._cache, nonfinite=counts.to(self.vectors.device))
        return stack

    def excluding(self, rows: Bool[Tensor, " n"], *, faulty: bool) -> "Stack":
        """The stack with ``rows`` zeroed and without weight; ``f`` is lowered by that weight only if they are ``faulty``."""
        rows = rows.to(self.vectors.device)
        if not bool(rows.any()):
            return self
        removed = float(self.weights[rows].sum()) if faulty else 0.0
        return replace(
            self,
            vectors=self.vectors.masked_fill(rows[:, None], 0.0),
            weights=self.weights.masked_fill(rows, 0.0),
            f=max(self.f - removed, 0.0),
            mixing=None if self.mixing is None else self.mixing.masked_fill(rows[:, None], 0.0),
        )

    def sanitised(self) -> "Stack":
        """The stack without the rows that no rule can use; free when all are usable.

        Raises:
            TooManyFaults: If they weigh more than ``f``.
        """
        broken = self.nonfinite() > 0
        clean = self.excluding(broken, faulty=True)
        if clean is self:
            return self
        weight = float(self.weights[broken].sum())
        if weight > self.f + 1e-9 * self.total_weight:
            raise TooManyFaults(
                f"rows {broken.nonzero()[:, 0].tolist()} hold numbers that are not finite or not usable and weigh {weight:g} together, "
                f"but at most f = {self.f:g} of the weight {self.total_weight:g} may be faulty"
            )
        return clean.inspected(torch.zeros_like(self.nonfinite()))


def _weights(weights: Tensor | Sequence[float] | None, vectors: Tensor) -> Tensor:
    count = vectors.shape[0]
    if weights is None:
        return torch.ones(count, dtype=torch.float64, device=vectors.device)
    result = torch.as_tensor(weights, dtype=torch.float64, device=vectors.device).detach()
    if result.shape != (count,) or not bool((result.isfinite() & (result >= 0)).all()):
        raise ValueError(f"weights must be {count} finite numbers >= 0, one per row, not {result.tolist()}")
    return result
