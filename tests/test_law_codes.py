"""Laws of coded steps: any layout and any resumption trains the same bits, and workers of a group compute the same bits."""

from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from lightning_byz.attacks import IPM, Constant, Optimized, Replay
from lightning_byz.codes import Cyclic, Repetition, Solon
from lightning_byz.estimators import WorkerMomentum
from lightning_byz.exchange import AllGather, AllToAll, Local
from lightning_byz.optimizers import Anytime
from lightning_byz.rounds.coded import Coded
from lightning_byz.rounds.coded_wire import CodedWire
from tests.scenarios import Fit, HiddenAverage, Options, fit, same_bits

OPTIONS = Options(dropout=0.2, batch_norm=True, augment=True, step_scheduler=True, samples=32)
BASE: dict[str, Any] = {"estimator": WorkerMomentum(0.9), "attackers": [1], "attack": Replay(2)}
CASES: dict[str, dict[str, Any]] = {
    "solon": {**BASE, "workers": 8, "code": Solon(1, 2), "attackers": [1, 6]},
    "repetition": {**BASE, "workers": 6, "code": Repetition(1), "anytime": Anytime(0.1)},
    "cyclic": {**BASE, "workers": 4, "code": Cyclic(1), "buffers": "mean"},
}
"""Groups of 4, of 3, and one of 4: on 4 ranks all of them are cut."""
ALONE = {"solon": {**BASE, "workers": 4, "code": Solon(1, 2)}}
"""What runs with one worker per rank, where that would be too many ranks."""
SEARCHING = {**CASES["cyclic"], "attack": Optimized(IPM(), evaluations=5), "f": 1}


def job(name: str, epochs: int = 2, *, exchange=None, **rest) -> Fit:
    return Fit(OPTIONS, {**CASES[name], "exchange": exchange}, {"max_epochs": epochs}, **rest)


def check_layouts(ranks, strategy: dict[str, Any], layouts) -> None:
    """All layouts train the bits of one process, and log its means of the training loss."""
    alone = ranks(1).run(fit, Fit(OPTIONS, {**strategy, "exchange": Local()}), 1)[0]
    parts = {part for own in strategy["code"].parts(strategy["workers"]) for part in own}
    assert alone["global_step"] == 2 * (OPTIONS.samples // len(parts) // OPTIONS.batch_size)
    for world, exchange in layouts:
        for result in ranks(world).run(fit, Fit(OPTIONS, {**strategy, "exchange": exchange}), world):
            assert not same_bits(result["parameters"], alone["parameters"])
            assert not same_bits(result["buffers"], alone["buffers"])
            losses = {key: value for key, value in alone["metrics"].items() if key.startswith("train")}
            assert losses == pytest.approx({key: result["metrics"][key] for key in losses}, rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_layout_does_not_matter(ranks, name):
    check_layouts(ranks, CASES[name], [(1, AllGather()), (2, AllToAll()), (4, AllGather()), (4, AllToAll())])


@pytest.mark.parametrize("name", ["solon", "repetition"])
def test_one_worker_per_rank_is_a_layout(ranks, name):
    strategy = ALONE.get(name, CASES[name])
    check_layouts(ranks, strategy, [(strategy["workers"], AllToAll())])


def test_searching_attackers_find_the_same_on_all_layouts(ranks):
    alone = ranks(1).run(fit, Fit(OPTIONS, SEARCHING, {"max_epochs": 1}), 1)[0]
    for result in ranks(2).run(fit, Fit(OPTIONS, SEARCHING, {"max_epochs": 1}), 2):
        assert not same_bits(result["parameters"], alone["parameters"])


@pytest.mark.parametrize("name", CASES)
def test_resuming_equals_no_interruption(ranks, tmp_path, name):
    """In the parameters, and in all that is saved: what liars would have sent, and how often they were named."""
    path, end, resumed = (str(tmp_path / file) for file in ("half.ckpt", "whole.ckpt", "resumed.ckpt"))
    whole = ranks(1).run(fit, job(name, 3, save=end), 1)[0]
    half = ranks(2).run(fit, job(name, 1, save=path), 2)[0]
    assert same_bits(half["parameters"], whole["parameters"]), "the rest trains nothing"
    ranks(4).kill()
    for result in ranks(4).run(fit, job(name, 3, seed=99, checkpoint=path, exchange=AllGather(), save=resumed), 4):
        assert not same_bits(result["parameters"], whole["parameters"])
        assert not same_bits(result["buffers"], whole["buffers"])
    files = [torch.load(file, weights_only=True)["lightning_byz"] for file in (end, resumed)]
    assert same(*files)
    (entry,) = files[0]["optimizers"].values()
    named, attackers = entry["counts"]["named"], CASES[name]["attackers"]
    assert [worker for worker, count in enumerate(named) if count] == attackers
    assert min(named[worker] for worker in attackers) >= whole["global_step"] - 2


def same(first: Any, second: Any) -> bool:
    """Whether two files hold the same bits."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return torch.equal(first, second) if isinstance(first, Tensor) else first == second


@pytest.mark.parametrize("name", ["repetition", "cyclic"])
def test_buffers_that_the_loss_depends_on_are_resumed_per_part(ranks, tmp_path, name):
    """Where each worker has several parts, each has buffers of its own, of which a file holds all."""
    path, plain = str(tmp_path / "half.ckpt"), {**CASES[name], "attack": None, "attackers": []}
    whole = ranks(1).run(fit, Fit(OPTIONS, plain, {"max_epochs": 2}, module=HiddenAverage), 1)[0]
    ranks(2).run(fit, Fit(OPTIONS, plain, {"max_epochs": 1}, module=HiddenAverage, save=path), 2)
    again = Fit(OPTIONS, plain, {"max_epochs": 2}, module=HiddenAverage, checkpoint=path, seed=99)
    for result in ranks(4).run(fit, again, 4):
        assert not same_bits(result["parameters"], whole["parameters"])
        assert not same_bits(result["buffers"], whole["buffers"])


@pytest.mark.parametrize("name", CASES)
def test_what_the_rules_remember_is_in_the_file_and_matters(ranks, tmp_path, name):
    path = str(tmp_path / "half.ckpt")
    kept = ranks(1).run(fit, job(name, 1, save=path), 1)[0]
    saved = torch.load(path, weights_only=True)
    (entry,) = saved["lightning_byz"]["optimizers"].values()
    assert entry["memories"] == {}, "workers remember nothing"
    assert set(entry["rules"]) == {"mean", "attack"}
    code, n = CASES[name]["code"], CASES[name]["workers"]
    d = sum(value.numel() for value in kept["parameters"].values())
    assert entry["rules"]["mean"]["momentum"].shape == (d,)
    assert {len(row) for row in entry["rules"]["attack"].values()} == {code.coordinates(d).coded}
    assert len(entry["rules"]["attack"]) == 2 * len(CASES[name]["attackers"])
    assert len(saved["lightning_byz"]["buffers"]) == n * len(code.parts(n)[0])
    whole = ranks(1).run(fit, job(name, 2, checkpoint=path), 1)[0]  # liars are left out, whatever they remember
    for stage in ("attack", "mean"):
        for value in entry["rules"][stage].values():
            value.zero_()
        torch.save(saved, path)
        other = ranks(1).run(fit, job(name, 2, checkpoint=path), 1)[0]
        assert bool(same_bits(other["parameters"], whole["parameters"])) == (stage == "mean"), stage


class Freezes(pl.Callback):
    """Freezes some parameters before a step, and thaws them later."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.network[0].requires_grad_(not 2 <= trainer.global_step < 4)
        pl_module.network[-1].bias.requires_grad_(trainer.global_step < 3)


@pytest.mark.parametrize("name", CASES)
def test_frozen_parameters_and_accumulated_batches_are_those_of_one_process(ranks, name):
    trainer = {"callbacks": [Freezes()], "accumulate_grad_batches": 2, "max_epochs": 6 if name == "cyclic" else 3}
    alone = ranks(1).run(fit, Fit(OPTIONS, CASES[name], trainer), 1)[0]
    for result in ranks(2).run(fit, Fit(OPTIONS, CASES[name], trainer), 2):
        assert not same_bits(result["parameters"], alone["parameters"])
        assert result["global_step"] == alone["global_step"] >= 6


@pytest.mark.parametrize("name", CASES)
def test_gradients_that_overflow_are_no_fault(ranks, name):
    """A scale that is far too large goes down step by step."""
    strategy = {**CASES[name], "attack": Constant(3.0)}
    job = Fit(Options(samples=128, loss_factor=32.0, learning_rate=0.003), strategy, {"max_epochs": 2}, scaler=True)
    alone = ranks(1).run(fit, job, 1)[0]
    assert alone["scale"] <= 65536.0 / 2**4, "more steps overflow in a row than faults would be suffered"
    for result in ranks(2).run(fit, job, 2):
        assert not same_bits(result["parameters"], alone["parameters"])
        assert result["scale"] == alone["scale"]


def gradients(job: Fit, devices: int) -> dict[tuple[int, int, int], Tensor]:
    """What each local worker made of each of its parts, by step, part and worker."""
    found: dict[tuple[int, int, int], Tensor] = {}
    steps: dict[int, int] = {}
    right = Coded.told

    def told(self, worker, gradients, wire):
        steps[worker] = steps.get(worker, -1) + 1
        for part, gradient in zip(self.code.parts(self.workers)[worker], gradients, strict=True):
            found[steps[worker], part, worker] = gradient.clone()
        return right(self, worker, gradients, wire)

    with patch.object(Coded, "told", told):
        fit(job, devices)
    return found


@pytest.mark.parametrize("world", [1, 4])
@pytest.mark.parametrize("name", CASES)
def test_workers_of_a_group_compute_the_same_bits(ranks, name, world):
    made = {key: own for here in ranks(world).run(gradients, job(name, 1), world) for key, own in here.items()}
    copies: dict[tuple[int, int], list[Tensor]] = {}
    for (step, part, _), own in made.items():
        copies.setdefault((step, part), []).append(own)
    holders = {"solon": 4, "repetition": 3, "cyclic": 3}[name]
    assert all(len(own) == holders for own in copies.values())
    assert all(torch.equal(own[0], other) for own in copies.values() for other in own[1:])
    distinct = {own[0].numpy().tobytes() for own in copies.values()}
    assert len(distinct) == len(copies), "parts differ, and so do steps"


def seeds(job: Fit, devices: int) -> list[int]:
    """What this rank seeds each step's projection with."""
    found: list[int] = []
    right = CodedWire.drawn

    def drawn(self, draw):
        found.append(right(self, draw))
        return found[-1]

    with patch.object(CodedWire, "drawn", drawn):
        fit(job, devices)
    return found


def test_all_ranks_are_told_what_rank_0_has_drawn(ranks):
    first, second = ranks(2).run(seeds, job("cyclic"), 2)
    assert first == second
    assert len(set(first)) == 4
