"""Law 2: the same workers on 1, 2, 3 and 4 ranks, through any exchange, train the same parameters, bit for bit."""

from dataclasses import dataclass

import pytest
import torch

from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian, GeometricMedian, Krum, Mean, TrimmedMean
from lightning_byz.attacks import ALIE, IPM, Gaussian, NonFinite, ReverseGradient, SignFlip
from lightning_byz.estimators import WorkerMomentum
from lightning_byz.exchange import AllGather, AllToAll, Local, Placement
from lightning_byz.kernels import paths
from lightning_byz.preaggregators import NNM
from lightning_byz.rounds import Defence
from lightning_byz.rounds.start_up import start_up_line
from lightning_byz.stack import Stack
from tests.conftest import KERNELS
from tests.scenarios import Fit, Options, attempt, fit, same_bits

pytestmark = KERNELS

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
    "krum, gaussian": Fit(
        STOCHASTIC,
        {"f": 1, "aggregator": Krum(), "attackers": [2], "attack": Gaussian(0.5)},
        {"max_epochs": 1},
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


@pytest.mark.parametrize("name", ["median, momentum, sign flip", "nnm, ctma, momentum, reverse", "krum, gaussian"])
def test_any_exchange_trains_the_same(ranks, name):
    def through(exchange, world):
        job = placed(CASES[name], 4)
        job.strategy["exchange"] = exchange
        return ranks(world).run(fit, job, world)

    (alone,) = through(Local(), 1)
    layouts = [(AllToAll(), 1), (AllToAll(), 3), *((AllGather(), world) for world in (1, 2, 3, 4))]
    for exchange, world in layouts:
        for result in through(exchange, world):
            assert not same_bits(result["parameters"], alone["parameters"]), f"{exchange} on {world} ranks"
            assert not same_bits(result["buffers"], alone["buffers"]), f"{exchange} on {world} ranks"


def test_through_all_gather_a_rank_receives_the_others_messages(ranks):
    total = sum(value.numel() for value in Fit().module(Options()).parameters())
    strategy = {"f": 1, "aggregator": CoordinateMedian(), "workers": 5, "exchange": AllGather()}
    for world in (1, 2, 3):
        results = ranks(world).run(fit, Fit(strategy=strategy), world)
        for result, own in zip(results, Placement(5, world, 0).shares, strict=True):
            assert result["received"] == (5 - own) * total * 4


def test_the_start_up_line_names_the_exchange_and_whom_it_trusts():
    placement, defence = Placement(4, 4, 0), Defence(4, 1, CoordinateMedian())
    lines = {exchange: start_up_line(defence, exchange, placement) for exchange in (AllToAll(), AllGather(), Local())}
    assert (
        "4 workers on 4 ranks, f = 1; Gradient() -> CoordinateMedian(); no attack; exchange AllGather trusts no rank as aggregator;"
        in lines[AllGather()]
    )
    assert "exchange AllToAll trusts every rank as aggregator of its slice;" in lines[AllToAll()]
    assert "exchange Local trusts this process;" in lines[Local()]
    kernels = "; compiled kernels" if paths.chosen() else "; kernels of torch"
    assert all(line.endswith(kernels) for line in (lines[Local()], start_up_line(defence, Local(), placement)))
    slow = start_up_line(defence, Local(), placement, parameters=10**7)
    assert ("pip install 'lightning-byz[fast]'" in slow) != paths.chosen()


def test_a_rule_across_coordinates_runs_where_ranks_see_all(ranks):
    strategy = {"f": 1, "aggregator": LargestCoordinate(), "workers": 4}
    (alone,) = ranks(1).run(fit, Fit(strategy=strategy), 1)
    for result in ranks(2).run(fit, Fit(strategy={**strategy, "exchange": AllGather()}), 2):
        assert not same_bits(result["parameters"], alone["parameters"])
    for kind, sentence in ranks(2).run(attempt, Fit(strategy=strategy), 2):
        assert kind == "ValueError"
        assert "LargestCoordinate gives other values on a slice" in sentence


@dataclass(frozen=True)
class LargestCoordinate(Aggregator):
    """Average the rows, each divided by its largest coordinate: computed across coordinates by itself."""

    def __call__(self, stack, *, generator=None):
        return (stack.vectors / stack.vectors.abs().amax(1, keepdim=True).clamp(min=1.0)).mean(0)


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
