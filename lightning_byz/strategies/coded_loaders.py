"""Loaders of workers that compute on the same parts: one per part of this rank, and a copy of its batch for each worker."""

from collections.abc import Iterator, Mapping, Sequence

from lightning_byz.rounds.earlier import copied
from lightning_byz.strategies.loaders import KeyedLoader, WorkerBatches, WorkerLoaders

CODED = "Under code= each part needs a shard of its own", "leave code out, with an aggregator"
_WHY = "under code= several workers evaluate it, each its own copy: let the loader yield tensors or containers of them"


class CodedLoaders(WorkerLoaders):
    """Yields :class:`WorkerBatches` with one batch per seat, fetched once per part.

    Args:
        loaders: By part, those that workers of this rank compute.
        parts: The part of each seat of this rank, in order.
        batches: Batches per epoch.

    """

    def __init__(self, loaders: Mapping[int, KeyedLoader], parts: Sequence[int], *, batches: int) -> None:
        super().__init__(list(loaders.values()), batches=batches)
        places = {part: place for place, part in enumerate(loaders)}
        self._places = [places[part] for part in parts]

    def __iter__(self) -> Iterator[WorkerBatches]:
        """Yield one batch per seat at a time."""
        for fetched in super().__iter__():
            last = {place: seat for seat, place in enumerate(self._places)}
            yield WorkerBatches(
                fetched[place] if last[place] == seat else copied(fetched[place], why=_WHY)
                for seat, place in enumerate(self._places)
            )
