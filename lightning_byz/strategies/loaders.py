"""Loaders whose draws are keyed: what a worker fetches does not depend on where, or beside whom, it runs."""

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from functools import partial
from typing import Any

from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import BatchSampler, DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from lightning_byz.data.partition import IID, Partition
from lightning_byz.data.shard_sampler import ShardSampler
from lightning_byz.random import Streams
from lightning_byz.strategies.inside_lightning import with_sampler


class RunSeed(int):
    """The run's seed, recognizable: a sampler that carries it was made for this run, not by the user."""


class WorkerBatches(list):
    """One batch per logical worker of this rank, in the order of the workers."""


class KeyedLoader:
    """A loader that fetches each batch with the random streams keyed by (seed, epoch, pass, batch, worker).

    Everything else is the loader's own: attributes, length, sampler. Loader processes derive their seeds from the key of the iterator.

    Args:
        loader: The loader to fetch from.
        worker: The logical worker it serves.
        streams: The global random streams.
        seed: The run's seed.
        epoch: Returns the current epoch.
        own: Whether nobody else's loader goes through these data.

    """

    def __init__(
        self,
        loader: Iterable,
        *,
        worker: int,
        streams: Streams,
        seed: int,
        epoch: Callable[[], int],
        own: bool = False,
    ) -> None:
        self._loader = loader
        self._worker = worker
        self.streams = streams
        self._seed = seed
        self._epoch = epoch
        self._own = own
        self._passes = (-1, 0)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_loader" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __len__(self) -> int:
        """Return the number of batches of the loader."""
        return len(self._loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        """Yield the loader's batches; nothing is drawn before the first one is asked for."""
        fetches = self.fetches()
        while True:
            with self.streams.together() as enter:
                try:
                    item = next(fetches)(enter)
                except StopIteration:
                    return
            yield item

    def fetches(self) -> Iterator[Callable[[Callable[..., None]], Any]]:
        """Yield one function per batch, which fetches it with streams that it enters by what it is given; the last raises StopIteration."""
        epoch = self._epoch()
        passes = self._passes[1] + 1 if self._passes[0] == epoch else 0
        self._passes = (epoch, passes)
        own_draws = self._own or _shuffles_from_its_own_seed(self._loader)
        if carries_run_seed(self._loader):
            self._loader.generator = None  # type: ignore[attr-defined] - loader processes take their seeds from the key, not from who else drew
        iterator: Iterator[Any] | None = None

        def fetch(enter: Callable[..., None], batch: int) -> Any:
            nonlocal iterator
            if iterator is None:
                enter(self._seed, "loader", epoch, passes, *((self._worker,) if own_draws else ()))
                iterator = iter(self._loader)
            # A user's sampler draws its order from the global stream at the first batch: alike on all ranks, as under DDP.
            enter(self._seed, "fetch", epoch, passes, *((batch, self._worker) if own_draws or batch else (batch,)))
            return next(iterator)

        return (partial(fetch, batch=batch) for batch in range(2**62))


class WorkerLoaders:
    """One keyed loader per logical worker of this rank; yields :class:`WorkerBatches`.

    Args:
        loaders: The loaders, in the order of the workers.
        batches: Batches per epoch, the same on every rank: as many as the worker with the shortest shard has.

    """

    def __init__(self, loaders: Sequence[KeyedLoader], *, batches: int) -> None:
        self.loaders = loaders
        self._batches = batches

    @property
    def dataset(self) -> Any:
        """The dataset that the workers share."""
        return self.loaders[0].dataset

    @property
    def sampler(self) -> "WorkerLoaders":
        """This object: Lightning tells a loader's sampler the epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Forward the epoch to each worker's sampler."""
        for loader in self.loaders:
            set_epoch = getattr(loader.sampler, "set_epoch", None)
            if callable(set_epoch):
                set_epoch(epoch)

    def __len__(self) -> int:
        """Return the number of batches of each worker."""
        return self._batches

    def __iter__(self) -> Iterator[WorkerBatches]:
        """Yield one batch per worker at a time."""
        fetches, streams = [loader.fetches() for loader in self.loaders], self.loaders[0].streams
        for _ in range(self._batches):
            with streams.together() as enter:
                try:
                    batches = [next(fetch)(enter) for fetch in fetches]
                except StopIteration:
                    return
            yield WorkerBatches(batches)


def split_loader(
    loader: object, partition: Partition, *, workers: int, seed: int, because: tuple[str, str] | None = None
) -> tuple[Callable[[int], DataLoader], int]:
    """Return what makes the loader of a logical worker from the user's loader, as Lightning handed it over, and the shortest one's length.

    Raises:
        ValueError: If the loader's order is the user's own, so that it cannot be split without changing it; or if a shard is empty.

    """
    whole = splittable(loader, partition, workers, because=because)
    dataset: Any = whole.dataset
    refuse_small_dataset(dataset, workers)
    samplers = partition.samplers(
        dataset,
        workers=workers,
        shuffle=bool(getattr(whole.sampler, "shuffle", False)),
        seed=seed,
        batch_size=whole.batch_size or 1,
        drop_last=whole.drop_last,
    )

    def make(worker: int) -> DataLoader:
        return with_sampler(whole, samplers[worker])

    lengths = [len(make(worker)) for worker in range(workers)]
    _refuse_empty_shards(lengths, whole)
    return make, min(lengths)


def splittable(
    loader: object, partition: Partition, workers: int, *, because: tuple[str, str] | None = None
) -> DataLoader:
    """Return the loader, or refuse it if splitting would change what the user asked for; ``because`` says why that is needed, and what helps."""
    several = f"With several logical workers per rank ({workers} in all)"
    why = f"{several if type(partition) is IID else f'With partition={type(partition).__name__}(...)'} each worker needs a shard of its own"
    whole = "give split_batches=True or run one worker per rank"
    instead = whole if type(partition) is IID else "leave partition out, with one worker per rank or split_batches=True"
    if because is not None:
        why, instead = because
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            f"{why}, and {type(loader).__name__} over iterable data has none: {instead}, or give a map-style dataset."
        )
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        raise ValueError(
            f"{why}, and the batch sampler {type(loader.batch_sampler).__name__} would be lost: {instead}."
        )
    if isinstance(loader.sampler, DistributedSamplerWrapper) or not carries_run_seed(loader):
        inner = getattr(getattr(loader.sampler, "dataset", None), "_sampler", loader.sampler)
        raise ValueError(
            f"{why}, and the loader's own sampler {type(inner).__name__} would be lost: {instead}, or leave the sampler to the"
            " loader's shuffle= and keep Trainer(use_distributed_sampler=True)."
        )
    return loader


def carries_run_seed(loader: object) -> bool:
    """Whether the loader's sampler was made for this run, by Lightning or by a partition, rather than by the user."""
    return isinstance(getattr(getattr(loader, "sampler", None), "seed", None), RunSeed)


def shard_size(loader: object) -> int | None:
    """Return how many samples are in the shard that a loader goes through; ``None`` where nothing tells.

    Example:
        >>> shard_size(DataLoader(range(5), batch_size=2)), shard_size([1, 2, 3])
        (5, None)

    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    if isinstance(loader.sampler, ShardSampler):
        return len(loader.sampler.shard)
    batches = loader.batch_sampler
    inner = batches.sampler if isinstance(batches, BatchSampler) else None
    sampler = loader.sampler if batches is None else inner
    return len(sampler) if isinstance(sampler, Sized) else None


def refuse_small_dataset(dataset: object, workers: int) -> None:
    """Refuse fewer samples than workers: some shard would hold copies only."""
    samples = len(dataset) if hasattr(dataset, "__len__") else workers  # type: ignore[arg-type]
    if samples < workers:
        empty = list(range(samples, workers))
        raise ValueError(
            f"{samples} training samples for {workers} workers leave workers {empty} with an empty shard: give more data or fewer workers."
        )


def _refuse_empty_shards(lengths: Sequence[int], loader: DataLoader) -> None:
    empty = [worker for worker, length in enumerate(lengths) if length == 0]
    if empty:
        raise ValueError(
            f"Workers {empty} have an empty shard: {len(loader.dataset)} samples over {len(lengths)} workers with"  # type: ignore[arg-type]
            f" batch_size={loader.batch_size} and drop_last={loader.drop_last} leave no batch. Give more data, fewer workers or a smaller batch."
        )


def _shuffles_from_its_own_seed(loader: object) -> bool:
    """Whether the loader's order comes from a seeded sampler rather than from the global stream."""
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, ShardSampler):
        return True
    return isinstance(sampler, DistributedSampler) and not isinstance(sampler, DistributedSamplerWrapper)
