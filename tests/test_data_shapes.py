"""LabelFlip and every partition, whatever holds the training data: a module's own loader, a DataModule, dicts and lists of loaders."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, TensorDataset

from lightning_byz.aggregators import Mean
from lightning_byz.attacks import LabelFlip
from lightning_byz.data import IID, Dirichlet, GammaSimilarity, Sizes, SortedShards
from lightning_byz.strategies import RobustStrategy
from tests.scenarios import Classifier, Options

PARTITIONS = [IID(), SortedShards(), Dirichlet(0.3), Sizes([1, 2, 3, 2]), GammaSimilarity(0.5)]
DIGITS = TensorDataset(torch.arange(64), torch.arange(64) % 4)
OTHERS = TensorDataset(torch.arange(64, 96), torch.arange(32) % 4)


def loader(data=DIGITS, **arguments) -> DataLoader:
    return DataLoader(data, batch_size=4, **arguments)


def named(items: list) -> dict:
    numbers, labels = torch.utils.data.default_collate(items)
    return {"numbers": numbers, "labels": labels}


def pairs(batch) -> list:
    """Return all (numbers, labels) of a batch, however nested."""
    if isinstance(batch, dict):
        inside = [batch["numbers"], batch["labels"]] if "labels" in batch else None
        return [inside] if inside else [pair for part in batch.values() if part for pair in pairs(part)]
    if isinstance(batch[0], torch.Tensor):
        return [batch]
    return [pair for part in batch if part is not None for pair in pairs(part)]


class Writes(Classifier):
    """Writes down the samples that each worker's step gets to see, with their labels."""

    def training_step(self, batch, batch_idx):
        held = pairs(batch)
        seen = vars(self).setdefault("seen", {}).setdefault(self.trainer.strategy.worker, {})
        seen |= {
            int(number): int(label) for numbers, labels in held for number, label in zip(numbers, labels, strict=True)
        }
        numbers, labels = (torch.cat(part) for part in zip(*held, strict=True))
        return super().training_step((torch.ones(len(numbers), 8) * numbers[:, None] / 64, labels % 2), batch_idx)

    val_dataloader = pl.LightningModule.val_dataloader


MAKE = {
    "one": lambda: loader(shuffle=True),
    "dict": lambda: {"first": loader(shuffle=True), "second": loader(OTHERS)},
    "list of dicts": lambda: [loader(collate_fn=named), loader(OTHERS, collate_fn=named)],
    "nested": lambda: {"a": [loader(collate_fn=named), loader(OTHERS, collate_fn=named)], "b": loader()},
    "min_size": lambda: CombinedLoader({"first": loader(), "second": loader(OTHERS)}, "min_size"),
    "max_size": lambda: CombinedLoader({"first": loader(), "second": loader(OTHERS)}, "max_size"),
}


class Data(pl.LightningDataModule):
    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def train_dataloader(self):
        return MAKE[self.make]()


def seen_by(make: str, strategy: dict, devices: int, datamodule: bool) -> dict[int, dict[int, int]]:
    """Fit for two epochs from given loaders or a DataModule's; return what the workers of this rank saw."""
    pl.seed_everything(3, verbose=False)
    module = Writes(Options())
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(accelerator="cpu", devices=devices, max_epochs=2, strategy=RobustStrategy(**strategy), **quiet)
    trainer.fit(module, **({"datamodule": Data(make)} if datamodule else {"train_dataloaders": MAKE[make]()}))
    return module.seen


def seen(ranks, make: str, world: int, *, datamodule: bool = False, **strategy) -> dict[int, dict[int, int]]:
    strategy = {"workers": 4, "f": 0, "aggregator": Mean(), **strategy}
    parts = ranks(world).run(seen_by, make, strategy, world, datamodule)
    return {worker: own for part in parts for worker, own in part.items()}


@pytest.mark.parametrize("datamodule", [False, True], ids=["module", "datamodule"])
@pytest.mark.parametrize("make", MAKE)
def test_label_flip_flips_the_attackers_labels_only(ranks, make, datamodule):
    attacked = {"attackers": [2], "attack": LabelFlip(classes=4), "f": 1}
    for worker, own in seen(ranks, make, 2, datamodule=datamodule, partition=SortedShards(), **attacked).items():
        assert own
        assert own == {number: 3 - number % 4 if worker == 2 else number % 4 for number in own}


@pytest.mark.parametrize("partition", PARTITIONS, ids=lambda partition: type(partition).__name__)
@pytest.mark.parametrize("make", MAKE)
def test_each_loader_is_dealt_by_the_partition(ranks, make, partition):
    alone = seen(ranks, make, 1, partition=partition)
    assert seen(ranks, make, 2, datamodule=True, partition=partition) == alone
    shards = [partition.shards(data, workers=4, seed=3) for data in ([DIGITS] if make == "one" else [DIGITS, OTHERS])]
    for worker, own in alone.items():
        if type(partition) is IID:
            continue
        mine = {int(index) + 64 * place for place, shard in enumerate(shards) for index in shard[worker]}
        assert set(own) <= mine, "nothing of others' shards"
