"""Laws of compressed messages: any layout and any resumption trains the same bits, under every link, and attackers obey the wire format."""

import pytest

from lightning_byz.aggregators import CTMA, CoordinateMedian
from lightning_byz.arrivals import RandomArrivals
from lightning_byz.attacks import ALIE, IPM, NonFinite, ReverseGradient, SignFlip
from lightning_byz.compressors import Cast, Identity, LowRank, Quantize, RandomK, ScaledSign, TopK
from lightning_byz.data import Everyone
from lightning_byz.estimators import Gradient, Storm, WorkerMomentum
from lightning_byz.exchange import AllGather, AllToAll
from lightning_byz.links import EF21, Diana, Direct, Downlink, ErrorFeedback, HeavyBall
from lightning_byz.optimizers import Anytime
from lightning_byz.preaggregators import NNM
from tests.scenarios import Fit, Options, fit, same_bits

BASE = {
    "workers": 8,
    "f": 2,
    "preaggregators": [NNM()],
    "aggregator": CTMA(CoordinateMedian()),
    "estimator": WorkerMomentum(0.9),
    "attackers": [1, 6],
    "attack": SignFlip(),
}
OPTIONS = Options(dropout=0.2, batch_norm=True, augment=True, step_scheduler=True, samples=64)
EVERYTHING = {
    **BASE,
    "estimator": Storm(0.25),
    "anytime": Anytime(0.1),
    "partition": Everyone(),
    "arrivals": RandomArrivals("squared", byzantine_share=0.35),
    "weights": "counts",
    "link": EF21(),
    "compressor": TopK(0.05),
    "attack": IPM(0.5),
}
CASES = {
    "everything": EVERYTHING,
    "everything, both ways": {**EVERYTHING, "downlink": Downlink(TopK(0.1), EF21())},
    "mirrors": {**BASE, "link": EF21(), "compressor": TopK(0.05), "downlink": Cast("bfloat16")},
    "mirrors by tensor": {**BASE, "link": EF21(), "compressor": TopK(0.05, per="tensor"), "attack": ALIE()},
    "signs": {**BASE, "link": ErrorFeedback(), "compressor": ScaledSign(), "attack": ReverseGradient()},
    "shifts": {**BASE, "estimator": Gradient(), "link": Diana(), "compressor": RandomK(0.2)},
    "levels": {**BASE, "estimator": Gradient(), "link": Diana(), "compressor": Quantize(4), "attack": NonFinite()},
    "one mask": {**BASE, "estimator": Gradient(), "link": HeavyBall(), "compressor": RandomK(0.2, shared=True)},
    "no feedback": {**BASE, "compressor": TopK(0.05), "attack": NonFinite()},
    "half": {**BASE, "compressor": Cast("float16"), "downlink": Downlink(ScaledSign(), ErrorFeedback())},
    "all of it": {**BASE, "link": EF21(), "compressor": Identity()},
}


def job(name: str, epochs: int = 3, *, exchange=None, **rest) -> Fit:
    return Fit(OPTIONS, {**CASES[name], "exchange": exchange}, {"max_epochs": epochs}, **rest)


@pytest.mark.parametrize("name", CASES)
def test_the_layout_does_not_matter(ranks, name):
    alone = ranks(1).run(fit, job(name), 1)[0]
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


@pytest.mark.parametrize(
    "change",
    [
        {"link": Direct()},
        {"link": ErrorFeedback()},
        {"compressor": Identity()},
        {"compressor": TopK(0.1)},
        {"anytime": None},
        {"estimator": Storm(0.5)},
        {"estimator": WorkerMomentum(0.75)},
        {"preaggregators": []},
        {"aggregator": CoordinateMedian()},
        {"weights": None},
        {"attack": None, "attackers": []},
        {"arrivals": RandomArrivals("uniform", byzantine_share=0.35)},
        {"downlink": Cast("bfloat16")},
    ],
    ids=str,
)
def test_each_ingredient_matters(ranks, change):
    base = ranks(1).run(fit, job("everything"), 1)[0]
    other = ranks(1).run(fit, Fit(OPTIONS, {**EVERYTHING, **change}, {"max_epochs": 3}), 1)[0]
    assert same_bits(other["parameters"], base["parameters"])


def test_factors_travel_whole(ranks):
    options = {**BASE, "link": EF21(), "compressor": LowRank(1)}
    alone = ranks(1).run(fit, Fit(OPTIONS, options, {"max_epochs": 2}), 1)[0]
    for result in ranks(2).run(fit, Fit(OPTIONS, {**options, "exchange": AllGather()}, {"max_epochs": 2}), 2):
        assert not same_bits(result["parameters"], alone["parameters"])
