"""Stages that the library has never heard of are remembered, moved to another layout and resumed bit for bit."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from lightning_byz.aggregators import CoordinateMedian, Mean
from lightning_byz.estimators import Gradient
from lightning_byz.exchange import AllGather, AllToAll, Local
from lightning_byz.exchange.pairwise import slice_bounds
from lightning_byz.memory import Memory, Sliced
from lightning_byz.rounds import Aggregation, MemoryFile, WorkerBuffers
from tests.recording import Referring
from tests.rounds import robust
from tests.scenarios import Fit, Options, fit, same_bits
from tests.test_lightning_life import OnlyTrainable, with_callbacks
from tests.users_stages import Echo, LedgerStrategy, TwoAverages

STRATEGY = {
    "workers": 4,
    "f": 1,
    "aggregator": CoordinateMedian(),
    "estimator": TwoAverages(),
    "attackers": [1],
    "attack": Echo(),
}
OPTIONS = Options(dropout=0.2, augment=True)


def job(epochs: int, kind=None, **rest) -> Fit:
    more = {} if kind is None else {"kind": kind}
    return Fit(OPTIONS, {**STRATEGY, **rest.pop("strategy", {})}, {"max_epochs": epochs}, **more, **rest)


def saved_by(path: str) -> dict:
    return torch.load(path, weights_only=True)["lightning_byz"]["optimizers"][0]


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1), (4, 3), (3, 4)])
@pytest.mark.parametrize("kind", [None, LedgerStrategy], ids=["estimator and attack", "a table at the rules' side"])
def test_resumed_on_another_layout(ranks, tmp_path, kind, first, then):
    path = str(tmp_path / "half.ckpt")
    whole = ranks(1).run(fit, job(3, kind), 1)[0]
    half = ranks(first).run(fit, job(1, kind, save=path), first)[0]
    assert same_bits(half["parameters"], whole["parameters"]), "the rest trains nothing"
    for result in ranks(then).run(fit, job(3, kind, seed=99, checkpoint=path), then):
        assert not same_bits(result["parameters"], whole["parameters"])
    if then > 1:
        gathered = job(3, kind, seed=99, checkpoint=path, strategy={"exchange": AllGather()})
        for result in ranks(then).run(fit, gathered, then):
            assert not same_bits(result["parameters"], whole["parameters"])


def test_the_file_holds_them_by_worker_and_stage(ranks, tmp_path):
    paths = [str(tmp_path / f"{world}.ckpt") for world in (1, 3)]
    for world, path in zip((1, 3), paths, strict=True):
        ranks(world).run(fit, job(1, LedgerStrategy, save=path), world)
    alone, spread = map(saved_by, paths)
    total = sum(value.numel() for value in Fit().module(Options()).parameters())
    assert sorted(alone["memories"]) == [0, 1, 2, 3]
    for worker in range(4):
        own, other = (file["memories"][worker]["estimator"] for file in (alone, spread))
        assert own["length"] == other["length"] > 0
        assert not same_bits({n: own[n] for n in ("fast", "slow")}, {n: other[n] for n in ("fast", "slow")})
        assert (own["fast"].shape, own["fast"].dtype, own["slow"].dtype) == ((total,), torch.float32, torch.float64)
    assert alone["counts"] == spread["counts"] == {"adopted": [6] * 4}
    assert alone["rules"]["ledger"]["table"].shape == (4, total)
    for stage in ("ledger", "attack"):
        assert not same_bits(alone["rules"][stage], spread["rules"][stage])
    assert len({worker["estimator"]["length"] for worker in alone["memories"].values()}) == 4, "each its own"


@pytest.mark.parametrize("lost", ["length", "slow", "attack", "ledger"])
def test_each_of_them_matters(ranks, tmp_path, lost):
    path, blanked = str(tmp_path / "half.ckpt"), str(tmp_path / "blanked.ckpt")
    ranks(1).run(fit, job(1, LedgerStrategy, save=path), 1)
    file = torch.load(path, weights_only=True)
    entry = file["lightning_byz"]["optimizers"][0]
    if lost in entry["rules"]:
        del entry["rules"][lost]
    else:
        for memory in entry["memories"].values():
            memory["estimator"][lost] = memory["estimator"][lost] * 0
    torch.save(file, blanked)
    kept, other = (ranks(1).run(fit, job(3, LedgerStrategy, checkpoint=name), 1)[0] for name in (path, blanked))
    assert same_bits(kept["parameters"], other["parameters"])


def test_numbers_stay_and_vectors_follow_their_parameters(ranks):
    thawing = Fit(strategy=STRATEGY, module=OnlyTrainable, trainer={"max_epochs": 3}, kind=LedgerStrategy)
    results = [ranks(world).run(with_callbacks, thawing, ["thaw"], world)[0] for world in (1, 2, 4)]
    for result in results[1:]:
        assert not same_bits(result["parameters"], results[0]["parameters"])


# ---------------------------------------------------------------------- what no stage of ours leaves: points, numbers


class Numbers(Gradient):
    """Remembers a whole number, and one that is none."""

    def init(self, like):
        return {"times": 0, "length": 0.0}


STEPS, RAMP = [5, 9, 7, 5], torch.tensor([1.0, 2.0, 3.0])
"""At the parameters of which step each of four workers is; those of step t are t times (1, 2, 3)."""


def of_three_parameters() -> tuple[Aggregation, MemoryFile, WorkerBuffers]:
    """Return what this rank's workers, of four, remember of three parameters, its file, and their buffers: none."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    exchange, cpu, module = AllToAll(), torch.device("cpu"), torch.nn.Linear(3, 1, bias=False)
    placement = exchange.place(4)
    round = replace(robust(4, 0, Mean()), estimator=Numbers())
    aggregation = Aggregation(round, exchange, placement, device=cpu)
    aggregation.fit(list(module.named_parameters()))
    return aggregation, MemoryFile(exchange, placement, device=cpu), WorkerBuffers(module, placement.local)


def file_of_points() -> dict:
    """Return this rank's file after nine steps and a fault."""
    (aggregation, file, buffers), local = of_three_parameters(), AllToAll().place(4).local
    own = {STEPS[worker]: STEPS[worker] * RAMP for worker in local}
    workers = {worker: {"estimator": {"times": 2**60 + worker, "length": 0.1 + worker}} for worker in local}
    counts, rules = {"adopted": [1, 2, 3, 4], "point": STEPS}, {"rule": Sliced({"table": torch.stack([RAMP, -RAMP])})}
    aggregation.adopt(Memory(9, 1, workers, rules=rules, counts=counts, points=own), aggregation.layout)
    return file.collect({0: aggregation}, buffers, seed=3)


def memory_from(saved: dict) -> dict:
    """Return what this rank remembers of a file."""
    aggregation, file, buffers = of_three_parameters()
    file.restore(saved, {0: aggregation}, buffers)
    memory = aggregation.memory
    points = {step: point.tolist() for step, point in memory.points.items()}
    return {"step": memory.step, "faults": memory.faults, "counts": memory.counts, "points": points}


@pytest.mark.parametrize("first", [1, 2])
def test_numbers_are_in_the_file_and_points_once_and_with_whoever_refers_to_them(ranks, first):
    saved, *others = ranks(first).run(file_of_points)
    entry = saved["optimizers"][0]
    assert {step: point.tolist() for step, point in entry["points"].items()} == {
        step: [step, 2 * step, 3 * step] for step in (5, 7, 9)
    }
    kept = {worker: own["estimator"] for worker, own in entry["memories"].items()}
    assert kept == {worker: {"times": 2**60 + worker, "length": 0.1 + worker} for worker in range(4)}
    assert {type(value) for own in kept.values() for value in own.values()} == {int, float}
    assert entry["rules"]["rule"]["table"].tolist() == [[1, 2, 3], [-1, -2, -3]]
    for other in others:
        assert [other["optimizers"][0][name] for name in ("points", "rules")] == [{}, {}], "rank 0 writes the file"
    for then, needed in ((1, [{5, 7, 9}]), (2, [{5, 9}, {5, 7}])):
        for memory, own in zip(ranks(then).run(memory_from, saved), needed, strict=True):
            assert memory == {
                "step": 9,
                "faults": 1,
                "counts": {"adopted": [1, 2, 3, 4], "point": STEPS},
                "points": {step: [step, 2 * step, 3 * step] for step in own},
            }


def test_points_follow_their_parameters_by_name_and_new_ones_are_where_they_start():
    aggregation = Aggregation(robust(2, 0, Mean()), Local(), Local().place(2), device=torch.device("cpu"))
    one, other, late = (torch.nn.Parameter(torch.full((2,), start)) for start in (0.0, 0.0, 8.0))
    aggregation.fit([("one", one), ("other", other)])
    points = {3: torch.tensor([1.0, 2.0, 3.0, 4.0]), 5: torch.tensor([5.0, 6.0, 7.0, 8.0])}
    aggregation.memory = Memory(6, counts={"point": [3, 5]}, points=points)
    aggregation.fit([("late", late), ("other", other)])
    moved = {step: point.tolist() for step, point in aggregation.memory.points.items()}
    assert moved == {3: [8, 8, 3, 4], 5: [8, 8, 7, 8]}
    assert (aggregation.memory.step, aggregation.memory.counts) == (6, {"point": [3, 5]})


def slices_of_the_reference() -> list[tuple[int, int, list[float]]]:
    """Return where this rank's part of the reference lies, and its values: after a step, another layout, a file."""
    of_three_parameters()
    placement, seen = AllToAll().place(4), []
    aggregation = Aggregation(robust(4, 0, Referring()), AllToAll(), placement, device=torch.device("cpu"))
    one, other = (torch.nn.Parameter(torch.zeros(70)) for _ in range(2))
    aggregation.fit([("one", one)])
    aggregation.step({worker: aggregation.collect(worker, [torch.arange(70.0)]) for worker in placement.local})
    seen.append(aggregation.memory.rules["reference"])
    aggregation.fit([("other", other), ("one", one)])
    seen.append(aggregation.memory.rules["reference"])
    whole = torch.arange(140.0)
    aggregation.adopt(Memory(rules={"reference": Sliced({"aggregate": whole})}), aggregation.layout)
    seen.append(aggregation.memory.rules["reference"])
    whole.fill_(-1.0)  # what is remembered is in memory of its own
    return [(held.slice.start, held.slice.stop, held.values["aggregate"].tolist()) for held in seen]


def test_what_lies_at_the_rules_side_says_where(ranks):
    wholes = [list(range(70)), [0] * 70 + list(range(70)), list(range(140))]
    for rank, seen in enumerate(ranks(2).run(slices_of_the_reference)):
        bounds = [slice_bounds(len(whole), 2)[rank] for whole in wholes]
        assert seen == [(*ends, whole[slice(*ends)]) for ends, whole in zip(bounds, wholes, strict=True)]
