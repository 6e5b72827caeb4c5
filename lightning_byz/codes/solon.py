"""Fewer numbers and fewer lies for more gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_byz.codes.code import check_count, groups_of
from lightning_byz.codes.generators import Polynomials, circle
from lightning_byz.codes.interleaved import Interleaved
from lightning_byz.codes.linear import LinearCode


@dataclass(frozen=True)
class Solon(LinearCode):
    r"""Have the :math:`r = 2 s + r_c` workers of a group compute the same part; each sends a combination of the :math:`r_c` pieces of its gradient.

    .. math:: z_i = \sum_{k < r_c} V_{ik}\, g^{(k)}, \qquad V_{i\cdot} = (2 / r)^{1/2}\,(\cos \omega \theta_i, \sin \omega \theta_i)_\omega,
        \qquad \theta_i = 2 \pi i / r,

    with frequencies :math:`\omega = 1/2, 3/2, \ldots` for an even :math:`r_c`, and :math:`1, 2, \ldots` beside a constant column for an odd one: a
    real basis of the Fourier code, whose nodes are as far apart as nodes can be. Any :math:`r_c` honest rows determine the gradient, and the rows
    of two gradients differ in :math:`2 s + 1` places or more, so that up to :math:`s` liars in every group are named and the mean of all parts is
    exact up to rounding: the step is the one without liars. A lie below the tolerance, 1e-5 of the row in float32 and 1e-12 in float64, may pass
    and moves the mean by about its own size (docs/codes.md). More than :math:`s` liars are refused where their rows fit no message; a coalition
    that knows the code can make them fit.

    Cost: a worker computes :math:`r` times the gradients of training without redundancy and sends :math:`d / r_c` numbers. Encoding reads the
    gradient once and passes :math:`r_c` times over its row; location and decoding read all rows once each, in float64; both are linear in ``d``.

    Args:
        s: Liars in a group that are found, from 1 on. All liars may be in one group.
        compression: :math:`r_c`, from 1 on: how many times shorter a row is than the gradient. With 1 this is repetition, compared by rounding
            instead of bits.

    Raises:
        ValueError: If ``s`` or ``compression`` is below 1, or groups of ``2 s + compression`` do not divide the workers.

    References:
        Chen, Chen, Wang, Davidson, Dobriban. Solon: Communication-efficient Byzantine-resilient Distributed Training via Redundant Gradients. 2021,
        arXiv 2110.01595. The paper's code is not public: generator, location and decoding are
        derived here, from Berlekamp and Welch.

    Example:
        >>> code, gradient = Solon(s=1, compression=2), torch.arange(1000.0)
        >>> where = code.coordinates(1000)
        >>> rows = torch.stack([code.encode(worker, [gradient], where, workers=4) for worker in range(4)])
        >>> rows[2] *= -100
        >>> liars = code.locate(code.project(rows, where, generator=torch.Generator()))
        >>> rows.shape, liars, bool((code.decode(rows, liars, where) - gradient).abs().max() < 1e-3)
        (torch.Size([4, 500]), [2], True)

    """

    s: int
    compression: int

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        check_count(self, "s", self.s)
        check_count(self, "compression", self.compression)

    @property
    def size(self) -> int:
        """Workers of a group."""
        return 2 * self.s + self.compression

    def groups(self, workers: int) -> list[range]:
        """Return groups of ``2 s + compression`` neighbours.

        Raises:
            ValueError: If they do not divide the workers.

        """
        return groups_of(self, self.size, "2 * s + compression", workers)

    def parts(self, workers: int) -> list[tuple[int, ...]]:
        """Return one part per worker, that of its group.

        Raises:
            ValueError: If groups do not divide the workers.

        """
        return [(part,) for part, group in enumerate(self.groups(workers)) for _ in group]

    def coordinates(self, total: int) -> Interleaved:
        """Return the layout: neighbouring pieces of the gradient make a block of a row."""
        return Interleaved(total, pieces=self.compression)

    def polynomials(self, workers: int) -> Polynomials:
        """Return the Fourier code of ``compression`` frequencies."""
        return circle(self.size, self.compression)

    def encode(
        self,
        worker: int,
        gradients: Sequence[Float[Tensor, " d"]],
        coordinates: Interleaved,
        *,
        workers: int,
        out: Float[Tensor, " c"] | None = None,
    ) -> Float[Tensor, " c"]:
        """Return the combination of the gradient's pieces that is this worker's."""
        (gradient,) = gradients
        out = gradient.new_empty(coordinates.coded, dtype=self.dtype(gradient.dtype)) if out is None else out
        first, *others = self.polynomials(workers).generator[worker % self.size].tolist()
        for row, pieces in zip(coordinates.cut_row(out), coordinates.cut(gradient), strict=True):
            own = row[:, 0]
            torch.mul(pieces[:, 0].to(own.dtype), first, out=own)  # the product of bfloat16 would be rounded to it
            for place, factor in enumerate(others, 1):
                own.add_(pieces[:, place], alpha=factor)
        return out

    def _decoder(self, group: range, honest: Sequence[int], workers: int) -> Tensor:
        return self.polynomials(workers).solved(honest)
