"""The same row from every worker of a group."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

import lightning_byz.kernels as kernels
from lightning_byz.codes.code import Code, check_count, groups_of
from lightning_byz.codes.interleaved import Interleaved
from lightning_byz.codes.linear import refuse_few, refuse_unfit
from lightning_byz.slice import Slice


@dataclass(frozen=True)
class Repetition(Code):
    r"""Have the :math:`r = 2 s + 1` workers of a group send the gradient of the same part; what :math:`s + 1` of them sent is believed.

    Rows are equal where all their bits are, which honest workers of a group must see to: the same batch, the same draws, the same kernels on
    equally many threads. No lie is too small to be found, none is mistaken for another, and nothing is drawn. :math:`s + 1` liars that agree are
    believed.

    Cost: :math:`r` times the gradients of training without redundancy, and whole gradients are sent. Location compares each pair of rows of a group,
    :math:`r (r - 1) / 2` times two reads; decoding reads one row per group.

    Args:
        s: Liars in a group that are outvoted, from 1 on.

    Raises:
        ValueError: If ``s`` is below 1, or groups of ``2 s + 1`` do not divide the workers.

    References:
        Chen, Wang, Charles, Papailiopoulos. DRACO: Byzantine-resilient Distributed Training via Redundant Gradients. ICML 2018, arXiv 1803.09877.

    Example:
        >>> code, rows = Repetition(s=1), torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.5], [9.0, 9.0], [3.0, 4.0], [3.0, 4.0]])
        >>> where = code.coordinates(2)
        >>> liars = code.locate(code.project(rows, where, generator=torch.Generator()))
        >>> liars, code.decode(rows, liars, where)
        ([2, 3], tensor([2., 3.]))

    """

    s: int

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        check_count(self, "s", self.s)

    @property
    def size(self) -> int:
        """Workers of a group."""
        return 2 * self.s + 1

    def groups(self, workers: int) -> list[range]:
        """Return groups of ``2 s + 1`` neighbours.

        Raises:
            ValueError: If they do not divide the workers.

        """
        return groups_of(self, self.size, "2 * s + 1", workers)

    def parts(self, workers: int) -> list[tuple[int, ...]]:
        """Return one part per worker, that of its group.

        Raises:
            ValueError: If groups do not divide the workers.

        """
        return [(part,) for part, group in enumerate(self.groups(workers)) for _ in group]

    def coordinates(self, total: int) -> Interleaved:
        """Return the layout of gradients themselves."""
        return Interleaved(total)

    def dtype(self, gradients: torch.dtype) -> torch.dtype:
        """Return the dtype of the gradients: bits are compared."""
        return gradients

    def encode(
        self,
        worker: int,
        gradients: Sequence[Float[Tensor, " d"]],
        coordinates: Interleaved,
        *,
        workers: int,
        out: Float[Tensor, " c"] | None = None,
    ) -> Float[Tensor, " c"]:
        """Return a copy of the gradient."""
        (gradient,) = gradients
        return gradient.clone() if out is None else out.copy_(gradient)

    def project(
        self,
        rows: Float[Tensor, "n s"],
        coordinates: Interleaved,
        slice: Slice | None = None,
        *,
        generator: torch.Generator,
    ) -> Int64[Tensor, "n k"]:
        """Return in how many numbers each row differs from each of its group, and last how many of its numbers no rule can use; nothing is drawn."""
        groups, size = self.groups(len(rows)), self.size
        pairs = [(group[one], group[other]) for group in groups for one, other in combinations(range(size), 2)]
        counts = torch.cat([kernels.differing(rows, pairs, coordinates.blocks(slice)), kernels.unusable(rows)])
        counts = counts if slice is None else slice.add(counts)
        table = counts.new_zeros(len(rows), size + 1)
        table[:, -1] = counts[len(pairs) :]
        for (one, other), count in zip(pairs, counts[: len(pairs)], strict=True):
            table[one, other % size] = table[other, one % size] = count
        return table

    def locate(self, projections: Shaped[Tensor, "n k"], *, dtype: torch.dtype = torch.float32) -> list[int]:
        """Return the workers whose rows are not the one that ``s + 1`` of their group sent, or not finite.

        Raises:
            TooManyLiars: If no ``s + 1`` of a group sent the same finite row.

        """
        counts, groups, unfit, liars = projections.cpu(), self.groups(len(projections)), [], []
        for group in groups:
            own = counts[group.start : group.stop]
            same = own[:, :-1].eq(0) & own[:, -1:].eq(0)
            agreeing = same.sum(1).tolist()
            if max(agreeing) <= self.s:
                unfit.append(group)
                continue
            chosen = same[agreeing.index(max(agreeing))].tolist()
            liars += [worker for worker, fits in zip(group, chosen, strict=True) if not fits]
        refuse_unfit(self, unfit, torch.where(counts[:, -1:] > 0, torch.inf, 0.0), liars)
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
        """Return the mean of one row per group: of the first that is no liar's."""
        groups, excluded = self.groups(len(rows)), set(liars)
        for group in groups:
            refuse_few(self, sum(worker not in excluded for worker in group), group)
        used = [next(worker for worker in group if worker not in excluded) for group in groups]
        out = rows.new_empty(coordinates.length(slice)) if out is None else out
        if len(used) == 1:
            return out.copy_(rows[used[0]])
        matrix = torch.full((1, len(used)), 1 / len(used), dtype=torch.float64, device=rows.device)
        return kernels.mixed_pieces(rows, used, matrix, coordinates.blocks(slice), out=out)
