"""One process: each worker's draws and samples are its own, and those of no other place in the run."""

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from lightning_byz.attacks import Gaussian
from lightning_byz.data import Sizes
from lightning_byz.preaggregators import Bucketing
from tests.recording import Line, Noting, Passes, Samples, Sends, by_worker, column, joined, train
from tests.test_bites_workers import plan

pytestmark = pytest.mark.filterwarnings("ignore:Mean tolerates no Byzantine", "ignore:.*workers attack in this")


# ---------------------------------------------------------------------- draws


def drawn(record, rule, stages, attack) -> dict[str, list[float]]:
    """Every number that was drawn in a fit, by purpose, and the order of the samples."""
    steps = {
        name: [number for seen in record["seen"] for number in seen[name]] for name in ("fetch", "transfer", "step")
    }
    rules = {
        "rule": [seen["draw"] for seen in rule.seen],
        "stages": joined(list(zip(*(stage.seen for stage in stages), strict=True))),
    }
    order = joined([seen["index"] for seen in record["seen"]])
    return {
        **steps,
        **rules,
        "attack": [seen["draw"] for seen in attack.seen],
        "poison": attack.poisoned,
        "order": order,
    }


def all_drawn(*, checkpoint=None, save=(), epochs: int = 2, **more) -> dict[str, list[float]]:
    """The draws of three steps an epoch, of four workers, two of which attack."""
    rule, stages, attack = Noting(), [Passes(), Passes()], Sends()
    rows = ((1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12))
    chosen = {"aggregator": rule, "preaggregators": stages, "attack": attack, "attackers": [1, 2], **more}
    fit = plan(rows, **chosen, shuffled=True, trainer={"max_epochs": epochs}, checkpoint=checkpoint, save=dict(save))
    return drawn(train(fit), rule, stages, attack)


def test_no_two_draws_of_a_run_are_the_same_and_each_is_drawn_again():
    draws = all_drawn()
    order = draws.pop("order")
    assert order[:12] != order[12:]
    assert {name: len(numbers) for name, numbers in draws.items()} == {
        "fetch": 3 * 24, "transfer": 2 * 24, "step": 3 * 24, "rule": 6, "stages": 12, "attack": 6, "poison": 12
    }  # fmt: skip
    numbers = [number for some in draws.values() for number in some]
    assert len(set(numbers)) == len(numbers)
    torch.manual_seed(99)
    assert all_drawn() == {**draws, "order": order}


def test_the_argument_goes_before_the_environment_and_the_file_before_both(tmp_path, monkeypatch):
    path = str(tmp_path / "one.ckpt")
    five, zero = all_drawn(seed=5, save={3: path}), all_drawn()
    assert five["order"] != zero["order"]
    assert all(not set(five[name]) & set(zero[name]) for name in five if name != "order")
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert all_drawn() == five
    assert all_drawn(seed=0) == zero
    again = all_drawn(seed=6, checkpoint=path)
    assert again == {name: numbers[len(numbers) // 2 :] for name, numbers in five.items()}, "its second epoch"


def test_the_files_seed_orders_the_samples_of_the_only_worker_of_a_rank(tmp_path):
    path = str(tmp_path / "one.ckpt")
    alone = plan(((1,),) * 12, workers=1, shuffled=True, seed=5, trainer={"max_epochs": 2})
    order = by_worker(train(alone.but(save={12: path})), "index")[0]
    again = train(alone.under(seed=6).but(checkpoint=path))
    assert by_worker(again, "index")[0] == order[12:] != order[:12]


@pytest.mark.parametrize("more", [{"attackers": [3], "attack": Gaussian(1.0)}, {"preaggregators": [Bucketing()]}])
def test_random_attacks_and_rules_draw_anew_in_each_step(more):
    rows = ((1, 20, 300, 4000),) * 6
    results = [
        column(train(plan(rows, **more, seed=seed, f=0).under(aggregator=First())), "gradient") for seed in (1, 1, 2)
    ]
    assert len(set(results[0])) > 2
    assert results[0] == results[1] != results[2]


class First(Noting):
    """The row of the last worker."""

    def __call__(self, stack, *, generator=None):
        return stack.vectors[-1].clone()


class TwoLoaders(Line):
    """A long loader and a short one, which starts anew in the same epoch."""

    def train_dataloader(self):
        return {"long": super().train_dataloader(), "short": DataLoader(Samples([self.plan.rows[0]], 1))}

    def training_step(self, batch, batch_idx):
        hooks = {"before": batch["before"], "after": batch["after"]}
        super().training_step({**batch["short"], **hooks}, batch_idx)
        return super().training_step({**batch["long"], **hooks}, batch_idx)


def test_each_pass_over_a_loader_draws_anew():
    rows = ((1, 2), (3, 4), (5, 6))
    record = train(plan(rows, workers=2, module=TwoLoaders, shuffled=True, trainer={"max_epochs": 2}))
    short, long = ([tuple(seen["fetch"]) for seen in record["seen"][place::2]] for place in (0, 1))
    assert len(set(short)) == len(set(long)) == 2 * 3 * 2


def test_weights_are_sizes_of_shards_over_all_loaders():
    rule = Noting()
    more = {"partition": Sizes([1, 3]), "weights": "samples", "aggregator": rule, "f": 0}
    train(plan(((1, 2, 3, 4), (5, 6, 7, 8)), workers=2, module=TwoLoaders, shuffled=True, **more))
    assert rule.seen[0]["weights"] == [2 + 1, 6 + 3]


def test_loader_processes_draw_for_their_worker_and_epoch():
    rows = ((1, 2), (3, 4))
    record = train(plan(rows, workers=2, loader={"num_workers": 1}, shuffled=True, trainer={"max_epochs": 2}))
    numbers = [number for seen in record["seen"] for number in seen["fetch"]]
    assert len(set(numbers)) == len(numbers) == 2 * 2 * 2 * 3


class DrawsBackward(Line):
    """Draws in the backward pass, on and on from where the step was."""

    def loss(self, x):
        loss = super().loss(x)
        loss.register_hook(lambda gradient: self.seen[-1].update(back=torch.rand(()).item()))
        return loss


def test_the_backward_pass_draws_on_from_where_the_step_was():
    alone, both = (train(plan(((1, 2), (3, 4)), workers=workers, module=DrawsBackward)) for workers in (1, 2))
    assert by_worker(alone, "key")[0] == by_worker(both, "key")[0]
    assert by_worker(alone, "back")[0] == by_worker(both, "back")[0]
    assert [len(set(seen)) for seen in by_worker(both, "back").values()] == [2, 2]
    assert not {seen["back"] for seen in both["seen"]} & {seen["step"][0] for seen in both["seen"]}


# ---------------------------------------------------------------------- samples


def test_samples_are_dealt_as_torch_deals_them():
    rows = tuple(tuple(range(4 * step, 4 * step + 4)) for step in range(5))
    record = train(plan(rows, shuffled=True, seed=5, loader={"batch_size": 2}, trainer={"max_epochs": 2}))
    for worker, seen in by_worker(record, "index").items():
        sampler = DistributedSampler(range(20), num_replicas=4, rank=worker, shuffle=True, seed=5)
        orders = [list(sampler), sampler.set_epoch(1) or list(sampler)]
        assert [joined(seen[:3]), joined(seen[3:])] == orders
        assert orders[0] != orders[1]


def test_what_is_not_shuffled_stays_in_order():
    rows = ((1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12))
    record = train(plan(rows, trainer={"max_epochs": 2}))
    assert by_worker(record, "index") == {k: [[k], [4 + k], [8 + k]] * 2 for k in range(4)}


def test_a_partition_goes_over_its_shards_across_epochs():
    rows, sizes = ((1, 2), (3, 4), (5, 6), (7, 8)), Sizes([2, 6])
    in_order = train(plan(rows, workers=2, partition=sizes, trainer={"max_epochs": 3}))
    shards = [joined(seen)[:size] for seen, size in zip(by_worker(in_order, "index").values(), (2, 6), strict=True)]
    assert sorted(joined(shards)) == list(range(8))
    for worker, seen in by_worker(in_order, "index").items():
        assert joined(seen) == (shards[worker] * 6)[:12]
    shuffled = train(plan(rows, workers=2, partition=sizes, shuffled=True, trainer={"max_epochs": 9}))
    for worker, seen in by_worker(shuffled, "index").items():
        size = len(shards[worker])
        passes = [joined(seen[start : start + size]) for start in range(0, 36, size)]
        assert all(sorted(one) == sorted(shards[worker]) for one in passes)
        assert len({tuple(one) for one in passes}) > 1


def shards_and_places(seed: int) -> tuple[list, list]:
    """Two workers' shards of six samples, and the orders in which a shuffled pass goes through them."""
    halves = plan(((1,) * 12,), workers=2, partition=Sizes([6, 6]), loader={"batch_size": 6}, seed=seed)
    shards = [joined(seen) for seen in by_worker(train(halves), "index").values()]
    shuffled = by_worker(train(halves.but(shuffled=True)), "index")
    return shards, [[shard.index(index) for index in joined(shuffled[k])] for k, shard in enumerate(shards)]


def test_shards_and_the_orders_within_are_the_workers_and_the_seeds():
    (shards, places), (other_shards, other_places) = shards_and_places(0), shards_and_places(1)
    assert all(sorted(order) == list(range(6)) for order in places + other_places)
    assert len({tuple(order) for order in places + other_places}) == 4
    assert shards[0] != other_shards[0]


@pytest.mark.parametrize(("drop_last", "steps"), [(False, 3), (True, 2)])
def test_an_epoch_is_as_long_as_the_samples_last(drop_last, steps):
    loader = {"batch_size": 2, "drop_last": drop_last}
    for partition, last in (({}, 1), ({"partition": Sizes([4, 5])}, 2)):
        record = train(plan(((1,) * 9,), workers=2, loader=loader, shuffled=True, **partition))
        assert len(record["steps"]) == steps
        lengths = [2] * 4 if drop_last else [2] * 4 + [last] * 2
        assert [len(seen["index"]) for seen in record["seen"]] == lengths


def test_a_sampler_ends_where_its_epoch_does():
    for sampler in Sizes([2, 6]).samplers(range(8), workers=2, shuffle=True, seed=0):
        for epoch in range(3):
            sampler.set_epoch(epoch)
            assert len(list(sampler)) == len(sampler) == 4


def test_an_epoch_ends_for_all_workers_at_once():
    record = train(plan(((1, 2, 3, 4, 5),), workers=2, loader={"batch_size": 3}, shuffled=True))
    assert [len(seen["index"]) for seen in record["seen"]] == [3, 3]
    assert train(plan(((1, 2),), workers=3, shuffled=True, may_fail=True))["error"].startswith(
        "ValueError: 2 training samples for 3 workers"
    )
