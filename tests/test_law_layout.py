"""Law 2: the same workers on 1, 2, 3 and 4 ranks train the same parameters, bit for bit."""

import pytest
import torch

from lightning_byz.aggregators import CTMA, CoordinateMedian, GeometricMedian, Krum, Mean, TrimmedMean
from lightning_byz.attacks import ALIE, IPM, NonFinite, ReverseGradient, SignFlip
from lightning_byz.estimators import WorkerMomentum
from lightning_byz.exchange import AllToAll
from lightning_byz.preaggregators import NNM
from lightning_byz.stack import Stack
from tests.scenarios import Fit, Options, fit, same_bits

STOCHASTIC = Options(dropout=0.2, batch_norm=True, augment=True)
# Each stage appears beside each other stage's variants at least once, without the product of them all.
CASES = {
    "mean": Fit(STOCHASTIC, {"f": 0, "aggregator": Mean()}),
    "median, momentum, sign flip": Fit(
        STOCHASTIC,
        {
            "f": 1,
            "aggregator": CoordinateMedian(),
            "estimator": WorkerMomentum(0.9),
            "attackers": [3],
            "attack": SignFlip(),
        },
        {"accumulate_grad_batches": 2},
    ),
    "trimmed mean, alie": Fit(
        Options(augment=True, batch_norm=True),
        {"f": 1, "aggregator": TrimmedMean(), "attackers": [0], "attack": ALIE(1.0)},
        {"gradient_clip_val": 0.3},
    ),
    "geometric median, momentum, ipm": Fit(
        Options(dropout=0.2),
        {
            "f": 1,
            "aggregator": GeometricMedian(),
            "estimator": WorkerMomentum(0.5),
            "attackers": [2],
            "attack": IPM(0.5),
        },
    ),
    "krum, not finite": Fit(
        Options(dropout=0.2, augment=True),
        {"f": 1, "aggregator": Krum(), "attackers": [1], "attack": NonFinite()},
        {"accumulate_grad_batches": 3},
    ),
    "nnm, ctma, momentum, reverse": Fit(
        STOCHASTIC,
        {
            "f": 1,
            "aggregator": CTMA(CoordinateMedian()),
            "preaggregators": [NNM()],
            "estimator": WorkerMomentum(0.9),
            "attackers": [3],
            "attack": ReverseGradient(10),
        },
        {"precision": "bf16-mixed"},
    ),
    "ctma of geometric median, loader processes": Fit(
        Options(augment=True, loader_processes=1), {"f": 1, "aggregator": CTMA(GeometricMedian())}, {"max_epochs": 1}
    ),
}


def placed(job: Fit, workers: int) -> Fit:
    return Fit(job.options, {**(job.strategy or {}), "workers": workers}, job.trainer)


@pytest.mark.parametrize("name", CASES)
def test_four_workers_on_one_two_three_and_four_ranks(ranks, name):
    job = placed(CASES[name], 4)
    results = {world: ranks(world).run(fit, job, world) for world in (1, 2, 3, 4)}
    alone = results[1][0]
    for world, outcome in results.items():
        for result in outcome:
            assert not same_bits(result["parameters"], alone["parameters"]), f"{world} ranks"
            assert not same_bits(result["buffers"], alone["buffers"]), f"{world} ranks"
            # the ranks share out the training steps
        assert sum(result["calls"] for result in outcome) == alone["calls"]
        assert max(result["calls"] for result in outcome) == alone["calls"] // 4 * -(-4 // world)
    before = {key: value.detach() for key, value in job.module(job.options).named_parameters()}
    assert same_bits(alone["parameters"], before), "nothing was trained"


def test_a_rank_receives_what_a_ring_all_reduce_would(ranks):
    total = sum(value.numel() for value in Fit().module(Options()).parameters())
    for world in (2, 3, 4):
        for result in ranks(world).run(fit, Fit(strategy={"f": 0, "aggregator": CoordinateMedian()}), world):
            assert 0 < result["received"] <= 2 * total * 4, "2 d float32 per rank, for rows and aggregate together"
    (alone,) = ranks(1).run(fit, Fit(strategy={"f": 0, "aggregator": CoordinateMedian(), "workers": 4}), 1)
    assert alone["received"] == 0


def test_fewer_coordinates_than_ranks(ranks):
    results = ranks(4).run(exchange_few_coordinates, 3)
    for result in results[1:]:
        assert torch.equal(result, results[0])
    assert torch.equal(results[0], torch.tensor([1.5, 1.5, 1.5]))


def exchange_few_coordinates(total: int) -> torch.Tensor:
    """Aggregate four rows of a few coordinates, on four ranks of which most hold none."""
    import torch.distributed as dist

    exchange, cpu = AllToAll(), torch.device("cpu")
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    placement = exchange.place(4)
    wire = exchange.open(total, dtype=torch.float32, device=cpu, placement=placement)
    wire.row(placement.rank).fill_(float(placement.rank))
    vectors, facts = wire.deliver(range(4), torch.ones(2, dtype=torch.int64))
    assert facts.tolist() == [0, 0, 0, 0, 4, 4]
    return wire.assemble(CoordinateMedian()(Stack(vectors, f=1, slice=wire.slice))).clone()
