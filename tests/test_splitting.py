"""Several workers on a rank share the batches of the user's own loader: which parts they get, and what cannot be parted."""

import re
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler

from lightning_byz.aggregators import CoordinateMedian, Mean
from lightning_byz.attacks import LabelFlip
from lightning_byz.data import Dirichlet
from lightning_byz.strategies.splitting import NoPart, split
from tests.scenarios import Classifier, Fit, Options, Points, attempt, fit, same_bits
from tests.test_refusals import OverStream, OwnBatchSampler, OwnSampler, construct

FOUR = {"workers": 4, "f": 1, "aggregator": CoordinateMedian(), "split_batches": True}
Pair = namedtuple("Pair", ["inputs", "labels"])


# ---------------------------------------------------------------------- parts of a batch


@dataclass(frozen=True)
class Sample:
    inputs: Tensor
    rest: list
    made: int = field(default=0, init=False)


class Bag(UserDict):
    pass


NUMBERS = torch.arange(10)
ROWS = torch.arange(30).view(10, 3)
BATCHES = {
    "a tensor": (NUMBERS, lambda part: part),
    "an array": (np.arange(10), lambda part: part),
    "a pair": ((ROWS, NUMBERS), lambda part: part[1]),
    "a list": ([ROWS, NUMBERS], lambda part: part[1]),
    "a named tuple": (Pair(ROWS, NUMBERS), lambda part: part.labels),
    "a dict": ({"x": ROWS, "y": NUMBERS}, lambda part: part["y"]),
    "an ordered dict": (OrderedDict(y=NUMBERS), lambda part: part["y"]),
    "a user's dict": (Bag(x=ROWS, y=NUMBERS), lambda part: part["y"]),
    "a dataclass": (Sample(NUMBERS, [ROWS]), lambda part: part.inputs),
    "nested": (({"x": [ROWS, {"y": (NUMBERS,)}]}, None), lambda part: part[0]["x"][1]["y"][0]),
    "strings": ((NUMBERS, list("0123456789")), lambda part: [int(letter) for letter in part[1]]),
    "a tuple of numbers": ({"x": ROWS, "y": tuple(range(10))}, lambda part: part["y"]),
    "dicts, one per sample": ([ROWS, [{"id": index} for index in range(10)]], lambda part: [d["id"] for d in part[1]]),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(
    ("parts", "sizes"), [(1, [10]), (2, [5, 5]), (3, [4, 3, 3]), (4, [3, 3, 2, 2]), (10, [1] * 10)]
)
def test_parts_are_consecutive_and_as_equal_as_possible(name, parts, sizes):
    batch, read = BATCHES[name]
    made = split(batch, parts)
    assert [len(read(part)) for part in made] == sizes
    assert [int(number) for part in made for number in read(part)] == list(range(10))
    assert {type(part) for part in made} == {type(batch)}


def test_a_batch_is_not_written_to():
    batch = Bag(x=ROWS, y=NUMBERS)
    split(batch, 3)
    assert batch["x"] is ROWS
    assert batch["y"] is NUMBERS


def test_a_small_batch_leaves_the_last_workers_without_a_part():
    made = split((torch.arange(3), list("abc")), 5)
    assert [part[1] for part in made[:3]] == [["a"], ["b"], ["c"]]
    assert [type(part) for part in made[3:]] == [NoPart, NoPart]


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ((NUMBERS, 3), r"batch\[1\] is int 3, of which workers cannot have parts"),
        ({"x": NUMBERS, "name": "digits"}, r"batch\['name'\] is str 'digits'"),
        ({"x": [NUMBERS, torch.tensor(2.0)]}, r"batch\['x'\]\[1\] is a tensor of no dimension, tensor\(2.\)"),
        ((NUMBERS, torch.arange(9)), r"batch\[0\] has 10 samples and batch\[1\] has 9\. Each tensor of a batch"),
        ((NUMBERS, ["a", "b"]), r"batch\[0\] has 10 samples and batch\[1\] has 2"),
        ([torch.zeros(3, 8, 8), torch.zeros(4)], r"batch\[0\] has 3 samples and batch\[1\] has 4"),
        (Sample(NUMBERS, [1, 2]), r"batch.rest has 2"),
        (["a", "b", "c"], "there is no tensor in the batch, a list, to tell how many samples it has"),
        ({"x": NUMBERS, "y": {1, 2}}, r"batch\['y'\] is set \{1, 2\}"),
    ],
)
def test_what_cannot_be_parted_is_named(batch, sentence):
    with pytest.raises(ValueError, match=f"split_batches=True: .*{sentence}"):
        split(batch, 2)


# ---------------------------------------------------------------------- through the trainer


class Numbers(IterableDataset):
    """The numbers from 0, whatever the rank: a stream that knows nothing of ranks is read whole on each, as under DDP."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self):
        return iter(range(self.count))


class Writes(Classifier):
    """Writes down what each worker's step gets to see."""

    def training_step(self, batch, batch_idx):
        seen = vars(self).setdefault("seen", {})
        numbers = batch["a"] + batch["b"] if isinstance(batch, dict) else batch
        seen.setdefault(getattr(self.trainer.strategy, "worker", None), []).append(numbers.tolist())
        return super().training_step((torch.ones(len(numbers), 8) * numbers[:, None], numbers % 2), batch_idx)


class OverNumbers(Writes):
    def train_dataloader(self):
        return DataLoader(Numbers(24), batch_size=8)


class Weighted(Writes):
    def train_dataloader(self):
        weights = torch.tensor([0.0] * 12 + [1.0] * 12)
        return DataLoader(torch.arange(24), batch_size=8, sampler=WeightedRandomSampler(weights, 24))


class Backwards(torch.utils.data.BatchSampler):
    """Batches from the last to the first."""

    def __iter__(self):
        return reversed(list(super().__iter__()))


class InBatches(Writes):
    def train_dataloader(self):
        sampler = torch.utils.data.SequentialSampler(range(24))
        return DataLoader(torch.arange(24), batch_sampler=Backwards(sampler, 8, False))


class Batches:
    """No DataLoader."""

    def __len__(self):
        return 3

    def __iter__(self):
        return iter([torch.arange(0, 8), torch.arange(8, 13), torch.arange(13, 15)])


class Ready(Writes):
    def train_dataloader(self):
        return Batches()


class Combined(Writes):
    def train_dataloader(self):
        stream = DataLoader(Numbers(16), batch_size=4)
        return CombinedLoader({"a": stream, "b": DataLoader(torch.arange(16) * 100, batch_size=4)}, "min_size")


def seen_by(job: Fit, devices: int) -> dict[int, list]:
    """Fit for one epoch, and return what the workers of this rank saw."""
    seen = []

    class Looks(job.module):
        def on_train_end(self):
            seen.append(self.seen)

    job.module = Looks
    fit(job, devices)
    return seen[0]


def seen(ranks, module, world: int, *, trainer=(), **strategy) -> dict[int, list]:
    job = Fit(strategy={**FOUR, **strategy}, module=module, trainer={"max_epochs": 1, **dict(trainer)})
    return {worker: own for rank in ranks(world).run(seen_by, job, world) for worker, own in rank.items()}


def test_a_stream_is_split_among_the_workers_of_each_rank(ranks):
    assert seen(ranks, OverNumbers, 1) == {
        0: [[0, 1], [8, 9], [16, 17]],
        1: [[2, 3], [10, 11], [18, 19]],
        2: [[4, 5], [12, 13], [20, 21]],
        3: [[6, 7], [14, 15], [22, 23]],
    }
    first, second = [[0, 1, 2, 3], [8, 9, 10, 11], [16, 17, 18, 19]], [[4, 5, 6, 7], [12, 13, 14, 15], [20, 21, 22, 23]]
    assert seen(ranks, OverNumbers, 2) == {0: first, 1: second, 2: first, 3: second}
    uneven = seen(ranks, OverNumbers, 1, workers=3)
    assert uneven == {
        0: [[0, 1, 2], [8, 9, 10], [16, 17, 18]],
        1: [[3, 4, 5], [11, 12, 13], [19, 20, 21]],
        2: [[6, 7], [14, 15], [22, 23]],
    }


def test_a_batch_sampler_is_kept(ranks):
    assert seen(ranks, InBatches, 1, trainer={"use_distributed_sampler": False}) == {
        0: [[16, 17], [8, 9], [0, 1]],
        1: [[18, 19], [10, 11], [2, 3]],
        2: [[20, 21], [12, 13], [4, 5]],
        3: [[22, 23], [14, 15], [6, 7]],
    }


def together(own: list[list], others: list[list]) -> list[list]:
    return [part + other for part, other in zip(own, others, strict=True)]


@pytest.mark.parametrize("module", [OverNumbers, InBatches, Combined])
def test_a_ranks_workers_share_the_batches_of_ddp(ranks, module):
    split_up = seen(ranks, module, 2)
    job = Fit(module=module, trainer={"max_epochs": 1})
    first, second = (own[None] for own in ranks(2).run(seen_by, job, 2))
    assert together(split_up[0], split_up[1]) == first
    assert together(split_up[2], split_up[3]) == second


def test_a_sampler_of_ones_own_is_kept(ranks):
    alone = seen(ranks, Weighted, 1)
    assert {len(part) for own in alone.values() for part in own} == {2}
    assert all(number >= 12 for own in alone.values() for part in own for number in part), "none of weight 0"
    numbers = [number for step in range(3) for worker in range(4) for number in alone[worker][step]]
    assert len(set(numbers)) < 24, "with replacement"
    together = seen(ranks, Weighted, 2)
    assert all(number >= 12 for own in together.values() for part in own for number in part)
    by_rank = [
        [number for step in range(2) for worker in pair for number in together[worker][step]]
        for pair in ((0, 1), (2, 3))
    ]
    assert [number for both in zip(*by_rank, strict=True) for number in both] == numbers, "the order of one rank, dealt"


def test_the_last_workers_are_absent_from_a_small_batch(ranks):
    assert seen(ranks, Ready, 1) == {
        0: [[0, 1], [8, 9], [13]],
        1: [[2, 3], [10], [14]],
        2: [[4, 5], [11]],
        3: [[6, 7], [12]],
    }
    (result,) = ranks(1).run(fit, Fit(strategy={**FOUR, "f": 0}, module=Ready, trainer={"max_epochs": 1}), 1)
    assert [str(word) for word in result["report"].status] == ["arrived", "arrived", "absent", "absent"]
    assert result["report"].taken
    assert result["global_step"] == 3


def test_several_loaders_are_split_each(ranks):
    in_order = {"use_distributed_sampler": False}
    assert seen(ranks, Combined, 1, trainer=in_order)[2] == [[202], [606], [1010], [1414]]
    two = seen(ranks, Combined, 2, trainer=in_order)
    assert two[0] == two[2] == [[0, 101], [404, 505], [808, 909], [1212, 1313]]


@pytest.mark.parametrize("module", [OverStream, OwnSampler, OwnBatchSampler])
def test_both_ranks_train_the_same_parameters(ranks, module):
    attacked = {**FOUR, "attackers": [3], "attack": LabelFlip(classes=2)}
    one, other = ranks(2).run(fit, Fit(Options(dropout=0.2), attacked, module=module), 2)
    assert not same_bits(one["parameters"], other["parameters"])
    assert one["metrics"] == other["metrics"]
    honest, _ = ranks(2).run(fit, Fit(Options(dropout=0.2), FOUR, module=module), 2)
    assert same_bits(honest["parameters"], one["parameters"]), "the attacker's part is poisoned"


def test_the_mean_of_parts_is_the_step_of_the_whole_batch(ranks):
    """Four workers on two ranks, equal parts, no draws: the step of DDP on two ranks."""
    options = Options(shuffle=False)
    split_up = {"workers": 4, "f": 0, "aggregator": Mean(), "split_batches": True}
    plain = ranks(2).run(fit, Fit(options), 2)[0]["parameters"]
    parts = ranks(2).run(fit, Fit(options, split_up), 2)[0]["parameters"]
    for name, value in plain.items():
        assert torch.allclose(parts[name], value, rtol=1e-5, atol=1e-6), name


def test_one_worker_per_rank_has_the_whole_batch(ranks):
    job = Fit(strategy={"f": 0, "aggregator": Mean()}, module=OwnSampler)
    plain = ranks(2).run(fit, job, 2)[0]
    job.strategy["split_batches"] = True
    assert not same_bits(ranks(2).run(fit, job, 2)[0]["parameters"], plain["parameters"])


# ---------------------------------------------------------------------- refusals


ARGUMENTS = [
    ({"split_batches": "yes"}, "split_batches='yes': give True or False"),
    (
        {"split_batches": True, "partition": Dirichlet(0.1)},
        r"and partition=Dirichlet\(...\) a shard of the data: leave one",
    ),
    (
        {"split_batches": True, "weights": "samples"},
        "weights='samples' asks for the sizes of their shards: leave weights",
    ),
    ({"split_batches": True, "weights": [1, 2]}, "accepted"),
]


def test_arguments_are_refused_at_construction(ranks):
    (answers,) = ranks(1).run(construct, [arguments for arguments, _ in ARGUMENTS])
    for answer, (arguments, sentence) in zip(answers, ARGUMENTS, strict=True):
        assert re.search(sentence, answer), (arguments, answer)


class WithAName(Classifier):
    def train_dataloader(self):
        return DataLoader(Points(), batch_size=8, collate_fn=lambda items: (torch.ones(8, 8), "digits"))


@pytest.mark.parametrize("module", [OverStream, OwnSampler, OwnBatchSampler])
def test_the_refusal_names_the_way_out(ranks, module):
    for _, sentence in ranks(2).run(attempt, Fit(strategy={**FOUR, "split_batches": False}, module=module), 2):
        assert "give split_batches=True or run one worker per rank" in sentence


def test_a_batch_that_cannot_be_split_is_refused_before_the_first_step(ranks):
    for answer in ranks(2).run(attempt, Fit(strategy=FOUR, module=WithAName), 2):
        assert answer[0] == "ValueError"
        assert "batch[1] is str 'digits', of which workers cannot have parts" in answer[1]
