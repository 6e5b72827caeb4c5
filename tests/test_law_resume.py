"""Law 7: resuming in a new process, on any layout, equals no interruption, bit for bit."""

import pytest
import torch

from lightning_byz.aggregators import CTMA, CenteredClipping, CoordinateMedian
from lightning_byz.attacks import Replay, ReverseGradient
from lightning_byz.estimators import WorkerMomentum
from lightning_byz.exchange import AllGather, AllToAll, Local
from lightning_byz.preaggregators import NNM
from tests.contracts.wrong_estimators import TwoAverages
from tests.ranks import RankFailure
from tests.scenarios import Fit, Options, fit, same_bits

STRATEGY = {
    "workers": 4,
    "f": 1,
    "aggregator": CTMA(CoordinateMedian()),
    "preaggregators": [NNM()],
    "estimator": WorkerMomentum(0.9),
    "attackers": [3],
    "attack": ReverseGradient(10),
}
REMEMBERING = {**STRATEGY, "f": 2, "workers": 5, "aggregator": CenteredClipping(), "attack": Replay(3)}
OPTIONS = Options(dropout=0.2, batch_norm=True, augment=True, step_scheduler=True)


def job(epochs: int, *, seed: int = 3, strategy: dict | None = None, **rest) -> Fit:
    return Fit(OPTIONS, strategy or STRATEGY, {"max_epochs": epochs, "accumulate_grad_batches": 2}, seed=seed, **rest)


@pytest.mark.parametrize(("first", "then"), [(1, 1), (2, 2), (2, 1), (1, 4), (4, 3)])
def test_resume_equals_no_interruption(ranks, tmp_path, first, then):
    whole = ranks(1).run(fit, job(4), 1)[0]
    path = str(tmp_path / "half.ckpt")
    half = ranks(first).run(fit, job(2, save=path), first)[0]
    assert same_bits(half["parameters"], whole["parameters"]), "the second half trains nothing"
    ranks(then).kill()
    for result in ranks(then).run(fit, job(4, seed=99, checkpoint=path), then):
        assert not same_bits(result["parameters"], whole["parameters"])
        assert not same_bits(result["buffers"], whole["buffers"])
        assert result["global_step"] == whole["global_step"]


@pytest.mark.parametrize(
    ("first", "then"),
    [((AllToAll(), 2), (AllGather(), 4)), ((AllToAll(), 2), (Local(), 1)), ((AllGather(), 3), (None, 2))],
)
def test_resume_through_another_exchange_equals_no_interruption(ranks, tmp_path, first, then):
    whole, path = ranks(1).run(fit, job(4, strategy=REMEMBERING), 1)[0], str(tmp_path / "half.ckpt")

    def through(exchange, world, epochs, **rest):
        return ranks(world).run(fit, job(epochs, strategy={**REMEMBERING, "exchange": exchange}, **rest), world)

    half = through(*first, 2, save=path)[0]
    assert same_bits(half["parameters"], whole["parameters"]), "the second half trains nothing"
    for result in through(*then, 4, seed=99, checkpoint=path):
        assert not same_bits(result["parameters"], whole["parameters"])
        assert not same_bits(result["buffers"], whole["buffers"])


def test_the_momentum_in_the_file_matters(ranks, tmp_path):
    path, blanked = str(tmp_path / "half.ckpt"), str(tmp_path / "blanked.ckpt")
    ranks(1).run(fit, job(2, save=path), 1)
    saved = torch.load(path, weights_only=True)
    memories = saved["lightning_byz"]["optimizers"][0]["memories"]
    assert sorted(memories) == [0, 1, 2, 3]
    for memory in memories.values():
        memory["estimator"]["momentum"].zero_()
    torch.save(saved, blanked)
    kept = ranks(1).run(fit, job(4, checkpoint=path), 1)[0]
    lost = ranks(1).run(fit, job(4, checkpoint=blanked), 1)[0]
    assert same_bits(kept["parameters"], lost["parameters"])


def test_another_number_of_workers_is_refused(ranks, tmp_path):
    path = str(tmp_path / "half.ckpt")
    ranks(1).run(fit, job(1, save=path), 1)
    with pytest.raises(RankFailure, match=r"memories of 4 workers and this run has 6"):
        ranks(1).run(fit, job(2, strategy={**STRATEGY, "workers": 6}, checkpoint=path), 1)


def test_plain_ddp_reads_the_file(ranks, tmp_path):
    path = str(tmp_path / "half.ckpt")
    saved = ranks(1).run(fit, job(1, save=path), 1)[0]
    plain = Fit(OPTIONS, None, {"max_epochs": 1}, checkpoint=path)
    assert not same_bits(ranks(1).run(fit, plain, 1)[0]["parameters"], saved["parameters"])


@pytest.mark.parametrize(("first", "then"), [(1, 1), (2, 1), (1, 2)])
def test_numbers_in_a_memory_are_kept_to_the_bit(ranks, tmp_path, first, then):
    remembering = {**STRATEGY, "estimator": TwoAverages(0.9)}
    whole = ranks(1).run(fit, job(2, strategy=remembering), 1)[0]
    path = str(tmp_path / "half.ckpt")
    ranks(first).run(fit, job(1, strategy=remembering, save=path), first)
    for result in ranks(then).run(fit, job(2, seed=99, strategy=remembering, checkpoint=path), then):
        assert not same_bits(result["parameters"], whole["parameters"])
