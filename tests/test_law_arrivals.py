"""Laws of stale workers: any layout and any resumption trains the same bits, and a message is what its worker made where it fetched."""

import pytest

from lightning_byz.aggregators import CTMA, CoordinateMedian, GeometricMedian
from lightning_byz.arrivals import FixedDelays, RandomArrivals
from lightning_byz.attacks import IPM, NonFinite, Replay, SignFlip
from lightning_byz.data import Everyone
from lightning_byz.estimators import Storm, WorkerMomentum
from lightning_byz.exchange import AllGather, AllToAll
from lightning_byz.optimizers import Anytime
from lightning_byz.preaggregators import NNM
from tests.scenarios import Fit, Options, fit, same_bits

SQUARED = {
    "workers": 8,
    "f": 2,
    "aggregator": CTMA(CoordinateMedian()),
    "estimator": WorkerMomentum(0.9),
    "attackers": [1, 6],
    "attack": IPM(0.5),
    "arrivals": RandomArrivals("squared", byzantine_share=0.35),
    "weights": "counts",
}
OPTIONS = Options(dropout=0.2, batch_norm=True, augment=True, step_scheduler=True, samples=64)
CASES = {
    "momentum": SQUARED,
    "double momentum": {**SQUARED, "estimator": Storm(0.25), "anytime": Anytime(0.1), "partition": Everyone()},
    "delays, replay, pre-aggregated": {
        **SQUARED,
        "estimator": Storm(),
        "preaggregators": [NNM()],
        "weights": None,
        "attack": Replay(2),
        "arrivals": FixedDelays([0, 1, 2, 0, 3, 1, 1, 5]),
    },
    "not finite, by age": {
        **SQUARED,
        "aggregator": GeometricMedian(),
        "estimator": Storm("released"),
        "attack": NonFinite(),
        "weights": "samples*counts",
        "age_decay": 0.9,
        "max_share": 0.4,
    },
}


def job(name: str, epochs: int = 3, *, exchange=None, **rest) -> Fit:
    return Fit(OPTIONS, {**CASES[name], "exchange": exchange}, {"max_epochs": epochs}, **rest)


@pytest.mark.parametrize("name", CASES)
def test_the_layout_does_not_matter(ranks, name):
    alone = ranks(1).run(fit, job(name), 1)[0]
    assert alone["global_step"] == (12 if "delays" in name else 48)
    for world in (2, 4, 8):
        exchange = AllGather() if world == 4 else AllToAll()
        for result in ranks(world).run(fit, job(name, exchange=exchange), world):
            assert not same_bits(result["parameters"], alone["parameters"])
            assert not same_bits(result["buffers"], alone["buffers"])


@pytest.mark.parametrize("name", CASES)
def test_resuming_equals_no_interruption(ranks, tmp_path, name):
    whole, path = ranks(1).run(fit, job(name, 4), 1)[0], str(tmp_path / "half.ckpt")
    half = ranks(2).run(fit, job(name, 2, save=path), 2)[0]
    assert same_bits(half["parameters"], whole["parameters"]), "the second half trains nothing"
    ranks(4).kill()
    for result in ranks(4).run(fit, job(name, 4, seed=99, checkpoint=path, exchange=AllGather()), 4):
        assert not same_bits(result["parameters"], whole["parameters"])
        assert not same_bits(result["buffers"], whole["buffers"])


def test_each_stage_matters(ranks):
    base = ranks(1).run(fit, job("momentum"), 1)[0]
    for change in (
        {"weights": None},
        {"age_decay": 0.5},
        {"attack": SignFlip()},
        {"arrivals": RandomArrivals("uniform", byzantine_share=0.35)},
        {"arrivals": RandomArrivals("squared", byzantine_share=0.2)},
        {"estimator": WorkerMomentum(0.5)},
    ):
        other = ranks(1).run(fit, Fit(OPTIONS, {**SQUARED, **change}, {"max_epochs": 3}), 1)[0]
        assert same_bits(other["parameters"], base["parameters"]), change
