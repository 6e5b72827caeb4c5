"""Matrices of codes: polynomials in a root of unity, one for every worker of a group, as far apart as nodes can be."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Polynomials:
    """A code whose words are values of polynomials at the nodes, times a factor per node that is the same for all words.

    Args:
        values: Square and unitary: the powers of the nodes, times the factor; words are combinations of the first ``dimension`` columns.
        locators: The powers without the factor.
        generator: An orthonormal basis of the words.

    Example:
        >>> code = circle(4, 2)  # frequency one half at four nodes
        >>> code.generator[:, 0].round(decimals=3), code.dimension
        (tensor([ 0.7070,  0.5000,  0.0000, -0.5000], dtype=torch.float64), 2)

    """

    values: Tensor
    locators: Tensor
    generator: Tensor

    @property
    def dimension(self) -> int:
        """How many numbers a word is made of."""
        return self.generator.shape[1]

    def solved(self, rows: Sequence[int]) -> Tensor:
        """Return by what these rows of a word are multiplied to get its numbers, by least squares: by Householder's way, which costs no digits."""
        orthonormal, upper = torch.linalg.qr(self.generator[list(rows)])
        return torch.linalg.solve_triangular(upper, orthonormal.mH, upper=True)


@lru_cache(maxsize=64)
def roots_of_unity(rows: int, dimension: int) -> Polynomials:
    """Return the discrete Fourier transform, of exponents from ``-middle(dimension)`` on: complex."""
    values = _powers(rows, -2 * middle(dimension))
    return Polynomials(values, _powers(rows, 0), values[:, :dimension])


@lru_cache(maxsize=64)
def circle(rows: int, dimension: int) -> Polynomials:
    r"""Return the transform of exponents symmetric about 0, of which cosines and sines are a real basis.

    Frequencies are :math:`0, 1, 2, \ldots` for an odd dimension and :math:`1/2, 3/2, \ldots` for an even one, at the angles :math:`2 \pi i / r`.
    """
    values = _powers(rows, 1 - dimension)
    half = values[:, (dimension + 1) // 2 : dimension] * 2**0.5
    constant = values[:, dimension // 2 : dimension // 2 + dimension % 2].real
    waves = torch.stack([half.real, half.imag], 2).flatten(1)
    return Polynomials(values, _powers(rows, 0), torch.cat([constant, waves], 1))


def middle(dimension: int) -> int:
    """Which of the coefficients of a cyclic code is the sum of the parts: the one that makes rows smallest."""
    return (dimension - 1) // 2


@lru_cache(maxsize=64)
def cyclic(workers: int, held: int) -> Tensor:
    """Return by what each worker multiplies each part: words of :func:`roots_of_unity` that are zero where a worker does not hold the part.

    A part's column is the one polynomial that vanishes at the workers without it, scaled so that its middle coefficient is 1.
    """
    code = roots_of_unity(workers, workers - held + 1)
    sum_of_parts = code.values[:, middle(code.dimension)]
    nodes = code.locators[:, 1] * workers**0.5
    apart, columns = 1 - nodes[:, None] / nodes, []
    for part in range(workers):
        holding = torch.tensor([(part - worker) % workers < held for worker in range(workers)])
        column = apart[:, ~holding].prod(1) * code.values[:, 0]
        columns.append(torch.where(holding, column, 0.0))
    made = torch.stack(columns, 1)
    return made / (sum_of_parts.conj() @ made)


def _powers(rows: int, first: int) -> Tensor:
    """Return the powers of the roots of unity from half of ``first`` on, one column after another, of length 1."""
    steps = torch.outer(torch.arange(rows), 2 * torch.arange(rows) + first) % (2 * rows)
    angles = steps.double() * (torch.pi / rows)
    return torch.complex(angles.cos(), angles.sin()) * rows**-0.5
