"""The user's loader, taken apart for workers that go at their own pace; the server's Trainer sees updates instead of batches."""

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from lightning_byz.strategies.arriving_loaders import paced
from lightning_byz.strategies.training_data import TrainingData


class Update:
    """What hooks and callbacks of the serving process get instead of a batch.

    Args:
        index: The number of the update in its epoch.

    """

    def __init__(self, index: int) -> None:
        self.index = index


class Updates:
    """As many updates as an epoch has.

    Args:
        count: Their number.
        dataset: The workers' data.

    """

    def __init__(self, count: int, dataset: Any) -> None:
        self.dataset = dataset
        self._count = count

    def __len__(self) -> int:
        """Return their number."""
        return self._count

    def __iter__(self) -> Iterator[Update]:
        """Yield them."""
        return map(Update, range(self._count))


class ServedData(TrainingData):
    """Makes one endless loader per worker of the user's, and an epoch of updates."""

    every: int = 1
    """Arrivals per update."""
    make: Callable[[int], DataLoader] | None = None
    """Makes the endless loader of a worker, once the user's is known."""

    def process(self, loader: Any) -> Any:
        """Return an epoch of updates in place of a training loader: of as many arrivals as all shards have batches."""
        if not self._setting_up:
            return loader
        if self.make is not None:
            raise ValueError(
                "AsyncRobustStrategy takes one training loader, once: the workers go through its data to the end of the run. Give one DataLoader, and"
                " leave reload_dataloaders_every_n_epochs out."
            )
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            raise ValueError(
                f"Each worker of AsyncRobustStrategy goes through a shard of its own, and {type(loader).__name__} over iterable data has none: give a"
                " DataLoader over a map-style dataset."
            )
        per_step, workers = float(self.every), self._placement.workers
        self.make, updates = paced(loader, self._partition, workers=workers, per_step=per_step, seed=self._seed)
        return Updates(updates, loader.dataset)
