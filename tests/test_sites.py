"""Each rank is a site with data of its own: nothing is shared or dealt out, and all sites take as many steps."""

import re
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from itertools import islice

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, WeightedRandomSampler

from lightning_byz.aggregators import CoordinateMedian, Mean
from lightning_byz.attacks import SignFlip
from lightning_byz.callbacks import SiteTable
from lightning_byz.data import SortedShards
from lightning_byz.exchange import Placement
from lightning_byz.strategies.sites import Site, check_sites, steps_of
from tests.scenarios import Classifier, Fit, Options, Points, attempt, fit, same_bits
from tests.test_refusals import construct

pytestmark = pytest.mark.filterwarnings("ignore:Mean tolerates no Byzantine")
LOCAL = {"f": 0, "aggregator": Mean(), "data": "local"}
OWN_SAMPLERS = {"use_distributed_sampler": False}


@dataclass
class Sites(Options):
    """What each site has."""

    sizes: tuple[int, ...] = (160, 480)
    batch_sizes: tuple[int, ...] = (16, 16)
    kind: str = "plain"
    drop_last: bool = False


class Numbered(Dataset):
    """Samples of one site, whose labels are above those of the sites before."""

    def __init__(self, sizes, site: int) -> None:
        self.first, self.points = sum(sizes[:site]), Points(sizes[site])

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int):
        return *self.points[index], self.first + index


class Stream(IterableDataset):
    def __init__(self, samples: Numbered) -> None:
        self.samples = samples

    def __iter__(self):
        return (self.samples[index] for index in range(len(self.samples)))


class SiteReader(Classifier):
    """Reads its own site's data, and writes down which."""

    def __init__(self, options: Sites) -> None:
        super().__init__(options)
        self.seen: list[list[list[int]]] = []
        self.validated: list[int] = []

    def loader(self, site: int, **more) -> DataLoader:
        options = self.options
        data, batch = Numbered(options.sizes, site), options.batch_sizes[site]
        if options.kind == "stream":
            return DataLoader(Stream(data), batch_size=batch)
        if options.kind == "half a stream" and site == 0:
            return DataLoader(Stream(data), batch_size=batch)
        if options.kind == "weighted":
            return DataLoader(data, batch_size=batch, sampler=WeightedRandomSampler([1.0] * len(data), len(data)))
        if options.kind == "batches":
            return DataLoader(data, batch_sampler=OwnBatches(RandomSampler(data), batch, drop_last=False))
        return DataLoader(data, batch_size=batch, drop_last=options.drop_last, **more)

    def train_dataloader(self):
        return self.loader(self.trainer.global_rank, **({"shuffle": True} if self.options.kind == "plain" else {}))

    def val_dataloader(self):
        return DataLoader(Numbered(self.options.sizes, self.trainer.global_rank), batch_size=16)

    def on_train_epoch_start(self):
        self.seen.append([])

    def training_step(self, batch, batch_idx):
        self.seen[-1].append(batch[2].tolist())
        return super().training_step(batch[:2], batch_idx)

    def validation_step(self, batch, batch_idx):
        self.validated += batch[2].tolist()
        self.log("right", (self(batch[0]).argmax(1) == batch[1]).float().mean(), sync_dist=True, on_step=True)
        return super().validation_step(batch[:2], batch_idx)


class OwnBatches(BatchSampler):
    pass


def seen_by(job: Fit, devices: int):
    """Fit, and return what this site saw, beside the usual."""
    kept = []

    class Keeps(job.module):
        def on_train_end(self):
            kept.extend([self.seen, self.validated, self.trainer.strategy.worker_weights])

    result = fit(replace(job, module=Keeps), devices)
    return *kept, result


def sites(options: Sites | None = None, trainer: dict | None = None, **strategy) -> Fit:
    once = {"num_sanity_val_steps": 0, **(trainer or {})}
    return Fit(options or Sites(), {**LOCAL, **strategy}, once, module=SiteReader)


def flat(batches):
    return [sample for batch in batches for sample in batch]


# ---------------------------------------------------------------------- how long an epoch is, and who sees what


@pytest.mark.parametrize("injected", [True, False], ids=["Lightning's sampler", "the loader's own"])
def test_a_short_site_starts_over_and_a_long_one_goes_on(ranks, injected):
    job = sites(trainer={"use_distributed_sampler": injected}, weights="samples")
    short, long = ranks(2).run(seen_by, job, 2)
    assert [len(epoch) for epoch in (*short[0], *long[0])] == [20] * 4, "ceil(640 / (2 * 16))"
    for epoch in short[0]:
        first, second = flat(epoch[:10]), flat(epoch[10:])
        assert sorted(first) == sorted(second) == list(range(160)), "twice all of its own"
        assert first != second, "in a new order"
    assert short[0][0] != short[0][1]
    whole = flat([*long[0][0], *long[0][1]])
    assert sorted(whole[:480]) == list(range(160, 640)), "all of its own, across epochs"
    assert set(whole[480:]) <= set(range(160, 640))
    assert short[2] == long[2] == (160.0, 480.0), "the weights"
    assert not same_bits(short[3]["parameters"], long[3]["parameters"])
    assert sorted(short[1]) == sorted([*range(160)] * 2), "each site validates on its own data"
    assert sorted(long[1]) == sorted([*range(160, 640)] * 2)
    assert short[3]["metrics"] != {}
    assert short[3]["metrics"]["val_accuracy"] == pytest.approx(long[3]["metrics"]["val_accuracy"])


def test_orders_of_the_users_own_start_anew_with_each_epoch(ranks):
    for kind in ("in order", "weighted"):
        options = Sites(sizes=(20, 60), batch_sizes=(4, 4), kind=kind)
        short, long = ranks(2).run(seen_by, sites(options, OWN_SAMPLERS), 2)
        assert [len(epoch) for epoch in (*short[0], *long[0])] == [10] * 4
        assert set(flat(flat(short[0]))) <= set(range(20))
        assert set(flat(flat(long[0]))) <= set(range(20, 80))
        if kind == "weighted":
            assert short[0][0] != short[0][1]
            assert short[0][0][:5] != short[0][0][5:]
            assert [[s - 20 for s in batch] for batch in long[0][0][:5]] != short[0][0][:5], "drawn for each site"
        else:
            assert flat(short[0][0]) == [*range(20)] * 2


def test_unequal_batches(ranks):
    short, long = ranks(2).run(seen_by, sites(Sites(sizes=(30, 61), batch_sizes=(10, 20)), weights="samples"), 2)
    assert [len(epoch) for epoch in (*short[0], *long[0])] == [4] * 4, "ceil(91 / 30)"
    assert {len(batch) for batch in short[0][0]} == {10}
    assert {len(batch) for batch in long[0][0]} == {20}, "batches are full"


def test_steps_of_an_epoch():
    def of(*sites, drops=False, bounded=False):
        return steps_of([Site(samples, batch, drops, 1) for samples, batch in sites], bounded=bounded)

    assert of((5, 4), (4, 4), (3, 4), (2, 4), (1, 4)) == 1
    assert of((50, 4), (40, 4), (30, 4), (20, 4), (10, 4)) == 8
    assert of((50, 4), (40, 4), (30, 4), (20, 4), (10, 4), drops=True) == 7
    assert of((3, 4), (3, 4), drops=True) == 1
    assert of((50, 4), (-1, 4), bounded=True) is None


def test_streams_run_where_something_else_ends_the_epoch(ranks):
    options = Sites(sizes=(20, 60), batch_sizes=(4, 4), kind="stream")
    for limits, epochs in (({"limit_train_batches": 8}, [8, 8]), ({"max_steps": 9, "max_epochs": -1}, [9])):
        for kind in ("stream", "half a stream", "batches"):
            short, long = ranks(2).run(seen_by, sites(replace(options, kind=kind), limits), 2)
            assert [len(epoch) for epoch in short[0]] == [len(epoch) for epoch in long[0]] == epochs
            if kind != "batches":
                assert flat(short[0][0])[:32] == list(islice([*range(20)] * 2, 32)), "started over"


def test_overfitting_takes_the_same_batches(ranks):
    for seen, *_ in ranks(2).run(seen_by, sites(trainer={"overfit_batches": 3}), 2):
        assert seen[0] == seen[1]
        assert len(seen[0]) == 3


def test_resume_is_no_interruption(ranks, tmp_path):
    job, path = sites(weights="samples"), str(tmp_path / "half.ckpt")
    whole = ranks(2).run(seen_by, job, 2)
    ranks(2).run(fit, replace(job, trainer={**job.trainer, "max_epochs": 1}, save=path), 2)
    for again, expected in zip(ranks(2).run(seen_by, replace(job, checkpoint=path), 2), whole, strict=True):
        assert again[0][0] == expected[0][1]
        assert not same_bits(again[3]["parameters"], expected[3]["parameters"])


# ---------------------------------------------------------------------- refusals


REFUSED = {
    "unequal loaders": (
        sites(trainer=OWN_SAMPLERS, data="shared"),
        r"unequal numbers of batches, 10 on rank 0 and 30 on rank 1: .* Give data='local'.*limit_train_batches=10",
    ),
    "unequal loaders, and steps beyond the shorter": (
        sites(trainer={**OWN_SAMPLERS, "max_steps": 11}, data="shared"),
        "unequal numbers of batches, 10 on rank 0",
    ),
    "half a stream": (
        sites(Sites(kind="half a stream"), OWN_SAMPLERS, data="shared"),
        r"loaders of ranks \[0\] do not tell how many batches they have, and the others do.*data='local'",
    ),
    "streams without an end": (
        sites(Sites(kind="stream")),
        r"loaders of sites \[0, 1\] do not tell how many samples.*max_steps=.*limit_train_batches",
    ),
    "no data": (sites(Sites(sizes=(40, 0), kind="in order"), OWN_SAMPLERS), r"sites \[1\] have no training batch"),
    "no full batch": (
        sites(Sites(sizes=(40, 10), drop_last=True, kind="in order"), OWN_SAMPLERS),
        r"sites \[1\] have no training batch.*drop_last=False",
    ),
    "several workers per rank": (
        sites(workers=4),
        "needs one worker per rank.* 4 workers are on 2 ranks: leave workers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_is_refused_on_every_rank(ranks, name):
    job, sentence = REFUSED[name]
    for kind, answer in ranks(2).run(attempt, job, 2):
        assert kind == "ValueError", answer
        assert re.search(sentence, answer), answer


@pytest.mark.parametrize("limit", [{"limit_train_batches": 10}, {"max_steps": 10}])
def test_unequal_loaders_that_no_rank_comes_to_the_end_of(ranks, limit):
    job = sites(
        trainer={**OWN_SAMPLERS, "max_epochs": 1, "limit_val_batches": 0, **limit},
        data="shared",
        aggregator=CoordinateMedian(),
    )
    for seen, *_ in ranks(2).run(seen_by, job, 2):
        assert len(seen[0]) == 10


def test_arguments_are_refused_at_construction(ranks):
    (answers,) = ranks(1).run(construct, [{"data": "mine"}, {"data": "local", "partition": SortedShards()}])
    assert "data='mine': give 'shared', or 'local'" in answers[0]
    assert "partition=SortedShards(...) deals data out: leave partition out" in answers[1]


def test_one_rank_is_one_site():
    check_sites("local", Placement(1, 1, 0))
    with pytest.raises(ValueError, match="3 workers are on 1 rank: leave workers out, or start 3 processes"):
        check_sites("local", Placement(3, 1, 0))


# ---------------------------------------------------------------------- the table


def tabled(job: Fit, metric: str, mode: str, devices: int):
    """Fit with a table of sites; return it, and what this site has by a count of its own."""
    table, own = SiteTable(metric, mode), []

    class Counts(job.module):
        def on_validation_epoch_start(self):
            own.clear()

        def validation_step(self, batch, batch_idx):
            own.extend((self(batch[0]).argmax(1) == batch[1]).tolist())
            return super().validation_step(batch, batch_idx)

    with redirect_stdout(StringIO()) as printed:
        fit(replace(job, module=Counts, trainer={**job.trainer, "callbacks": [table]}), devices)
    return table.values, sum(own) / len(own), printed.getvalue()


@pytest.mark.parametrize("mode", ["max", "min"])
def test_each_sites_own_metric_worst_first(ranks, mode):
    job = sites(Sites(sizes=(70, 23), batch_sizes=(8, 8)), weights="samples", attackers=[1], attack=SignFlip())
    (values, first, printed), (others, second, nothing) = ranks(2).run(tabled, job, "val_accuracy", mode, 2)
    assert values == others == pytest.approx([first, second])
    assert first != second
    assert nothing == ""
    rows = re.findall(r"([01])( \(attacks\))? [^\d]+ (\d+) [^\d]+ (\d\.\d{4}) ", printed)
    expected = sorted([("0", "", "70", f"{first:.4f}"), ("1", " (attacks)", "23", f"{second:.4f}")], key=lambda r: r[3])
    assert rows == (expected if mode == "max" else expected[::-1])


def test_a_table_needs_sites_and_a_metric(ranks):
    for job, metric, sentence in (
        (
            sites(data="shared", weights=None),
            "val_accuracy",
            'without sites: give Trainer(strategy=RobustStrategy(data="local"',
        ),
        (sites(), "accuracy", "validation_step logged ['right', 'val_accuracy'] for the epoch"),
    ):
        for answer in ranks(2).run(untabled, job, metric, 2):
            assert sentence in answer


def untabled(job: Fit, metric: str, devices: int) -> str:
    try:
        tabled(job, metric, "max", devices)
    except MisconfigurationException as error:
        return str(error)
    return "nothing was refused"
