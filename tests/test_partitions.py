"""Partitions: who gets which samples, in which order, and that layouts and resumes agree on it."""

import re
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split

from lightning_byz.aggregators import CoordinateMedian, GeometricMedian, Mean
from lightning_byz.data import IID, Dirichlet, GammaSimilarity, Partition, Sizes, SortedShards
from lightning_byz.data.labels import classes_of
from lightning_byz.estimators import WorkerMomentum
from lightning_byz.random import Streams
from lightning_byz.strategies.loaders import KeyedLoader, RunSeed, split_loader
from tests.scenarios import Classifier, Fit, Options, Points, attempt, fit, same_bits
from tests.test_lightning_life import TwoLoaders
from tests.test_refusals import OverStream, OwnBatchSampler, OwnDistributedSampler, OwnSampler
from tests.test_weights import weights_of

TEN = TensorDataset(torch.arange(1000), torch.arange(1000) % 10)


def shards_of(partition: Partition, dataset=TEN, *, workers: int = 8, seed: int = 0) -> list[list[int]]:
    return [
        sampler.shard.tolist() for sampler in partition.samplers(dataset, workers=workers, shuffle=False, seed=seed)
    ]


def classes_held(shard: list[int]) -> Counter:
    return Counter(sample % 10 for sample in shard)


# ---------------------------------------------------------------------- who gets what


@settings(max_examples=60)
@given(
    st.sampled_from(
        [
            SortedShards(),
            SortedShards(3),
            Dirichlet(0.01),
            Dirichlet(1),
            Dirichlet(1000, min_samples=5),
            GammaSimilarity(0.3),
            GammaSimilarity(1),
            "sizes",
        ]
    ),
    st.integers(1, 12),
    st.integers(0, 2**40),
)
def test_every_sample_has_one_worker_and_every_worker_a_sample(partition, workers, seed):
    partition = Sizes([1 + worker % 3 for worker in range(workers)]) if partition == "sizes" else partition
    shards = shards_of(partition, workers=workers, seed=seed)
    assert sorted(sample for shard in shards for sample in shard) == list(range(1000))
    assert min(map(len, shards)) >= getattr(partition, "min_samples", 1)
    assert shards == shards_of(partition, workers=workers, seed=seed)
    if workers > 1:
        others = [shards_of(partition, workers=workers, seed=seed + more) for more in range(1, 9)]
        assert any(other != shards for other in others), "keyed by the seed"


@pytest.mark.parametrize(("alpha", "whole"), [(1e-8, 900), (0.01, 600)])
def test_a_tiny_alpha_gives_classes_whole_and_nobody_nothing(alpha, whole):
    shards = shards_of(Dirichlet(alpha, min_samples=3), workers=30)
    assert min(map(len, shards)) == 3
    largest_parts = [max(classes_held(shard)[label] for shard in shards) for label in range(10)]
    assert sum(largest_parts) > whole


def test_alpha_is_the_concentration():
    """The parts of a class are Dirichlet: mean 1 / n, variance (1 / n) (1 - 1 / n) / (n alpha + 1)."""
    for alpha in (0.1, 1.0, 10.0):
        parts = [
            classes_held(shard)[label] / 100
            for seed in range(60)
            for shard in shards_of(Dirichlet(alpha), workers=4, seed=seed)
            for label in range(10)
        ]
        assert np.mean(parts) == pytest.approx(1 / 4, abs=1e-3)
        assert np.var(parts) == pytest.approx(3 / 16 / (4 * alpha + 1), rel=0.1)


def test_sorted_shards_hold_runs_of_labels():
    shards = shards_of(SortedShards(), workers=10)
    assert [len(classes_held(shard)) for shard in shards] == [1] * 10
    assert [shard for shard in shards if shard[0] % 10 == 4] == [list(range(4, 1000, 10))]
    two = shards_of(SortedShards(2), workers=10)
    assert {len(shard) for shard in two} == {100}
    assert max(len(classes_held(shard)) for shard in two) == 2
    assert (
        max(map(len, shards_of(SortedShards(), workers=7))) - min(map(len, shards_of(SortedShards(), workers=7))) == 1
    )


def test_gamma_is_the_part_that_is_alike():
    """Of a class that is one worker's block, the worker has the block and its part of what was drawn; the others have theirs."""
    for gamma in (0.0, 0.2, 0.7, 1.0):
        shards = shards_of(GammaSimilarity(gamma), workers=10)
        assert {len(shard) for shard in shards} == {100}
        own = np.mean([classes_held(shard)[worker] for worker, shard in enumerate(shards)])
        assert own == pytest.approx(100 * (1 - gamma) + 10 * gamma, abs=4)
    assert shards_of(GammaSimilarity(0), workers=10) == [list(range(worker, 1000, 10)) for worker in range(10)]


def test_what_is_alike_is_drawn_from_all_samples():
    """Not the head of the dataset, which users often have sorted."""
    in_order = TensorDataset(torch.arange(1000), torch.arange(1000) // 100)
    shards = shards_of(GammaSimilarity(0.5), in_order, workers=10)
    drawn = [len({sample // 100 for sample in shard[:50]}) for shard in shards]
    assert min(drawn) >= 8, "nearly all of ten classes"


@pytest.mark.parametrize("gamma", [0, 0.31, 0.5, 1])
def test_sizes_of_gamma_similarity_differ_by_one_at_most(gamma):
    for workers in (3, 7, 16, 999, 1000):
        sizes = {len(shard) for shard in shards_of(GammaSimilarity(gamma), workers=workers)}
        assert max(sizes) - min(sizes) <= 1


def test_sizes_are_counts_or_shares():
    counts = [500, 300, 150, 50]
    for sizes in (counts, [10, 6, 3, 1], [0.5, 0.3, 0.15, 0.05]):
        shards = shards_of(Sizes(sizes), workers=4)
        assert [len(shard) for shard in shards] == counts
        assert len(classes_held(shards[0])) == 10
    assert sum(map(len, shards_of(Sizes([1 / 3, 1 / 7, 2]), workers=3))) == 1000


def test_iid_indices_are_the_distributed_samplers():
    expected = [list(sampler) for sampler in IID().samplers(range(10), workers=3, shuffle=False, seed=0)]
    assert [list(IID().indices(range(10), workers=3, worker=worker, seed=0)) for worker in range(3)] == expected


# ---------------------------------------------------------------------- where labels are found


class WithColumns:
    column_names = ("text", "label")

    def __len__(self):
        return 3

    def __getitem__(self, key):
        return {"label": ["b", "a", "b"]}[key]


class WithAttribute(Dataset):
    def __init__(self, **values):
        vars(self).update(values)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise AssertionError("samples are not read")


FOUND = {
    "TensorDataset": TensorDataset(torch.zeros(3, 2), torch.tensor([7, 3, 7])),
    "a column of labels": TensorDataset(torch.zeros(3, 2), torch.tensor([[7], [3], [7]])),
    "pairs": [(0, "b"), (1, "a"), (2, "b")],
    "pairs with tensors": [(0, torch.tensor(5)), (1, torch.tensor(2)), (2, torch.tensor(5))],
    "a table": WithColumns(),
    "targets": WithAttribute(targets=[5, 2, 5]),
    "labels": WithAttribute(labels=np.array(["b", "a", "b"])),
    "y": WithAttribute(y=torch.tensor([1.0, 0.0, 1.0])),
    "a part": Subset(WithAttribute(targets=[5, 2, 9]), [0, 1, 0]),
    "a part of a part": Subset(Subset(WithAttribute(targets=[2, 5, 9]), [1, 0]), torch.tensor([0, 1, 0])),
    "a sum": ConcatDataset([WithAttribute(targets=[5, 2, 5]), WithAttribute(y=[5, 2, 5])]),
}


@pytest.mark.parametrize("name", FOUND)
def test_labels_are_found(name):
    classes = classes_of(FOUND[name])
    assert classes.tolist() == [1, 0, 1] * (2 if name == "a sum" else 1)


def test_labels_are_found_in_a_random_split():
    part, rest = random_split(TEN, [300, 700], generator=torch.Generator().manual_seed(0))
    assert classes_of(part).tolist() == [index % 10 for index in part.indices]
    assert classes_of(rest).shape == (700,)


@pytest.mark.parametrize(
    ("dataset", "labels", "sentence"),
    [
        (WithAttribute(), None, "WithAttribute has them in none of the places.*give labels="),
        ([1, 2, 3], None, "list has them in none"),
        (ConcatDataset([TEN, WithAttribute()]), None, "ConcatDataset has them in none"),
        (
            WithAttribute(targets=[1, 2]),
            None,
            r"one label for each of the 3 samples, and those of WithAttribute are of shape \(2,\)",
        ),
        (TensorDataset(torch.zeros(3, 2), torch.zeros(3, 4)), None, r"of shape \(3, 4\).*give labels="),
        (WithAttribute(), lambda dataset: [0] * 7, r"of shape \(7,\)"),
    ],
)
def test_labels_that_are_none(dataset, labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        SortedShards(labels=labels).shards(dataset, workers=2, seed=0)


def test_labels_can_be_given():
    shards = SortedShards(labels=lambda dataset: [sample % 2 for sample in dataset]).shards(range(6), workers=2, seed=0)
    assert sorted(shard.tolist() for shard in shards) == [[0, 2, 4], [1, 3, 5]]


# ---------------------------------------------------------------------- a partition of one's own, and refusals


class Evens(Partition):
    """Worker 0 has the even samples, worker 1 the odd ones below 9; nobody has 9."""

    def indices(self, dataset, *, workers, worker, seed):
        return range(worker, 9, 2)


@dataclass(frozen=True)
class Gives(Partition):
    what: object

    def indices(self, dataset, *, workers, worker, seed):
        return self.what if worker == 1 else [0]


def test_a_partition_of_ones_own_overrides_one_method():
    samplers = Evens().samplers(range(10), workers=2, shuffle=False, seed=0, batch_size=2)
    assert [list(sampler) for sampler in samplers] == [[0, 2, 4, 6, 8, 0], [1, 3, 5, 7, 1, 3]]


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ([], r"Gives leaves workers \[1\] with an empty shard"),
        ([3, 10], "Gives gives worker 1 the sample 10, and the dataset has samples 0 to 9"),
        ([-1], "the sample -1"),
        (np.array([0.5]), "a shard of shape .* and torch.float64: return a list of whole numbers"),
        (torch.ones(10, dtype=torch.bool), "torch.bool"),
        (torch.tensor([[1, 2]]), r"shape \(1, 2\)"),
    ],
)
def test_shards_that_are_none(what, sentence):
    with pytest.raises(ValueError, match=sentence):
        Gives(what).samplers(range(10), workers=2, shuffle=False, seed=0)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Dirichlet(0.0), "alpha must be a finite number above 0, not 0.0"),
        (lambda: Dirichlet(float("nan")), "alpha must be"),
        (lambda: Dirichlet(1.0, min_samples=0), "min_samples must be a whole number >= 1, not 0"),
        (lambda: GammaSimilarity(1.5), "gamma must be a number from 0 to 1, not 1.5"),
        (lambda: GammaSimilarity(float("nan")), "gamma must be a number from 0 to 1, not nan"),
        (
            lambda: shards_of(GammaSimilarity(0.5), workers=1001),
            "cannot give 1001 workers a sample each: there are 1000",
        ),
        (lambda: SortedShards(0), "shards_per_worker must be a whole number >= 1, not 0"),
        (lambda: Sizes([1, 0]), r"sizes must be finite numbers above 0, one per worker, not \[1, 0\]"),
        (lambda: shards_of(Sizes([1, 2, 3]), workers=2), "3 numbers for 2 workers"),
        (lambda: shards_of(Sizes([1, 1e6]), workers=2), r"Sizes leaves workers \[0\] with an empty shard"),
        (lambda: shards_of(SortedShards(200)), "cuts 1600 runs for 8 workers, and there are 1000 samples"),
        (lambda: shards_of(Dirichlet(1.0, min_samples=126)), "cannot give 8 workers 126 samples each: there are 1000"),
    ],
)
def test_partitions_that_cannot_be(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


FOUR = {"workers": 4, "f": 1, "aggregator": GeometricMedian(), "partition": Dirichlet(0.3)}
REFUSED = {
    "iterable data": (OverStream, "With partition=Dirichlet.* over iterable data has none: leave partition out"),
    "a user's sampler": (
        OwnSampler,
        "own sampler WeightedRandomSampler would be lost: leave partition out, with one worker per rank",
    ),
    "a user's distributed sampler": (OwnDistributedSampler, "own sampler DistributedSampler would be lost"),
    "a user's batch sampler": (OwnBatchSampler, "batch sampler OwnBatches would be lost"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_loaders_that_cannot_be_split_are_refused_with_one_worker_per_rank_too(ranks, name):
    module, sentence = REFUSED[name]
    for answer in ranks(2).run(attempt, Fit(strategy={**FOUR, "workers": 2, "f": 0}, module=module), 2):
        assert answer[0] == "ValueError"
        assert re.search(sentence, answer[1]), answer


# ---------------------------------------------------------------------- order, lengths, passes


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_worker_goes_through_its_shard_pass_by_pass(shuffle):
    (sampler, other) = Sizes([3, 7]).samplers(range(10), workers=2, shuffle=shuffle, seed=5, batch_size=4)
    assert len(sampler) == len(other) == 8
    seen = []
    for epoch in range(6):
        sampler.set_epoch(epoch)
        seen += list(sampler)
    passes = [seen[start : start + 3] for start in range(0, 48, 3)]
    assert all(sorted(one) == sorted(sampler.shard.tolist()) for one in passes)
    assert len({tuple(one) for one in passes}) == (6 if shuffle else 1), "all orders of three come up"
    sampler.set_epoch(4)
    assert list(sampler) == seen[32:40], "where it stands is a function of the epoch"


def loader(samples: int = 22, **arguments) -> DataLoader:
    dataset = TensorDataset(torch.arange(samples), torch.arange(samples) % 3)
    sampler = torch.utils.data.DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=False, seed=RunSeed(3))
    return DataLoader(dataset, sampler=sampler, **arguments)


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [({"batch_size": 4}, 2), ({"batch_size": 4, "drop_last": True}, 1), ({"batch_size": None}, 8)],
)
def test_epochs_have_full_batches(arguments, steps):
    make, batches = split_loader(loader(**arguments), Sizes([1, 5, 16]), workers=3, seed=3)
    assert batches == steps
    for worker in range(3):
        fetched = list(make(worker))
        assert len(fetched) == len(make(worker)) == steps
        assert {batch[0].numel() for batch in fetched} == {arguments["batch_size"] or 1}


def test_workers_draw_numbers_of_their_own_while_they_fetch():
    make, _ = split_loader(
        loader(batch_size=2, collate_fn=lambda items: torch.rand(3)), Sizes([1, 5, 16]), workers=3, seed=3
    )
    keyed = [
        KeyedLoader(make(worker), worker=worker, streams=Streams(torch.device("cpu")), seed=3, epoch=lambda: 0)
        for worker in range(3)
    ]
    draws = [tuple(batch.tolist()) for one in keyed for batch in one]
    assert len(set(draws)) == len(draws) == 3 * 4


def test_an_epoch_without_a_batch_is_refused():
    with pytest.raises(
        ValueError,
        match=r"Workers \[0, 1, 2\] have an empty shard: 22 samples over 3 workers with batch_size=8 and drop_last=True",
    ):
        split_loader(loader(batch_size=8, drop_last=True), Sizes([1, 5, 16]), workers=3, seed=3)


# ---------------------------------------------------------------------- through the trainer


OPTIONS = Options(dropout=0.2, augment=True, batch_norm=True, samples=90)


@pytest.mark.parametrize(
    "partition",
    [SortedShards(2), Dirichlet(0.3), Sizes([1, 2, 3, 6]), GammaSimilarity(0.3)],
    ids=lambda partition: type(partition).__name__,
)
def test_any_layout_and_resume(ranks, tmp_path, partition):
    strategy = {**FOUR, "partition": partition, "estimator": WorkerMomentum(0.9)}
    path = str(tmp_path / "third.ckpt")
    whole = Fit(OPTIONS, strategy, {"max_epochs": 3})
    alone = ranks(1).run(fit, whole, 1)[0]
    ranks(2).run(fit, replace(whole, trainer={"max_epochs": 1}, save=path), 2)
    for world, job in [
        (2, whole),
        (4, whole),
        (1, replace(whole, checkpoint=path, seed=99)),
        (4, replace(whole, checkpoint=path, seed=99)),
    ]:
        for result in ranks(world).run(fit, job, world):
            assert not same_bits(result["parameters"], alone["parameters"])
            assert result["global_step"] == alone["global_step"] == 3 * 6
    dealt_evenly = ranks(1).run(fit, replace(whole, strategy={**strategy, "partition": IID()}), 1)[0]
    assert same_bits(dealt_evenly["parameters"], alone["parameters"])


@pytest.mark.parametrize(
    ("trainer", "steps"),
    [
        ({"limit_train_batches": 2}, 4),
        ({"limit_train_batches": 0.5}, 6),
        ({"max_steps": 5}, 5),
        ({"fast_dev_run": 3}, 3),
    ],
)
def test_trainer_arguments(ranks, trainer, steps):
    job = Fit(OPTIONS, FOUR, {"max_epochs": 2, **trainer})
    results = [result for world in (1, 4) for result in ranks(world).run(fit, job, world)]
    for result in results:
        assert result["global_step"] == steps
        assert not same_bits(result["parameters"], results[0]["parameters"])


def test_several_loaders(ranks):
    job = Fit(Options(), {**FOUR, "partition": SortedShards()}, module=TwoLoaders)
    alone = ranks(1).run(fit, job, 1)[0]
    for result in ranks(2).run(fit, job, 2):
        assert not same_bits(result["parameters"], alone["parameters"])


def test_weights_are_the_sizes_of_shards(ranks):
    strategy = {**FOUR, "aggregator": Mean(), "partition": Sizes([9, 36, 18, 27]), "weights": "samples", "f": 1}
    for world in (1, 2, 4):
        assert (
            ranks(world).run(weights_of, Fit(Options(samples=90), strategy), world) == [(9.0, 36.0, 18.0, 27.0)] * world
        )
    two = Fit(Options(), {**strategy, "partition": Sizes([1, 1, 1, 3]), "f": 1}, module=TwoLoaders)
    assert ranks(1).run(weights_of, two, 1) == [(16.0 + 5, 16.0 + 6, 16.0 + 5, 48.0 + 16)], "over all loaders"


class SeesLabels(Classifier):
    def training_step(self, batch, batch_idx):
        self.seen = getattr(self, "seen", set()) | set(batch[1].tolist())
        return super().training_step(batch, batch_idx)


def labels_seen(job: Fit, devices: int) -> set:
    seen = []

    class Looks(SeesLabels):
        def on_train_end(self):
            seen.append(self.seen)

    job.module = Looks
    fit(job, devices)
    return seen[0]


def test_a_partition_takes_effect_with_one_worker_per_rank(ranks):
    job = Fit(Options(), {"f": 0, "aggregator": CoordinateMedian(), "partition": SortedShards()})
    points = Points()
    assert int((points.labels == 0).sum()) != 48, "one worker sees both"
    assert sorted(map(len, ranks(2).run(labels_seen, job, 2))) == [1, 2]
    assert ranks(2).run(labels_seen, replace(job, strategy={**job.strategy, "partition": IID()}), 2) == [{0, 1}] * 2
