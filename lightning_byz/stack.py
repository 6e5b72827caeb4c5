"""The messages of one step, and the arithmetic across their coordinates that every rule shares."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

import lightning_byz.kernels as kernels
from lightning_byz.blocks import Blocks, block_size
from lightning_byz.errors import TooManyFaults
from lightning_byz.facts import counted, fact, refuse_unfit, total_of, weights_of
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
    _cache: dict[Any, Any] = field(init=False, repr=False)

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
        refuse_unfit(vectors, f, reference)
        if slice is not None and slice.stop - slice.start != vectors.shape[1]:
            raise ValueError(f"the slice {slice.start}..{slice.stop} does not have {vectors.shape[1]} coordinates")
        beside, masses = weights_of(weights, vectors)
        values = {"vectors": vectors.detach(), "weights": beside, "f": float(f), "reference": reference}
        self.__dict__.update(values, slice=slice, mixing=mixing, _cache={"masses": masses})

    def _with(self, facts: Mapping[Any, Any], **changes: Any) -> "Stack":
        """The stack with ``changes``, which are known to fit, and the ``facts`` that are known of it then."""
        stack = object.__new__(type(self))
        stack.__dict__.update({**self.__dict__, **changes, "_cache": dict(facts)})
        return stack

    @property
    def total(self) -> int:
        """Coordinates of the whole."""
        return self.vectors.shape[1] if self.slice is None else self.slice.total

    @property
    def masses(self) -> tuple[float, ...]:
        """The weights as numbers, which no reading of ``weights`` by the host costs."""
        return self._cache["masses"]

    @property
    def total_weight(self) -> float:
        """The sum of the weights."""
        return total_of(self.masses)

    @property
    def found(self) -> dict[Any, Any]:
        """What has been found out about this stack, under the names of its methods; rules may add to it under keys of their own."""
        return self._cache

    @fact
    def blocks(self) -> Blocks:
        """The blocks of coordinates of this slice."""
        return Blocks.of(self.total, block_size(self.total)) if self.slice is None else self.slice.blocks

    def _across(self, partials: Tensor) -> Tensor:
        """Sum block partials over all coordinates, in block order, so that slices add up to the bits of the whole."""
        return (partials if self.slice is None else self.slice.gather(partials)).sum(0)

    # ---- arithmetic across coordinates; every rank that holds a slice must call these in the same order

    @fact
    def centre(self) -> Float[Tensor, " d"]:
        """The coordinate-wise weighted median: it lies in the honest range when f is below half of the weight. Not to be written to."""
        return kernels.coordinate_median(self.vectors, self.masses)

    def survey(
        self, statistic: Callable[..., Float[Tensor, " d"]], *, distances: bool = False
    ) -> tuple[Float[Tensor, " d"], Float64[Tensor, " n"] | None] | None:
        """A kernel's result for each coordinate and, if asked for, the squared distance of each row from it; None if there are broken rows.

        Where kernels are compiled the rows are read once for all of it.
        """
        aside = kernels.Aside(self.blocks() if distances else None, look="nonfinite" not in self._cache)
        point = statistic(self.vectors, self.masses, aside=aside)
        kernels.answered(self.vectors, point, aside)
        if aside.look:
            self._cache["nonfinite"] = self._counted(kernels.unusable(self.vectors, aside.suspects))
        squares = None if aside.squares is None else self._across(aside.squares)
        return None if self.broken() else (point, squares)

    @fact
    def gram(self) -> Float64[Tensor, "n n"]:
        """Inner products of the rows about ``centre()``: common parts, however large, cost no digits."""
        return self.gram_about(self.centre())

    def gram_about(self, point: Float[Tensor, " d"]) -> Float64[Tensor, "n n"]:
        """Inner products of the rows about ``point``."""
        return self._summed(kernels.cross_products(self.vectors, point, self.blocks()))

    def sampled_gram(self, columns: Int64[Tensor, " k"]) -> Float64[Tensor, "n n"]:
        """Inner products over some coordinates, ascending and counted over the whole, about their median; best told on the CPU."""
        return self._summed(kernels.sampled_products(self.vectors, self.masses, columns, self.blocks()))

    def _summed(self, partials: Tensor) -> Tensor:
        gram = self._across(partials)
        return (gram + gram.T) / 2

    @fact
    def squared_distances(self) -> Float64[Tensor, "n n"]:
        """Squared distances between rows: symmetric, zero on the diagonal."""
        if "mixed" in self._cache:
            parts, matrix = self._cache["mixed"]
            return kernels.mixed_distances(parts.gram(), matrix)
        squares = self.gram().diagonal()
        return kernels.symmetric(squares[:, None] + squares - 2 * self.gram())

    def squared_distances_to(self, point: Float[Tensor, " d"]) -> Float64[Tensor, " n"]:
        """Squared distance of each row from ``point``."""
        return self._across(kernels.square_sums(self.vectors, point, self.blocks()))

    @fact
    def squared_norms(self) -> Float64[Tensor, " n"]:
        """Squared length of each row."""
        return self._across(kernels.square_sums(self.vectors, None, self.blocks()))

    def combination(
        self, coefficients: Float64[Tensor, " n"], about: Float[Tensor, " d"] | None = None
    ) -> Float[Tensor, " d"]:
        """The sum of the rows less ``about``, times ``coefficients``, plus ``about``; in float64, saturated to the dtype of the rows."""
        numbers = coefficients.tolist()
        kept = [row for row, number in enumerate(numbers) if number != 0]
        if about is None and len(kept) == 1 and numbers[kept[0]] == 1:
            return self.vectors[kept[0]].clone()
        return kernels.weighted_rows(self.vectors, coefficients[None], self.blocks(), about)[0]

    def moments(self, coefficients: Float64[Tensor, " n"]) -> tuple[Float64[Tensor, " d"], Float64[Tensor, " d"]]:
        """Mean and variance of each coordinate over the rows, which count by ``coefficients`` (they sum to 1)."""
        return kernels.moments(self.vectors, coefficients, self.blocks())

    def mix(self, matrix: Float64[Tensor, "n n"], *, f: float | None = None, hand_on: bool = True) -> "Stack":
        """The stack of ``matrix @ vectors``, with another ``f`` if given.

        Where each line of weight averages (sums to 1), distances are handed on: not to be done where huge rows may cancel in a line.
        """
        vectors = kernels.weighted_rows(self.vectors, matrix, self.blocks())
        sums, sizes = torch.stack([matrix.sum(1), matrix.abs().sum(1)]).tolist()
        mixed = self._mixture(vectors, matrix, self.f if f is None else f, short=all(size < 1 + 1e-9 for size in sizes))
        if hand_on and all(abs(line - 1) < 1e-9 for line, mass in zip(sums, self.masses, strict=True) if mass > 0):
            mixed._cache["mixed"] = self, matrix
        return mixed

    def shrink(self, factors: Float64[Tensor, " n"]) -> "Stack":
        """The stack of each row times its factor, from 0 to 1."""
        short = [row for row, factor in enumerate(factors.tolist()) if factor < 1]
        if not short:
            return self
        return self._mixture(kernels.scaled_rows(self.vectors, factors, short), factors.diag(), self.f, short=True)

    def _mixture(self, vectors: Tensor, matrix: Tensor, f: float, *, short: bool) -> "Stack":
        """Where lines are ``short``, usable rows stay usable."""
        usable = {"nonfinite": self.nonfinite(), "broken": ()} if short and not self.broken() else {}
        mixing = matrix if self.mixing is None else matrix @ self.mixing
        return self._with({"masses": self.masses, **usable}, vectors=vectors, f=f, mixing=mixing)

    @fact
    def nonfinite(self) -> Int64[Tensor, " n"]:
        """How many coordinates of each whole row no rule can use: not finite, or beyond 2**480 in float64."""
        return self._counted(kernels.unusable(self.vectors))

    def _counted(self, counts: Tensor) -> Tensor:
        return counts if self.slice is None else self.slice.add(counts)

    @fact
    def broken(self) -> tuple[int, ...]:
        """The rows that no rule can use: those of which ``nonfinite()`` counts anything."""
        return counted(self.nonfinite())

    def inspected(self, counts: Int64[Tensor, " n"]) -> "Stack":
        """The same stack, told what ``nonfinite()`` would find."""
        told = {"nonfinite": counts.to(self.vectors.device), "broken": counted(counts)}
        return self._with({**self._cache, **told})

    def excluding(self, rows: Bool[Tensor, " n"], *, faulty: bool) -> "Stack":
        """The stack with ``rows`` zeroed and without weight; ``f`` is lowered by that weight only if they are ``faulty``."""
        out = counted(rows)
        if not out:
            return self
        rows = rows.to(self.vectors.device)
        facts: dict[Any, Any] = {"masses": tuple(0.0 if row in out else own for row, own in enumerate(self.masses))}
        if "nonfinite" in self._cache:
            facts["nonfinite"] = self.nonfinite().masked_fill(rows, 0)
            facts["broken"] = tuple(row for row in self.broken() if row not in out)
        return self._with(
            facts,
            vectors=self.vectors.masked_fill(rows[:, None], 0.0),
            weights=self.weights.masked_fill(rows, 0.0),
            f=max(self.f - total_of([self.masses[row] for row in out]), 0.0) if faulty else self.f,
            mixing=None if self.mixing is None else self.mixing.masked_fill(rows[:, None], 0.0),
        )

    def sanitised(self) -> "Stack":
        """The stack without the rows that no rule can use; free when all are usable.

        Raises:
            TooManyFaults: If they weigh more than ``f``.
        """
        broken = self.broken()
        if not broken:
            return self
        weight = total_of([self.masses[row] for row in broken])
        if weight > self.f + 1e-9 * self.total_weight:
            raise TooManyFaults(
                f"rows {list(broken)} hold numbers that are not finite or not usable and weigh {weight:g} together, "
                f"but at most f = {self.f:g} of the weight {self.total_weight:g} may be faulty"
            )
        return self.excluding(self.nonfinite() > 0, faulty=True)
