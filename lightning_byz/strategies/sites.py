"""Loaders of sites: each rank's data are its own, and how much it has is all that others learn of them."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from lightning_byz.data import IID, Partition
from lightning_byz.data.shard_sampler import ShardSampler
from lightning_byz.exchange import Exchange, Placement
from lightning_byz.strategies.inside_lightning import with_sampler
from lightning_byz.strategies.loaders import carries_run_seed, shard_size

KINDS = ("shared", "local")


@dataclass(frozen=True)
class Site:
    """What a rank tells of its training loader: four whole numbers.

    Args:
        samples: How many there are; -1 where nothing tells.
        batch: How many of them are in a batch.
        drops: Whether the loader drops an incomplete batch.
        batches: How many there are in one pass; -1 where nothing tells.

    """

    samples: int
    batch: int
    drops: bool
    batches: int

    @classmethod
    def of(cls, loader: Any) -> "Site":
        """Count a loader."""
        try:
            batches = len(loader)
        except (TypeError, NotImplementedError):
            batches = -1
        size, batch = shard_size(loader), getattr(loader, "batch_size", None)
        unknown = size is None or (batch is None and getattr(loader, "batch_sampler", None) is not None)
        return cls(
            -1 if unknown or size is None else size, batch or 1, bool(getattr(loader, "drop_last", False)), batches
        )


def gathered_sites(own: Site, exchange: Exchange, placement: Placement, device: torch.device) -> list[Site]:
    """Return what each rank tells of its loader. Every rank must call it."""
    table = torch.zeros(placement.ranks, 4, dtype=torch.int64, device=device)
    table[placement.rank] = torch.tensor([own.samples, own.batch, own.drops, own.batches])
    rows = exchange.all_reduce(table.view(-1)).view(-1, 4).tolist()
    return [Site(samples, batch, bool(drops), batches) for samples, batch, drops, batches in rows]


def steps_of(sites: Sequence[Site], *, bounded: bool) -> int | None:
    """Return the batches of an epoch, alike at every site: all samples over the samples of one step, rounded up, or down where all loaders drop.

    Args:
        sites: What they have.
        bounded: Whether something else ends the epoch or the run.

    Returns:
        ``None`` where no site can tell, and something else ends the epoch.

    Raises:
        ValueError: If a site has nothing, or if nothing says how long an epoch is.

    Example:
        >>> steps_of([Site(160, 16, False, 10), Site(480, 16, False, 30)], bounded=False)
        20

    """
    empty = [rank for rank, site in enumerate(sites) if 0 in (site.samples, site.batches)]
    if empty:
        raise ValueError(
            f"data='local': sites {empty} have no training batch. Start without them, or give them data, smaller batches or drop_last=False."
        )
    unknown = [rank for rank, site in enumerate(sites) if site.samples < 0]
    if unknown and not bounded:
        raise ValueError(
            f"data='local': the loaders of sites {unknown} do not tell how many samples they have, being iterable data or batches of a sampler of"
            " their own, so nothing says how long an epoch is: give Trainer(max_steps=...) or Trainer(limit_train_batches=...), a whole number."
        )
    if unknown:
        return None
    steps = sum(site.samples for site in sites) / sum(site.batch for site in sites)
    return max(1, math.floor(steps) if all(site.drops for site in sites) else math.ceil(steps))


def site_loader(loader: Any, *, steps: int | None, worker: int, seed: int, restarts: bool = False) -> Any:
    """Return a site's loader for epochs of ``steps`` batches, whatever it has.

    It goes through its samples over and over, across epochs, newly shuffled each time if it shuffles. An order of the user's own starts anew
    with each epoch, and as often in it as it takes; with ``restarts`` any does.
    """
    if steps is None or restarts or not _is_plain(loader):
        if carries_run_seed(loader):
            loader.generator = None
        return Restarted(loader, steps)
    sampler = loader.sampler
    return with_sampler(
        loader,
        ShardSampler(
            torch.arange(len(loader.dataset)),
            worker=worker,
            length=steps * (loader.batch_size or 1),
            shuffle=bool(getattr(sampler, "shuffle", isinstance(sampler, RandomSampler))),
            seed=seed,
        ),
    )


class Restarted:
    """A loader that starts over until it has yielded as many batches as asked for; all else is the loader's own.

    Args:
        loader: The loader.
        batches: Batches per epoch; ``None`` for no end.

    Example:
        >>> list(Restarted([1, 2, 3], 5))
        [1, 2, 3, 1, 2]

    """

    def __init__(self, loader: Iterable, batches: int | None) -> None:
        self._loader = loader
        self._batches = batches

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_loader" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        if self._batches is None:
            raise TypeError("nothing tells how many batches there are")
        return self._batches

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of one epoch."""
        taken = 0
        while taken != self._batches:
            before = taken
            for batch in self._loader:
                yield batch
                taken += 1
                if taken == self._batches:
                    return
            if taken == before:
                raise ValueError("data='local': the loader of this site has no batch: give it data.")


def check_data(data: object, partition: Partition) -> None:
    """Refuse a word for the data that is none, and a partition of what belongs to sites."""
    if data not in KINDS:
        raise ValueError(f"data={data!r}: give 'shared', or 'local' where each rank's loader has its own site's data.")
    if data == "local" and type(partition) is not IID:
        raise ValueError(
            f"data='local' leaves each site its own data, and partition={type(partition).__name__}(...) deals data out:"
            " leave partition out, or give data='shared'."
        )


def check_sites(data: str, placement: Placement) -> None:
    """Refuse sites that share a rank."""
    if data == "local" and not placement.one_per_rank:
        raise ValueError(
            f"data='local' needs one worker per rank, which is one process per site, and {placement.workers} workers are on"
            f" {placement.ranks} rank{'s' * (placement.ranks > 1)}: leave workers out, or start {placement.workers} processes."
        )


def refuse_unequal(
    own: float, exchange: Exchange, placement: Placement, *, device: torch.device, enough: float
) -> None:
    """Refuse ranks whose epochs have unequal numbers of batches, where the run gets to the end of the shortest. Every rank must call it.

    Args:
        own: Batches of this rank's epoch, as the trainer limits them; infinite where nothing tells.
        exchange: Adds up over ranks.
        placement: The ranks.
        device: Where collectives take place.
        enough: How many batches the run takes at most.

    Raises:
        ValueError: If they are unequal and too few.

    """
    table = torch.zeros(placement.ranks, dtype=torch.int64, device=device)
    table[placement.rank] = -1 if math.isinf(own) else int(own)
    batches = exchange.all_reduce(table).tolist()
    least, most = (choose(range(len(batches)), key=batches.__getitem__) for choose in (min, max))
    if batches[least] == batches[most] or enough <= batches[least]:
        return
    raise ValueError(
        f"The ranks' training loaders have unequal numbers of batches, {batches[least]} on rank {least} and {batches[most]} on rank {most}: one"
        " would wait for the other for ever. Give data='local' if each rank has data of its own, or"
        f" Trainer(limit_train_batches={batches[least]})."
    )


def refuse_half_known(sites: Sequence[Site]) -> None:
    """Refuse loaders of which some tell how many batches they have and some do not.

    Raises:
        ValueError: If there are both.

    """
    unknown = [rank for rank, site in enumerate(sites) if site.batches < 0]
    if 0 < len(unknown) < len(sites):
        raise ValueError(
            f"The training loaders of ranks {unknown} do not tell how many batches they have, and the others do: give all ranks loaders of one kind,"
            " or data='local' if each rank has data of its own."
        )


def _is_plain(loader: Any) -> bool:
    """Whether a loader's order is none of the user's own."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    sampler, batches = loader.sampler, loader.batch_sampler
    if batches is not None and type(batches) is not BatchSampler:
        return False
    if isinstance(sampler, DistributedSamplerWrapper):
        return False
    whole = type(sampler) is RandomSampler and not sampler.replacement and len(sampler) == len(loader.dataset)  # type: ignore[arg-type]
    return carries_run_seed(loader) or type(sampler) is SequentialSampler or (whole and sampler.generator is None)  # type: ignore[union-attr]
