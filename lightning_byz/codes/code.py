"""What workers send of the parts that they computed, so that liars are found and the mean is exact."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lightning_byz.codes.interleaved import Interleaved
from lightning_byz.slice import Slice


class Code(ABC):
    """Which worker computes which parts, what it sends of their gradients, and how the rules find liars and get the mean of all parts.

    Workers of a group compute the same parts, to the bit if nothing but the code is to find them different, and at most ``s`` of a group lie. A coded
    row is what a worker sends. Rules see rows, or slices of them; a slice decodes to one run of coordinates. A code of your own, in a file of
    yours, is a class of these methods.
    """

    s: int
    """Liars that are found in each group."""

    @abstractmethod
    def groups(self, workers: int) -> Sequence[range]:
        """Return the workers of each group.

        Raises:
            ValueError: If there are not as many workers as the code needs.

        """

    @abstractmethod
    def parts(self, workers: int) -> Sequence[Sequence[int]]:
        """Return the parts of which each worker computes the gradient, in the order in which :meth:`encode` takes them.

        Raises:
            ValueError: If there are not as many workers as the code needs.

        """

    @abstractmethod
    def coordinates(self, total: int) -> Interleaved:
        """Return how coded rows of a gradient of ``total`` coordinates are laid out."""

    def check(self, workers: int) -> None:
        """Refuse a number of workers that the code cannot be spread over.

        Raises:
            ValueError: If it cannot.

        """
        self.groups(workers)

    def dtype(self, gradients: torch.dtype) -> torch.dtype:
        """Return the dtype of coded rows: at least float32, since narrower sums would hide lies."""
        return torch.promote_types(gradients, torch.float32)

    def tolerance(self, gradients: torch.dtype) -> float:
        """Return how far apart, in parts of its length, honest workers' gradients of the same part may be; 0 where their bits must be equal."""
        return 0.0

    @abstractmethod
    def encode(
        self,
        worker: int,
        gradients: Sequence[Float[Tensor, " d"]],
        coordinates: Interleaved,
        *,
        workers: int,
        out: Float[Tensor, " c"] | None = None,
    ) -> Float[Tensor, " c"]:
        """Return the coded row of a worker.

        Args:
            worker: Its number.
            gradients: Those of its parts, in their order; not written to.
            coordinates: Those of :meth:`coordinates`.
            workers: How many there are.
            out: Where to write it; ``None`` for new memory.

        """

    @abstractmethod
    def project(
        self,
        rows: Float[Tensor, "n s"],
        coordinates: Interleaved,
        slice: Slice | None = None,
        *,
        generator: torch.Generator,
    ) -> Shaped[Tensor, "n k"]:
        """Return a few numbers of each whole row, out of which liars are found; on every rank the same, after one reduction over slices.

        Args:
            rows: All coded rows, or this rank's slice of them.
            coordinates: How they are laid out.
            slice: Which of their numbers are here; ``None`` for all.
            generator: Whoever knows its state before sending can lie unseen: it is to be seeded afterwards, and in the same state on every rank.

        """

    @abstractmethod
    def locate(self, projections: Shaped[Tensor, "n k"], *, dtype: torch.dtype = torch.float32) -> list[int]:
        """Return the workers whose rows do not fit what their group sent.

        Args:
            projections: What :meth:`project` returned.
            dtype: That of the rows, which says how far rounding may take an honest one.

        Raises:
            TooManyLiars: If the rows of a group fit no message, whichever ``s`` of them are left out.

        """

    @abstractmethod
    def decode(
        self,
        rows: Float[Tensor, "n s"],
        liars: Sequence[int],
        coordinates: Interleaved,
        slice: Slice | None = None,
        *,
        out: Float[Tensor, " e"] | None = None,
    ) -> Float[Tensor, " e"]:
        """Return the mean of all parts, from all rows but those of ``liars``, at the coordinates that ``coordinates.decoded(slice)`` names.

        Args:
            rows: All coded rows, or this rank's slice of them; those of liars are not read.
            liars: What :meth:`locate` returned.
            coordinates: How rows are laid out.
            slice: Which of their numbers are here; ``None`` for all.
            out: Where to write it; ``None`` for new memory.

        """


def check_count(code: object, name: str, value: object) -> None:
    """Refuse what is no whole number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{type(code).__name__}({name}={value!r}): {_MEANS[name]} must be a whole number from 1 on.")


_MEANS = {
    "s": "s, how many liars of a group are found,",
    "compression": "compression, by how much a row is shorter than the gradient,",
}


def groups_of(code: object, size: int, needed: str, workers: int) -> list[range]:
    """Return groups of neighbouring workers.

    Raises:
        ValueError: If they are not of one size.

    """
    if workers < 1 or workers % size:
        lower, words = workers // size * size, [word for word in ("s", "compression") if word in needed]
        nearest = f"{lower} or {lower + size}" if lower else f"{size}"
        raise ValueError(
            f"{code} needs groups of {needed} = {size} workers, which {workers} workers cannot be divided into: take {nearest} workers, or "
            f"another {' or '.join(words)}."
        )
    return [range(first, first + size) for first in range(0, workers, size)]
