"""Which rank hosts which logical workers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """Logical workers spread over ranks in runs; the first ranks host one more when the division leaves a rest.

    Args:
        workers: Number of logical workers, n.
        ranks: Number of processes.
        rank: This process.

    Raises:
        ValueError: If there are fewer workers than ranks.

    """

    workers: int
    ranks: int
    rank: int

    def __post_init__(self) -> None:
        """Refuse a rank without a worker."""
        if self.workers < self.ranks:
            raise ValueError(
                f"workers={self.workers} on {self.ranks} ranks leaves a rank without a worker: give at least {self.ranks} workers,"
                f" or at most {self.workers} devices."
            )

    @property
    def shares(self) -> tuple[int, ...]:
        """Number of workers per rank."""
        base, extra = divmod(self.workers, self.ranks)
        return tuple(base + (rank < extra) for rank in range(self.ranks))

    @property
    def local(self) -> range:
        """The workers of this rank."""
        return self.of(self.rank)

    def of(self, rank: int) -> range:
        """Return the workers of ``rank``."""
        first = sum(self.shares[:rank])
        return range(first, first + self.shares[rank])

    @property
    def one_per_rank(self) -> bool:
        """Whether each rank is one worker, so that Lightning's own path stays untouched."""
        return self.workers == self.ranks
