"""Two real ranks, numbers computed by hand: slices of 64 and of 6 coordinates, workers shared out in unequal numbers, one worker per rank."""

import math
import os

import pytest
import torch
from torch.utils.data import WeightedRandomSampler

from lightning_byz.aggregators import Mean
from lightning_byz.attacks import Gaussian, LabelFlip, Replay
from lightning_byz.callbacks import WorkerMonitor
from lightning_byz.data import Sizes
from lightning_byz.estimators import WorkerMomentum
from lightning_byz.exchange import AllGather
from tests.recording import ABSENT, NAN, Line, Noting, Plan, Referring, Sends, by_worker, column, joined, number, train
from tests.test_bites import Unused, file_of
from tests.test_bites_workers import Validates, kept, shared

pytestmark = pytest.mark.filterwarnings("ignore:Mean tolerates no Byzantine", "ignore:.*workers attack in this")
SQUARES = sum(place**2 for place in range(1, 71))


def plan(rows, rule=Noting, **more) -> Plan:
    """Five workers, the first three of them on rank 0, and 70 coordinates."""
    options = {name: more.pop(name) for name in list(more) if name in Plan.__dataclass_fields__}
    strategy = {"workers": 5, "f": 1, "aggregator": rule(), **more}
    return Plan(rows, strategy, **{"coordinates": 70, **options})


def pair(rows, rule=Noting, **more) -> Plan:
    """One worker on each rank."""
    return plan(rows, rule, **{"workers": None, **more})


def shown(record, name: str) -> list:
    return [seen[name] for seen in record["rule"]]


def test_rows_weights_f_and_the_aggregate(ranks):
    rows = ((1, 2, 3, 4, 5), (1, 2, 3, 4, NAN), (ABSENT, 2, 3, 4, 5))
    results = ranks(2).run(train, plan(rows, weights=[1, 1, 1, 2, 1], f=2, start=1.0), 2)
    weights = [[1, 1, 1, 2, 1], [1, 1, 1, 2, 0], [0, 1, 1, 2, 1]]
    means = [19 / 6, 14 / 5, 18 / 5]
    for first, received, result in zip((1, 65), (4 * (2 * 64 + 6), 4 * (3 * 6 + 64)), results, strict=True):
        scaled = [[first * value for value in row] for row in ((1, 2, 3, 4, 5), (1, 2, 3, 4, 0), (0, 2, 3, 4, 5))]
        assert shown(result, "rows") == scaled, "a slice of each row, in the order of the workers"
        assert shown(result, "weights") == weights
        assert shown(result, "f") == [3, 2, 3]
        assert column(result, "gradient") == pytest.approx(means)
        assert result["weight"] == pytest.approx(1 - sum(means), rel=1e-5)
        assert column(result, "bytes_received") == [received] * 3
    assert [result["steps"][0]["loss"] for result in results] == pytest.approx([2 * SQUARES, 4.5 * SQUARES])
    workers = [{seen["worker"] for seen in result["seen"]} for result in results]
    assert workers == [{0, 1, 2}, {3, 4}]
    for result in results:
        for worker, indices in by_worker(result, "index").items():
            assert indices == [[worker], [5 + worker], [10 + worker]]


class Longest(Noting):
    """The row with the greatest sum: it adds up coordinates past the Stack."""

    def __call__(self, stack, *, generator=None):
        super().__call__(stack, generator=generator)
        return stack.vectors[stack.vectors.sum(1).argmax()]


def test_where_each_rank_sees_whole_rows_a_rule_may_mix_coordinates(ranks):
    rows = ((1, 2, 3, 4, 5), (1, 2, 6, 4, NAN))
    results = ranks(2).run(train, plan(rows, Longest, exchange=AllGather()), 2)
    for result, others in zip(results, (2, 3), strict=True):
        assert shown(result, "rows") == [[1, 2, 3, 4, 5], [1, 2, 6, 4, 0]]
        assert shown(result, "weights") == [[1] * 5, [1, 1, 1, 1, 0]]
        assert column(result, "gradient") == [5, 6]
        assert result["weight"] == -11
        assert column(result, "bytes_received") == [4 * 70 * others] * 2, "the rows of the other rank's workers"


class Spoils(Noting):
    """From the second step on, its very last number is none."""

    def __call__(self, stack, *, generator=None):
        vector = super().__call__(stack, generator=generator)
        if len(self.seen) > 1 and stack.slice is not None and stack.slice.stop == stack.slice.total == 70:
            vector[-1] = math.inf
        return vector


def test_a_number_that_is_not_finite_on_one_rank_stops_all(ranks):
    for result in ranks(2).run(train, plan(((1, 2, 3, 4, 5),) * 3, Spoils, may_fail=True), 2):
        assert result["error"].startswith("RuntimeError: Spoils returned values that are not finite")
        assert column(result, "weight") == [-3]


def test_the_report_is_of_all_workers_and_all_coordinates(ranks):
    length = math.sqrt(SQUARES)
    watched = plan(((1, 2, 3, NAN, 6),), Mean, callbacks=[WorkerMonitor()])
    for result in ranks(2).run(train, watched, 2):
        norms, distances = ([value / length for value in result["steps"][0][name]] for name in ("norms", "distances"))
        assert norms == pytest.approx([1, 2, 3, NAN, 6], nan_ok=True)
        assert distances == pytest.approx([2, 1, 0, NAN, 3], nan_ok=True, abs=1e-6)
        assert result["steps"][0]["coefficients"] == pytest.approx([1 / 4, 1 / 4, 1 / 4, 0, 1 / 4])
        assert result["weight"] == -3


def test_faults_are_counted_alike_and_named_on_every_rank(ranks):
    bad, good = (1, NAN, 3, 4, NAN), (2, 2, 2, 2, 2)
    for result in ranks(2).run(train, plan((bad, good, bad, bad, good), may_fail=True), 2):
        assert column(result, "taken") == [False, True, False, False, True]
        assert result["weight"] == -4
    for result in ranks(2).run(train, plan((good, bad, bad, bad), may_fail=True), 2):
        assert column(result, "taken") == [True, False, False]
        assert result["error"].startswith("TooManyFaults")
        assert "workers [1, 4] sent values that are not finite" in result["error"]


def test_buffers_and_momenta_of_all_workers_are_in_the_file(ranks, tmp_path):
    paths = {count: str(tmp_path / f"{count}.ckpt") for count in (1, 2)}
    rows = ((2, 4, 6, 28, 20), (4, 4, NAN, 4, 4))
    results = ranks(2).run(train, plan(rows, Mean, estimator=WorkerMomentum(0.5), buffers="mean", save=paths), 2)
    assert [kept(path) for path in paths.values()] == [[1, 2, 3, 14, 10], [2.5, 3, 3, 9, 7]]
    for path, expected, average in ((paths[1], [1, 2, 3, 14, 10], 6), (paths[2], [2.5, 3, 3, 9, 7], 4.9)):
        assert number(shared(path)) == pytest.approx(average)
        memories = file_of(path)["optimizers"][0]["memories"]
        assert {worker: number(memory["estimator"]["momentum"]) for worker, memory in memories.items()} == dict(
            enumerate(expected)
        )
    for result in results:
        assert result["mean"] == pytest.approx(4.9)
    assert results[1]["buffers"] == results[0]["buffers"]
    again = train(plan(((0,) * 5,), estimator=WorkerMomentum(0.5), checkpoint=paths[2], trainer={"max_epochs": 2}))
    assert shown(again, "rows")[0] == [1.25, 1.5, 1.5, 4.5, 3.5], "in one process, from the file of two"
    assert by_worker(again, "mean") == {0: [2.5], 1: [3], 2: [3], 3: [9], 4: [7]}
    back = ranks(2).run(
        train, plan(rows[:1], estimator=WorkerMomentum(0.5), checkpoint=paths[2], trainer={"max_epochs": 2}), 2
    )
    assert shown(back[0], "rows")[0] == [2.25, 3.5, 4.5, 18.5, 13.5]
    assert by_worker(back[1], "mean") == {3: [9], 4: [7]}


class OneCounts(Line):
    """Only samples above 4 change a buffer that is a number, and none changes the mean."""

    def __init__(self, plan):
        super().__init__(plan)
        self.register_buffer("peak", torch.zeros(1))

    def loss(self, x):
        if bool(x[0, 0] > 4):
            self.peak.fill_(x[0, 0])
        return super().loss(x)


def test_a_buffer_that_changes_on_the_other_rank_only(ranks, tmp_path):
    path = str(tmp_path / "one.ckpt")
    results = ranks(2).run(train, plan(((1, 2, 3, 4, 5),), module=OneCounts, buffers="mean", save={1: path}), 2)
    assert [result["buffers"]["peak"] for result in results] == [[1], [1]]
    assert kept(path, "peak") == [0, 0, 0, 0, 5]
    assert shared(path, "peak").tolist() == [1]


def test_one_worker_per_rank_keeps_what_was_accepted(ranks, tmp_path):
    path, later = (str(tmp_path / name) for name in ("four.ckpt", "five.ckpt"))
    rows = ((2, 8), (2, NAN), (NAN, NAN), (ABSENT, 8), (2, NAN))
    more = {"module": Validates, "trainer": {"val_check_interval": 1}, "save": {4: path, 5: later}}
    results = ranks(2).run(train, pair(rows, estimator=WorkerMomentum(0.5), **more), 2)
    assert [by_worker(result, "mean") for result in results] == [{0: [0, 1, 1.5, 1.5, 1.5]}, {1: [0, 4, 4, 4, 6]}]
    assert kept(path) == [1.5, 6]
    assert [kept(file, "norm.num_batches_tracked") for file in (path, later)] == [[2, 2], [3, 2]]
    assert number(shared(path)) == 3.75
    memories = file_of(path)["optimizers"][0]["memories"]
    assert [number(memories[worker]["estimator"]["momentum"]) for worker in (0, 1)] == [1.5, 6]
    assert shown(results[0], "rows") == [[1, 4], [1.5, 0], [0, 6], [1.75, 0]]
    for result in results:
        assert [mean for mean, _ in result["validated"][::2]] == [2.5, 2.75, 2.75, 3.75, 3.875]
        assert column(result, "taken") == [True, True, False, True, True]
        assert column(result, "weight") == [-2.5, -4, -4, -10, -11.75]
        assert result["mean"] == 3.875
        assert result["buffers"]["norm.num_batches_tracked"] == 3, "worker 0's"


def test_reference_and_past_are_whole_in_the_file(ranks, tmp_path):
    path = str(tmp_path / "two.ckpt")
    more = {"attackers": [4], "attack": Replay(delay=2)}
    results = ranks(2).run(train, plan(((1, 2, 3, 4, 5), (6, 7, 8, 9, 10)), Referring, **more, save={2: path}), 2)
    assert [shown(result, "reference") for result in results] == [[None, 3], [None, 195]]
    entry = file_of(path)["optimizers"][0]
    assert number(entry["rules"]["reference"]["aggregate"]) == 7
    assert [(name.split()[1], number(row)) for name, row in entry["rules"]["attack"].items()] == [("4", 5), ("4", 10)]
    again = ranks(2).run(train, plan(((0,) * 5,) * 2, Referring, **more, checkpoint=path, trainer={"max_epochs": 2}), 2)
    assert [shown(result, "rows")[0][4] for result in again] == [5, 325]
    assert [shown(result, "reference")[0] for result in again] == [7, 455]


def ten_times_its_place(stack, attackers, generator):
    return torch.stack([stack.vectors[worker] * 0 + 10.0 * worker for worker in attackers])


def test_attackers_are_workers_wherever_they_live(ranks):
    attack = Sends(ten_times_its_place)
    (first, last) = ranks(2).run(
        train, plan(((1, 2, 3, 4, NAN), (1, 2, 3, 4, 5)), attackers=[4, 1], attack=attack, module=Ragged), 2
    )
    assert shown(first, "rows") == [[1, 10, 3, 4, 0], [1, 10, 3, 4, 40]]
    assert shown(last, "rows") == [[65, 10, 195, 260, 0], [65, 10, 195, 260, 40]]
    assert [seen["attackers"] for seen in last["attack"]] == [[1], [4, 1]]
    assert [seen["weights"] for seen in last["attack"]] == [[1, 1, 1, 1, 0], [1] * 5]
    assert [seen["draw"] for seen in first["attack"]] == [seen["draw"] for seen in last["attack"]]
    flips = {"attackers": [3, 1], "attack": LabelFlip(20)}
    for result in ranks(2).run(train, plan(((1, 2, 3, 4, 5),), **flips), 2):
        for seen in result["seen"]:
            assert seen["label"] == ([19 - seen["index"][0]] if seen["worker"] in (1, 3) else seen["index"])


def not_a_number_at_the_end(stack, attackers, generator):
    rows = stack.vectors[attackers].clone()
    if stack.slice.stop == stack.slice.total:
        rows[:, -1] = NAN
    return rows


def test_what_an_attack_breaks_in_one_slice_is_broken_in_all(ranks):
    attacked = plan(((1, 2, 3, 4, 6),), attackers=[4], attack=Sends(not_a_number_at_the_end))
    for result in ranks(2).run(train, attacked, 2):
        assert shown(result, "weights") == [[1, 1, 1, 1, 0]]
        assert column(result, "gradient") == [2.5]


class Ragged(Line):
    """Does not train: rows that an attack sends are no multiples of (1, 2, ..., 70), and neither is what they come to."""

    exact = False

    def on_before_optimizer_step(self, optimizer):
        self.weight.grad = None


class Averages(Line):
    """Asks the strategy for a mean over ranks in its step, and logs one."""

    def loss(self, x):
        self.seen[-1]["reduced"] = self.trainer.strategy.reduce(x[0, 0].clone(), reduce_op="mean").item()
        self.log("first", x[0, 0], on_step=False, on_epoch=True, sync_dist=True)
        return super().loss(x)


def test_a_step_reduces_over_ranks_only_where_each_has_one_worker(ranks):
    results = ranks(2).run(train, plan(((1, 2, 3, 4, 5),) * 2, module=Averages), 2)
    assert [[seen["reduced"] for seen in result["seen"]] for result in results] == [[1, 2, 3] * 2, [4, 5] * 2]
    assert [result["metrics"]["first"] for result in results] == [3, 3]
    for result in ranks(2).run(train, pair(((1, 5),), module=Averages), 2):
        assert result["seen"][0]["reduced"] == 3
        assert result["metrics"]["first"] == 3


class StartsApart(Line):
    def __init__(self, plan):
        super().__init__(plan.but(start=1.0 + int(os.environ["LOCAL_RANK"])))


def test_all_ranks_start_from_rank_0(ranks):
    for result in ranks(2).run(train, plan(((1, 2, 3, 4, 5),), module=StartsApart), 2):
        assert result["weight"] == -2


def test_weights_are_sizes_of_shards_wherever_they_lie(ranks):
    more = {"partition": Sizes([1, 2, 3, 2, 2]), "weights": "samples", "f": 2, "shuffled": True}
    for result in ranks(2).run(train, plan(((1, 2, 3, 4, 5), (6, 7, 8, 9, 10)), **more), 2):
        assert [(seen["weights"], seen["f"]) for seen in result["rule"]] == [([1, 2, 3, 2, 2], 5)] * 2


def test_a_partition_holds_with_one_worker_per_rank(ranks):
    parted = pair(((1, 2, 3, 4), (5, 6, 7, 8)), partition=Sizes([2, 6]), shuffled=True, trainer={"max_epochs": 3})
    seen = [by_worker(result, "index") for result in ranks(2).run(train, parted, 2)]
    assert [list(workers) for workers in seen] == [[0], [1]]
    small, large = (joined(workers[worker]) for worker, workers in enumerate(seen))
    assert [len(small), len(large), len(set(small)), len(set(large))] == [12, 12, 2, 6]
    assert sorted({*small, *large}) == list(range(8))


def test_what_a_worker_of_another_rank_used_has_a_gradient(ranks):
    rows = ((1, 2, 3, 2, 5),)
    for result in ranks(2).run(train, plan(rows, Mean, f=0, module=Unused, coordinates=1), 2):
        assert result["parameters"] == {"weight": [pytest.approx(-2.6)], "some": -0.5, "never": 1}


def test_ranks_share_out_what_a_users_sampler_orders(ranks):
    rows, own = (
        tuple((2 * step, 2 * step + 1) for step in range(4)),
        WeightedRandomSampler([1.0] * 8, 8, replacement=False),
    )
    results = ranks(2).run(train, pair(rows, shuffled=True, loader={"sampler": own}), 2)
    dealt = [index for result in results for seen in result["seen"] for index in seen["index"]]
    assert sorted(dealt) == list(range(8)) != dealt


def draws_of(results: list) -> dict:
    """Draws by worker and place, without those of python's own stream in a step, from which the tests' checker of types draws, too."""
    return {
        (seen["worker"], seen["key"]): [seen["index"], *seen["fetch"], *seen["transfer"], *seen["step"][:2]]
        for result in results
        for seen in result["seen"]
    }


@pytest.mark.parametrize("processes", [0, 1])
def test_a_workers_draws_are_its_own_wherever_it_runs(ranks, processes):
    loader = {"generator": torch.Generator().manual_seed(1), "num_workers": processes}
    rows = ((1, 2), (3, 4), (5, 6))
    more = {"workers": 2, "shuffled": True, "loader": loader, "trainer": {"max_epochs": 2}}
    alone, spread = draws_of([train(plan(rows, **more))]), draws_of(ranks(2).run(train, plan(rows, **more), 2))
    assert alone == spread
    assert len({tuple(draws[1:]) for draws in alone.values()}) == 2 * 3 * 2


def test_noise_is_the_same_wherever_the_coordinates_are_cut(ranks):
    noisy = plan(((1, 2, 3, 4, 5),) * 2, attackers=[3], attack=Gaussian(1.0), module=Ragged)
    first, second = column(train(noisy), "gradient")
    assert [column(result, "gradient") for result in ranks(2).run(train, noisy, 2)] == [[first, second]] * 2
    assert first != second
    assert len(set(second)) == 70
