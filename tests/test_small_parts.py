"""Randomness, flat vectors, placements, estimators and loaders, each by itself."""

import random
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from lightning_byz.aggregators import Mean
from lightning_byz.attacks import NonFinite
from lightning_byz.data import IID
from lightning_byz.estimators import Estimator, Gradient, WorkerMomentum
from lightning_byz.exchange import Local, Placement
from lightning_byz.exchange.pairwise import slice_bounds
from lightning_byz.flat import Layout
from lightning_byz.kernels import block_size
from lightning_byz.memory import Memory
from lightning_byz.random import Streams, derive, generator
from lightning_byz.rounds import Aggregation
from lightning_byz.rounds.checks import check_rows, check_vector, estimated
from lightning_byz.strategies.loaders import KeyedLoader, RunSeed, WorkerBatches, WorkerLoaders, split_loader
from tests.rounds import robust, take

CPU = torch.device("cpu")


def test_keys_tell_words_from_numbers_and_from_each_other():
    keys = [(), (1,), ("1",), (1, 2), (12,), ("a", "b"), ("ab",), ("a", 1), (1, "a")]
    assert len({derive(0, *key) for key in keys} | {derive(1, *key) for key in keys}) == 2 * len(keys)
    assert derive(3, "step", 1) == derive(3, "step", 1) == 4358124369127220332, "the same in every process and version"


def test_generators_are_independent_of_global_state():
    first = torch.randn(4, generator=generator(0, "x"))
    torch.manual_seed(1)
    assert torch.equal(torch.randn(4, generator=generator(0, "x")), first)
    assert not torch.equal(torch.randn(4, generator=generator(0, "y")), first)


def draws() -> tuple:
    return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002


def test_streams_are_keyed_inside_and_untouched_outside():
    streams = Streams(CPU)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    expected = [draws(), draws()]
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    seen = [draws()]
    with streams.inside(5, "a", remember=True):
        first = draws()
    with streams.again():
        second = draws()
    with streams.inside(5, "a"):
        assert (draws(), draws()) == (first, second)
    with streams.inside(5, "b"):
        assert all(other != one for other, one in zip(draws(), first, strict=True)), "in every stream"
    with streams.together() as enter:
        for _ in range(2):
            enter(5, "a")
            assert (draws(), draws()) == (first, second)
        with streams.inside(5, "b"):
            draws()
    assert [*seen, draws()] == expected


def draws_and_fails(enter):
    if enter is not None:
        enter(5, "b")
    draws()
    raise KeyError


def test_streams_are_put_back_after_an_error():
    streams, before = Streams(CPU), torch.get_rng_state()
    with streams.inside(5, "a", remember=True):
        pass
    for block in (streams.inside(5, "a"), streams.together(), streams.again()):
        with pytest.raises(KeyError), block as enter:
            draws_and_fails(enter)
        assert torch.equal(torch.get_rng_state(), before)


def test_streams_go_on_where_they_were_remembered_last():
    streams = Streams(CPU)
    with streams.inside(5, "a"):
        expected = [draws() for _ in range(3)]
    with streams.inside(5, "a", remember=True):
        seen = [draws()]
    with streams.inside(5, "b"):
        draws()
    for _ in range(2):
        with streams.again():
            seen.append(draws())
    assert seen == expected


def test_a_flat_vector_carries_mixed_dtypes_and_missing_gradients():
    parameters = [
        ("a", nn.Parameter(torch.zeros(2, 3, dtype=torch.bfloat16))),
        ("b", nn.Parameter(torch.zeros(4))),
        ("c", nn.Parameter(torch.zeros(2, dtype=torch.complex64))),
        ("d", nn.Parameter(torch.zeros(()))),
    ]
    layout = Layout.of(parameters)
    assert (layout.total, layout.dtype, layout.sizes) == (6 + 4 + 4 + 1, torch.float32, (6, 4, 4, 1))
    gradients = [
        torch.arange(6.0).view(3, 2).T.to(torch.bfloat16),
        None,
        torch.tensor([1 + 2j, 3 - 4j]),
        torch.tensor(7.0),
    ]
    vector = torch.full((layout.total,), float("nan"))
    layout.flatten(gradients, out=layout.views(vector))
    assert vector.tolist() == [0, 2, 4, 1, 3, 5, 0, 0, 0, 0, 1, 2, 3, -4, 7]
    layout.write(vector / 2, [parameter for _, parameter in parameters], used=[3, 0, 1, 1], scale=2.0)
    for (_, parameter), gradient in zip(parameters, gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or (torch.equal(parameter.grad, gradient) and parameter.grad.dtype == parameter.dtype)


def test_a_parameter_without_numbers_has_a_gradient_without_any():
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in (2, (0, 3), 1)]
    layout = Layout.of(zip("abc", parameters, strict=True))
    vector = torch.tensor([1.0, 2.0, 3.0])
    layout.write(vector, parameters, used=[1, 1, 1])
    assert [parameter.grad.tolist() for parameter in parameters] == [[1, 2], [], [3]]
    assert parameters[1].grad.shape == (0, 3)


def test_a_sparse_gradient_is_refused_by_name():
    layout = Layout.of([("words.weight", torch.zeros(3, 2))])
    sparse = torch.sparse_coo_tensor([[1]], torch.ones(1, 2), (3, 2), check_invariants=True)
    with pytest.raises(ValueError, match=r"'words.weight' is sparse.*sparse=False"):
        layout.flatten([sparse], out=layout.views(torch.zeros(6)))


def test_memories_follow_their_parameters_by_name():
    old = Layout.of([("a", torch.zeros(2)), ("b", torch.zeros(3)), ("gone", torch.zeros(1))])
    new = Layout.of([("b", torch.zeros(3)), ("new", torch.zeros(2)), ("a", torch.zeros(2, 1))])
    assert new.realign(torch.arange(6.0), old).tolist() == [2, 3, 4, 0, 0, 0, 0], "another shape starts anew"


@given(st.integers(1, 40), st.integers(1, 12))
def test_placements_cover_all_workers_in_order(workers, ranks):
    if workers < ranks:
        with pytest.raises(ValueError, match=f"workers={workers} on {ranks} ranks"):
            Placement(workers, ranks, 0)
        return
    placement = Placement(workers, ranks, 0)
    assert [worker for rank in range(ranks) for worker in placement.of(rank)] == list(range(workers))
    assert max(placement.shares) - min(placement.shares) <= 1
    assert placement.one_per_rank == (workers == ranks)


@given(st.integers(1, 3_000_000), st.integers(1, 12))
def test_slices_are_runs_of_whole_blocks(total, ranks):
    bounds = slice_bounds(total, ranks)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == total
    for (_, stop), (start, _) in pairwise(bounds):
        assert stop == start
        assert start % block_size(total) == 0 or start == total


def test_momentum_is_an_exponential_average_from_zero_in_float32():
    rule = WorkerMomentum(beta=0.75)
    memory = rule.init(torch.empty(2, dtype=torch.bfloat16))
    gradient = torch.tensor([1.0, -8.0], dtype=torch.bfloat16)
    estimate, proposed = rule.update(memory, [gradient], count=0)
    assert estimate.dtype == torch.bfloat16
    assert estimate.tolist() == [0.25, -2.0]
    assert proposed["momentum"].dtype == torch.float32
    assert memory["momentum"].tolist() == [0.0, 0.0], "the caller adopts, or not"
    assert rule.update(proposed, [gradient], count=1)[0].tolist() == [0.4375, -3.5]
    assert WorkerMomentum(0.0).update(rule.init(torch.empty(2)), [gradient.float()], count=0)[0].tolist() == [1.0, -8.0]
    assert Gradient().init(torch.empty(3)) == {}


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_momentum_refuses_weights_outside_their_range(beta):
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\)"):
        WorkerMomentum(beta)


def loader(**arguments) -> DataLoader:
    dataset = TensorDataset(torch.arange(20))
    sampler = torch.utils.data.DistributedSampler(
        dataset, num_replicas=1, rank=0, shuffle=arguments.pop("shuffle", True), seed=RunSeed(3)
    )
    return DataLoader(dataset, batch_size=2, sampler=sampler, **arguments)


class Deals(Sampler):
    """A user's own: draws its order as soon as it is asked for it, from the global stream."""

    def __iter__(self):
        return iter(torch.randperm(9).tolist())

    def __len__(self):
        return 9


@pytest.mark.parametrize("batch_size", [None, 1])
def test_what_a_users_sampler_orders_is_alike_for_all_workers(batch_size):
    orders = []
    for worker in (0, 1):
        loader = DataLoader(range(9), sampler=Deals(), batch_size=batch_size)
        keyed = KeyedLoader(loader, worker=worker, streams=Streams(CPU), seed=3, epoch=lambda: 0)
        orders.append([[int(index) for index in keyed] for _ in range(2)])
    assert orders[0] == orders[1]
    first, second = orders[0]
    assert sorted(first) == sorted(second) == list(range(9))
    assert first != second, "another order in each pass"


def test_worker_loaders_deal_out_what_distributed_samplers_would():
    make, batches = split_loader(loader(), IID(), workers=3, seed=3)
    assert batches == 4
    keyed = [
        KeyedLoader(make(worker), worker=worker, streams=Streams(CPU), seed=3, epoch=lambda: 0) for worker in range(3)
    ]
    loaders = WorkerLoaders(keyed, batches=batches)
    for epoch in (0, 1):
        loaders.set_epoch(epoch)
        seen = list(loaders)
        assert len(seen) == len(loaders) == 4
        assert all(isinstance(batch, WorkerBatches) and len(batch) == 3 for batch in seen)
        for worker in range(3):
            sampler = torch.utils.data.DistributedSampler(range(20), num_replicas=3, rank=worker, shuffle=True, seed=3)
            sampler.set_epoch(epoch)
            assert [int(value) for batch in seen for value in batch[worker][0]] == list(sampler)


def test_an_empty_shard_names_the_workers():
    with pytest.raises(
        ValueError, match=r"Workers \[0, 1, 2.*\] have an empty shard: 20 samples over 15 workers with batch_size=4"
    ):
        split_loader(
            DataLoader(TensorDataset(torch.arange(20)), batch_size=4, drop_last=True, sampler=loader().sampler),
            IID(),
            workers=15,
            seed=3,
        )


def test_a_turns_key_is_epoch_batch_and_worker():
    placement, exchange = Placement(5, 2, 1), Local()
    aggregation = Aggregation(robust(5, 1, Mean(), attackers=[3], attack=NonFinite()), exchange, placement, device=CPU)
    turns = aggregation.turns((7, 9))
    assert [(turn.worker, turn.key, turn.attacks) for turn in turns] == [
        (3, ("step", 7, 9, 3), True),
        (4, ("step", 7, 9, 4), False),
    ]


def test_a_steps_time_is_the_exchanges_or_the_rules(monkeypatch):
    """The clock says 1 at the start, 3 when the rows are there, 10 when the rules are done and 26 at the end."""
    monkeypatch.setattr("lightning_byz.rounds.robust.perf_counter", iter((1.0, 3.0, 10.0, 26.0)).__next__)
    report = take(robust(2, 0, Mean()), Memory(), torch.ones(2, 3)).report
    assert (report.exchange_seconds, report.rule_seconds) == (2 + 16, 7)


@dataclass(frozen=True)
class Answers(Estimator):
    """Returns what it is told to."""

    estimate: object
    left: object

    def init(self, like):
        return {}

    def update(self, memory, gradients, *, count):
        return self.estimate, self.left


ROW, BLANK = torch.zeros(3), {"slow": torch.zeros(3), "tail": torch.zeros(2), "length": 0.0}


@pytest.mark.parametrize(
    ("estimate", "left", "sentence"),
    [
        (None, {}, "must return an estimate of 3 torch.float32 coordinates, not None"),
        (torch.zeros(1, 3), {}, r"not \(1, 3\) of torch.float32"),
        (torch.zeros(3, dtype=torch.float64), {}, r"not \(3,\) of torch.float64"),
        (ROW, {"more": 0.0}, "returned the memory .*'more': '0.0'"),
        (ROW, {"slow": torch.zeros(2)}, r"'slow': '\(2,\) of torch.float32'"),
        (ROW, {"slow": torch.zeros(3, dtype=torch.float64)}, r"'slow': '\(3,\) of torch.float64'"),
        (ROW, {"length": 0}, "'length': '0'"),
        (ROW, {"length": torch.zeros(())}, r"'length': '\(\) of torch.float32'"),
    ],
)
def test_an_estimator_that_breaks_its_word_is_named(estimate, left, sentence):
    with pytest.raises(ValueError, match=f"Answers.*{sentence}"):
        estimated(Answers(estimate, {**BLANK, **left}), BLANK, [ROW], count=0)


def test_what_an_estimator_leaves_outlives_the_row():
    row = torch.tensor([1.0, 2.0, 3.0])
    given = {"slow": row, "tail": row[1:], "length": 4.0}
    _, left = estimated(Answers(row, given), BLANK, [row], count=0)
    row.fill_(9.0)
    assert (left["slow"].tolist(), left["tail"].tolist(), left["length"]) == ([1, 2, 3], [2, 3], 4.0)


def test_what_is_no_aggregate_and_what_are_no_rows_is_said():
    for wrong in (None, torch.zeros(3, 1), torch.zeros(2), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="Rule must return a floating point vector of 3 coordinates, not "):
            check_vector("Rule", wrong, coordinates=3)
    for wrong in (None, torch.zeros(2, 4), torch.zeros(1, 3), torch.zeros(6)):
        with pytest.raises(ValueError, match=r"Attack\.replace must return 2 rows of 3 coordinates, not "):
            check_rows("Attack", wrong, (2, 3))
