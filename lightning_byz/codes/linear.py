"""Codes of which a row is a sum of multiples."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import chain

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

import lightning_byz.kernels as kernels
from lightning_byz.codes.code import Code
from lightning_byz.codes.generators import Polynomials
from lightning_byz.codes.interleaved import Interleaved
from lightning_byz.codes.location import TOLERANCE, liars_of
from lightning_byz.errors import TooManyLiars
from lightning_byz.slice import Slice

COLUMNS = 6
"""Numbers of a row that are looked at: with few of them some draw is nearly orthogonal to a lie now and then."""


class LinearCode(Code):
    """A code whose rows are values of polynomials at one node per worker of a group.

    Liars are found on six projections of each row: products with numbers drawn after all rows are here, normal within a block and times another
    normal number per block, added up in float64 over block partials.
    """

    @abstractmethod
    def polynomials(self, workers: int) -> Polynomials:
        """Return what the rows of a group are words of."""

    @abstractmethod
    def _decoder(self, group: range, honest: Sequence[int], workers: int) -> Tensor:
        """Return by what the pieces of these honest rows of a group are multiplied to get the sum of its parts, a line per piece of a gradient."""

    def tolerance(self, gradients: torch.dtype) -> float:
        """Return how far rounding may take an honest row: 1e-5 in float32, 1e-12 in float64."""
        return TOLERANCE[self.dtype(gradients)]

    def project(
        self,
        rows: Float[Tensor, "n s"],
        coordinates: Interleaved,
        slice: Slice | None = None,
        *,
        generator: torch.Generator,
    ) -> Shaped[Tensor, "n k"]:
        """Return six sums of each row's numbers times drawn ones; not finite where a row is not."""
        blocks, whole = coordinates.blocks(slice), coordinates.blocks()
        width = min(coordinates.width, max(coordinates.coded, 1)) // coordinates.carried
        table, factors = (
            torch.randn(COLUMNS, count, generator=generator, dtype=torch.float64, device=generator.device).to(
                rows.device
            )
            for count in (width, len(whole))
        )
        partials = kernels.projected_pieces(rows, blocks, table, coordinates.carried)
        if slice is not None:
            partials = slice.gather(partials)
        sums = (partials * factors.T[:, :, None]).sum(0).T
        return sums.contiguous() if coordinates.carried == 1 else torch.complex(sums[0::2], sums[1::2])

    def locate(self, projections: Shaped[Tensor, "n k"], *, dtype: torch.dtype = torch.float32) -> list[int]:
        """Return the workers whose rows are no values of one polynomial of low degree at their nodes, in each group.

        Raises:
            TooManyLiars: If there is no such polynomial through the rows of a group but ``s`` of them.

        """
        workers, told = len(projections), projections.detach().cpu()
        code, tolerance = self.polynomials(workers), self.tolerance(dtype)
        groups = self.groups(workers)
        found = [liars_of(told[group.start : group.stop], code, self.s, tolerance) for group in groups]
        liars = [group[row] for group, rows in zip(groups, found, strict=True) for row in rows or ()]
        refuse_unfit(self, [group for group, rows in zip(groups, found, strict=True) if rows is None], told, liars)
        return liars

    def decode(
        self,
        rows: Float[Tensor, "n s"],
        liars: Sequence[int],
        coordinates: Interleaved,
        slice: Slice | None = None,
        *,
        out: Float[Tensor, " e"] | None = None,
    ) -> Float[Tensor, " e"]:
        """Return the mean of all parts by least squares, in float64, from all rows but those of ``liars``."""
        workers, excluded = len(rows), set(liars)
        parts = len(set(chain.from_iterable(self.parts(workers))))
        lines, used = [], []
        for group in self.groups(workers):
            honest = [worker for worker in group if worker not in excluded]
            refuse_few(self, len(honest), group)
            lines.append(self._decoder(group, [worker - group.start for worker in honest], workers) / parts)
            used += honest
        out = rows.new_empty(coordinates.length(slice)) if out is None else out
        matrix, blocks = torch.cat(lines, 1).to(rows.device), coordinates.blocks(slice)
        return kernels.mixed_pieces(rows, used, matrix, blocks, pieces=coordinates.carried, out=out)


def refuse_unfit(code: Code, groups: Sequence[range], projections: Tensor, liars: Sequence[int]) -> None:
    """Raise an error that names the groups whose rows fit no message, if there are any."""
    if not groups:
        return
    workers = list(chain.from_iterable(groups))
    broken = [worker for worker in workers if not bool(projections[worker].isfinite().all())]
    named = " and those of ".join(f"{group.start} to {group.stop - 1}" for group in groups)
    if len(broken) == len(workers):
        raise TooManyLiars(
            f"{code}: the rows of workers {named} are none of them finite, as their gradients then are: look at the loss, the data and the learning"
            " rate.",
            workers=workers,
            broken=broken,
            liars=liars,
        )
    raise TooManyLiars(
        f"{code}: the rows of workers {named} fit no message, whichever {code.s} of them are left out{_told(broken)}: more than {code.s} of a "
        "group lie, or honest workers of a group did not compute the same. Raise s, or make a step of the module depend on its random state alone.",
        workers=workers,
        broken=broken,
        liars=liars,
    )


def refuse_few(code: Code, honest: int, group: range) -> None:
    """Raise an error if more than ``s`` rows of a group are to be left out."""
    if honest < len(group) - code.s:
        raise TooManyLiars(
            f"{code}: {len(group) - honest} of the workers {group.start} to {group.stop - 1} are named as liars; at most {code.s} of a group can be "
            "left out.",
            workers=group,
        )


def _told(broken: Sequence[int]) -> str:
    return f" (not finite: those of {', '.join(map(str, broken))})" if broken else ""
