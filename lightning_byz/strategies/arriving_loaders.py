"""Loaders of workers that do not all compute at each step: each goes through its own shard, at its own pace."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

from torch.utils.data import DataLoader

from lightning_byz.arrivals.arrivals import schedule_of
from lightning_byz.data import Partition
from lightning_byz.data.shard_sampler import EndlessSampler
from lightning_byz.exchange import Placement
from lightning_byz.rounds.arriving import Arriving
from lightning_byz.rounds.plan import Plan
from lightning_byz.strategies.inside_lightning import with_sampler
from lightning_byz.strategies.loaders import KeyedLoader, WorkerBatches, WorkerLoaders, refuse_small_dataset, splittable
from lightning_byz.strategies.run import Run

STALE = "Under arrivals= each worker needs a shard of its own", "give arrivals=Synchronous()"


@dataclass(frozen=True)
class Pace:
    """Which workers compute next, and how far each has come.

    Args:
        run: Returns the run.
        plan: What its steps are made of.
        placement: Which workers live here.
        seed: The run's seed.

    """

    run: Callable[[], Run | None]
    plan: Plan
    placement: Placement
    seed: int

    @property
    def per_step(self) -> float:
        """How many workers compute at a step on average."""
        workers = self.placement.workers
        schedule = schedule_of(self.plan.arrivals, workers, self.plan.attackers.workers, self.seed)
        return schedule.per_step(workers)

    def turns(self) -> dict[int, int]:
        """Return the local workers that compute next, with the turns that each has taken."""
        run = self.run()
        assert run is not None
        aggregation = run.aggregation(0)
        round, memory = aggregation.round, aggregation.memory
        assert isinstance(round, Arriving)
        computing = round.computing(memory.step)
        return {worker: round.taken(memory, worker) for worker in self.placement.local if worker in computing}


class ArrivingLoaders(WorkerLoaders):
    """Yields :class:`WorkerBatches` with ``None`` for who does not compute.

    What a worker gets is a function of the seed and of the turns it has taken, which are saved: nothing is loaded to skip it.

    Args:
        loaders: The loaders, in the order of the workers, with endless samplers.
        batches: Batches per epoch.
        pace: Who computes next.

    """

    def __init__(self, loaders: Sequence["PacedLoader"], *, batches: int, pace: Pace) -> None:
        super().__init__(loaders, batches=batches)
        self._pace = pace

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: orders follow from turns."""

    def __iter__(self) -> Iterator[WorkerBatches]:
        """Yield the batches of those that compute."""
        streams = self.loaders[0].streams
        workers = dict(zip(self._pace.placement.local, self.loaders, strict=True))
        iterators: dict[int, Iterator[Callable[..., Any]]] = {}
        for _ in range(self._batches):
            turns = self._pace.turns()
            for worker in turns.keys() - iterators.keys():
                iterators[worker] = workers[worker].fetches_from(turns[worker])  # type: ignore[attr-defined]
            with streams.together() as enter:
                batches = [next(iterators[one])(enter) if one in turns else None for one in workers]
            yield WorkerBatches(batches)


class PacedLoader(KeyedLoader):
    """A keyed loader that goes on after a number of batches."""

    def fetches_from(self, turn: int) -> Iterator[Callable[[Callable[..., None]], Any]]:
        """Yield one function per batch from there on, as :meth:`fetches` does; draws are keyed by the turn."""
        loader: Any = self._loader
        loader.sampler.go_to(turn * (loader.batch_size or 1))
        loader.generator = None
        iterator: Iterator[Any] | None = None

        def fetch(enter: Callable[..., None], count: int) -> Any:
            nonlocal iterator
            if iterator is None:
                enter(self._seed, "loader", "turn", turn, self._worker)
                iterator = iter(loader)
            enter(self._seed, "fetch", "turn", count, self._worker)
            return next(iterator)

        return ((lambda enter, count=count: fetch(enter, count)) for count in range(turn, 2**62))


def paced(
    loader: object, partition: Partition, *, workers: int, per_step: float, seed: int
) -> tuple[Callable[[int], DataLoader], int]:
    """Return what makes the endless loader of a logical worker from the user's loader, and the batches of an epoch.

    Raises:
        ValueError: If the loader's order is the user's own, so that it cannot be split without changing it; or if a shard is empty.

    """
    whole = splittable(loader, partition, workers, because=STALE)
    refuse_small_dataset(whole.dataset, workers)
    shuffles = bool(getattr(whole.sampler, "shuffle", False))
    samplers, samples = partition.endless(whole.dataset, workers=workers, shuffle=shuffles, seed=seed)  # type: ignore[arg-type]
    steps = samples / ((whole.batch_size or 1) * per_step)

    def make(worker: int) -> DataLoader:
        sampler: EndlessSampler = samplers[worker]
        return with_sampler(whole, sampler)

    return make, max(1, floor(steps + 1e-9) if whole.drop_last else ceil(steps - 1e-9))
