"""Which rank hosts which logical workers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch.distributed as dist


def world_size() -> int:
    """Return the number of processes of this run: 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@dataclass(frozen=True)
class Placement:
    """Logical workers spread over ranks in runs; the first ranks host one more when the division leaves a rest.

    Args:
        workers: Number of logical workers, n.
        ranks: Number of processes.
        rank: This process.
        in_turn: Whether workers take turns even where each rank is one, because not all of them compute at each step, or on batches of their own.
        batches: How many batches each worker gets at a step.

    Raises:
        ValueError: If there are fewer workers than ranks.

    """

    workers: int
    ranks: int
    rank: int
    in_turn: bool = False
    batches: int = 1

    def __post_init__(self) -> None:
        """Refuse a rank without a worker."""
        if self.workers < self.ranks:
            raise ValueError(
                f"workers={self.workers} on {self.ranks} ranks leaves a rank without a worker: give at least"
                f" {self.ranks} workers, or at most {self.workers} devices."
            )

    @cached_property
    def shares(self) -> tuple[int, ...]:
        """Number of workers per rank."""
        base, extra = divmod(self.workers, self.ranks)
        return tuple(base + (rank < extra) for rank in range(self.ranks))

    @cached_property
    def local(self) -> range:
        """The workers of this rank."""
        return self.of(self.rank)

    @cached_property
    def seats(self) -> tuple[int, ...]:
        """The batches of this rank's workers, by worker: ``worker + k * workers`` is a worker's k-th."""
        return tuple(worker + k * self.workers for worker in self.local for k in range(self.batches))

    def draws(self, parts: Sequence[Sequence[int]] | None) -> dict[int, int]:
        """Return what names the draws of each of this rank's seats: the part of its worker, or itself where all have their own."""
        own = self.seats if parts is None else [part for worker in self.local for part in parts[worker]]
        return dict(zip(self.seats, own, strict=True))

    def of(self, rank: int) -> range:
        """Return the workers of ``rank``."""
        first = sum(self.shares[:rank])
        return range(first, first + self.shares[rank])

    def host(self, worker: int) -> int:
        """Return the rank of ``worker``."""
        return next(rank for rank in range(self.ranks) if worker in self.of(rank))

    @property
    def one_per_rank(self) -> bool:
        """Whether each rank is one worker that computes at each step, so that Lightning's own path stays untouched."""
        return self.workers == self.ranks and not self.in_turn
