"""Matrices of which a code takes some columns: orthonormal, and polynomials of their number in a node at every worker."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Polynomials:
    """A code whose words are the values of polynomials at the nodes, one node per row.

    Args:
        values: Orthonormal, square: column k is a polynomial of degree k, times a factor per node that is the same for all.
        locators: The polynomials by which errors are located, without that factor.
        dimension: How many columns are combined to a word.

    """

    values: Tensor
    locators: Tensor
    dimension: int

    @cached_property
    def generator(self) -> Tensor:
        """The columns that are combined."""
        return self.values[:, : self.dimension]


@lru_cache(maxsize=64)
def chebyshev(rows: int, dimension: int) -> Polynomials:
    r"""Return Chebyshev polynomials at their nodes :math:`\cos((2 i + 1) \pi / 2 r)`: the discrete cosine transform, real."""
    row, degree = (torch.arange(rows, dtype=torch.float64) for _ in range(2))
    values = torch.cos(torch.outer(2 * row + 1, degree) * (torch.pi / (2 * rows))) * (2 / rows) ** 0.5
    values[:, 0] = rows**-0.5
    return Polynomials(values, values, dimension)


@lru_cache(maxsize=64)
def roots_of_unity(rows: int, dimension: int) -> Polynomials:
    """Return powers of the roots of unity, of exponents from ``-middle(dimension)`` on: the discrete Fourier transform, complex."""
    numbers = torch.arange(rows)
    shifted = numbers - middle(dimension)
    values, locators = (_unit(torch.outer(numbers, powers), rows) * rows**-0.5 for powers in (shifted, numbers))
    return Polynomials(values, locators, dimension)


def middle(dimension: int) -> int:
    """Which of the coefficients of a cyclic code is the sum of the parts: the one that makes rows smallest."""
    return (dimension - 1) // 2


@lru_cache(maxsize=64)
def cyclic(workers: int, held: int) -> Tensor:
    """Return by what each worker multiplies each part: words of :func:`roots_of_unity` that are zero where a worker does not hold the part.

    A part's column is the one polynomial that vanishes at the workers without it, scaled so that its middle coefficient is 1.
    """
    code = roots_of_unity(workers, workers - held + 1)
    nodes = _unit(torch.arange(workers), workers)
    apart = 1 - nodes[:, None] / nodes
    columns = []
    for part in range(workers):
        holding = torch.tensor([(part - worker) % workers < held for worker in range(workers)])
        column = apart[:, ~holding].prod(1) * _unit(torch.arange(workers) * -middle(code.dimension), workers)
        columns.append(torch.where(holding, column, 0.0))
    made = torch.stack(columns, 1)
    return made / (code.values[:, middle(code.dimension)].conj() @ made)


def _unit(steps: Tensor, rows: int) -> Tensor:
    """Return the roots of unity of so many steps around the circle."""
    angles = (steps % rows).double() * (2 * torch.pi / rows)
    return torch.complex(angles.cos(), angles.sin())
