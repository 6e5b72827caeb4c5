"""Parts that overlap around a circle of all workers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.codes.code import check_count
from lightning_byz.codes.generators import Polynomials, cyclic, middle, roots_of_unity
from lightning_byz.codes.interleaved import Interleaved
from lightning_byz.codes.linear import LinearCode


@dataclass(frozen=True)
class Cyclic(LinearCode):
    r"""Have each worker compute :math:`2 s + 1` of n parts, its own and the next ones around a circle; it sends one combination of their gradients.

    .. math:: z_i = \sum_{k = i}^{i + 2 s} W_{ik}\, c_k, \qquad W = C Q,

    where :math:`C` holds :math:`n - 2 s` columns of the unitary Fourier matrix and the columns of :math:`Q` are such that :math:`W` is zero
    wherever a worker does not hold a part. Any :math:`n - 2 s` honest rows determine the sum of the parts; up to :math:`s` liars among all workers
    are named. Rows are complex: here the halves of a run of coordinates of the real gradient are real and imaginary parts of :math:`c`, and a row
    is sent as ``d`` real numbers. The published code sends twice as many, and takes the sum from the first coefficient of Q instead of the middle
    one, which makes the entries of W many times as large and costs digits; both are the same code up to a phase of each row.

    Any number of workers from :math:`2 s + 1` on will do. What is found and what is refused are as for :class:`Solon` with a compression of 1.

    Cost: :math:`2 s + 1` gradients per worker, one after another, and four passes over ``d / 2`` for each of them to encode; location and decoding
    read all rows once each, in float64.

    Args:
        s: Liars that are found among all workers, from 1 on.

    Raises:
        ValueError: If ``s`` is below 1, or there are fewer than ``2 s + 1`` workers.

    References:
        Chen, Wang, Charles, Papailiopoulos. DRACO: Byzantine-resilient Distributed Training via Redundant Gradients. ICML 2018, arXiv 1803.09877.

    Example:
        >>> code, parts = Cyclic(s=1), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 0.0], [7.0, 2.0]])
        >>> where, held = code.coordinates(2), code.parts(4)
        >>> rows = torch.stack([code.encode(worker, [*parts[list(held[worker])]], where, workers=4) for worker in range(4)])
        >>> rows[3] = 100.0
        >>> liars = code.locate(code.project(rows, where, generator=torch.Generator()))
        >>> held[3], liars, code.decode(rows, liars, where).round(decimals=4)
        ((3, 0, 1), [3], tensor([4., 2.]))

    """

    s: int

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        check_count(self, "s", self.s)

    @property
    def held(self) -> int:
        """Parts that each worker computes."""
        return 2 * self.s + 1

    def groups(self, workers: int) -> list[range]:
        """Return all workers, as one group.

        Raises:
            ValueError: If there are fewer than ``2 s + 1``.

        """
        if workers < self.held:
            raise ValueError(
                f"{self} needs at least 2 * s + 1 = {self.held} workers, not {workers}: take more workers, or lower s."
            )
        return [range(workers)]

    def parts(self, workers: int) -> list[tuple[int, ...]]:
        """Return ``2 s + 1`` parts per worker, from the one of its own number on.

        Raises:
            ValueError: If there are too few workers.

        """
        self.check(workers)
        return [tuple((worker + step) % workers for step in range(self.held)) for worker in range(workers)]

    def coordinates(self, total: int) -> Interleaved:
        """Return the layout: each block holds real parts, then imaginary parts."""
        return Interleaved(total, pieces=2, carried=2)

    def polynomials(self, workers: int) -> Polynomials:
        """Return powers of the roots of unity, of ``workers - 2 s`` exponents."""
        return roots_of_unity(workers, workers - 2 * self.s)

    def encode(
        self,
        worker: int,
        gradients: Sequence[Float[Tensor, " d"]],
        coordinates: Interleaved,
        *,
        workers: int,
        out: Float[Tensor, " c"] | None = None,
    ) -> Float[Tensor, " c"]:
        """Return the combination of the parts' gradients that is this worker's."""
        first = gradients[0]
        out = first.new_empty(coordinates.coded, dtype=self.dtype(first.dtype)) if out is None else out
        out.zero_()
        factors = cyclic(workers, self.held)[worker, list(self.parts(workers)[worker])].tolist()
        for gradient, factor in zip(gradients, factors, strict=True):
            for row, pieces in zip(coordinates.cut_row(out), coordinates.cut(gradient), strict=True):
                (real, imaginary), (own, other) = pieces.unbind(1), row.unbind(1)
                own.add_(real, alpha=factor.real).add_(imaginary, alpha=-factor.imag)
                other.add_(real, alpha=factor.imag).add_(imaginary, alpha=factor.real)
        return out

    def _decoder(self, group: range, honest: Sequence[int], workers: int) -> Tensor:
        code = self.polynomials(workers)
        factors = code.solved(honest)[middle(code.dimension)]
        columns = torch.stack([factors, 1j * factors], 1).flatten()
        return torch.stack([columns.real, columns.imag])
