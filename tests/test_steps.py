"""What a step must not do, found by trying: to gradients, to what users handed over, to other ranks."""

import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from lightning_byz.aggregators import Aggregator, CoordinateMedian, Mean
from lightning_byz.attacks import Attack
from lightning_byz.errors import ToleranceError
from lightning_byz.estimators import Estimator
from lightning_byz.exchange import AllGather, Local
from lightning_byz.memory import Memory
from lightning_byz.preaggregators import PreAggregator
from lightning_byz.rounds import Aggregation
from lightning_byz.stack import Stack
from tests.ranks import RankFailure
from tests.rounds import robust, take
from tests.scenarios import Classifier, Fit, Options, attempt, fit, same_bits

CPU = torch.device("cpu")


# ---------------------------------------------------------------------- gradients


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_have_the_strides_of_their_parameters(fused):
    """Fused optimizers walk raw memory."""
    weight = nn.Parameter(torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last))
    plain = nn.Parameter(torch.arange(24.0).view(1, 2, 3, 4))
    gradient = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    aggregation = Aggregation(robust(1, 0, Mean()), Local(), Local().place(1), device=CPU)
    aggregation.fit([("weight", weight), ("plain", plain)])
    aggregation.step({0: aggregation.collect(0, [gradient, gradient])})
    assert weight.grad.stride() == weight.stride()
    torch.optim.Adam([weight, plain], lr=0.1, fused=fused).step()
    assert torch.equal(weight, plain)


class Alternates(Classifier):
    """Trains its two equal layers in turn, batch by batch."""

    def __init__(self, options):
        super().__init__(options)
        torch.manual_seed(1)
        self.network = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 2))

    def on_train_batch_start(self, batch, batch_idx):
        for place in (0, 1):
            self.network[place].weight.requires_grad_(batch_idx % 2 == place)


class FreezesInside(Classifier):
    """Freezes and thaws a layer inside its training step."""

    def training_step(self, batch, batch_idx):
        self.network[0].weight.requires_grad_(batch_idx % 3 != 1)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("module", [Alternates, FreezesInside])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_trained_parameters_may_change_within_a_window(ranks, module, accumulated):
    job = Fit(
        Options(),
        {"workers": 4, "f": 1, "aggregator": CoordinateMedian()},
        {"accumulate_grad_batches": accumulated},
        module,
    )
    alone = ranks(1).run(fit, job, 1)[0]
    start = {name: value.detach() for name, value in module(Options()).named_parameters()}
    untouched = {"network.0.weight"} if module is Alternates and accumulated == 2 else set()
    assert set(start) - set(same_bits(alone["parameters"], start)) == untouched, "the second batch of two has it frozen"
    for result in ranks(2).run(fit, job, 2):
        assert not same_bits(result["parameters"], alone["parameters"])
    spread = ranks(4).run(fit, job, 4)
    for result in spread:
        assert not same_bits(result["parameters"], spread[0]["parameters"]), "ranks part"


def test_an_optimizer_may_train_nothing_for_a_while(ranks):
    job = Fit(Options(), {"workers": 4, "f": 0, "aggregator": Mean()}, module=FrozenAtFirst)
    alone = ranks(1).run(fit, job, 1)[0]
    for result in ranks(2).run(fit, job, 2):
        assert not same_bits(result["parameters"], alone["parameters"])
    assert same_bits(
        alone["parameters"], {name: value.detach() for name, value in Classifier(Options()).named_parameters()}
    )


class FrozenAtFirst(Classifier):
    def on_train_batch_start(self, batch, batch_idx):
        self.network.requires_grad_(batch_idx >= 2)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss if loss.requires_grad else loss.requires_grad_()


# ---------------------------------------------------------------------- what users hand over


class Own(Aggregator):
    """Returns a tensor of its own, or a view that repeats one number."""

    def __init__(self, kind: str) -> None:
        self.kind, self.constant = kind, torch.ones(2)

    def __call__(self, stack, *, generator=None):
        return self.constant if self.kind == "own" else stack.vectors.mean().expand(stack.vectors.shape[1])


@pytest.mark.parametrize("kind", ["own", "expanded"])
@pytest.mark.parametrize("exchange", [Local(), AllGather()], ids=["Local", "AllGather"])
def test_what_a_rule_returns_stays_its_own(kind, exchange):
    rule, parameter = Own(kind), nn.Parameter(torch.zeros(2))
    aggregation = Aggregation(robust(2, 0, rule), exchange, exchange.place(2), device=CPU)
    aggregation.fit([("parameter", parameter)])
    aggregation.step({worker: aggregation.collect(worker, [torch.full((2,), 2.0)]) for worker in (0, 1)})
    nn.utils.clip_grad_norm_([parameter], 0.1)
    assert float(parameter.grad.norm()) == pytest.approx(0.1)
    assert rule.constant.tolist() == [1, 1]


@dataclass(frozen=True)
class Remembering(Estimator):
    """Starts with one value and goes on with another."""

    first: object
    then: object

    def init(self, like):
        return {"value": self.first} if not callable(self.first) else self.first(like)

    def update(self, memory, gradients, *, count):
        return gradients[0], {"value": self.then} if not callable(self.then) else self.then(memory)


def estimated(estimator: Estimator):
    return take(replace(robust(1, 0, Mean()), estimator=estimator), Memory(), torch.ones(1, 2))


@pytest.mark.parametrize(
    ("first", "then"), [(0.5, np.float64(1.5)), (np.float32(0.5), 2.5), (0, np.int64(3)), (True, False)]
)
def test_numbers_of_other_libraries_are_numbers(first, then):
    assert estimated(Remembering(first, then)).memory.workers[0]["estimator"]["value"] == then


@pytest.mark.parametrize(
    ("then", "sentence"),
    [
        (0.5, r"returned the memory \{'value': '0.5'\}.*declares \{'value': '1'\}"),
        (lambda memory: None, "returned the memory None"),
        (lambda memory: {**memory, "more": 1}, "return the same names"),
    ],
)
def test_a_memory_of_another_kind_is_refused(then, sentence):
    with pytest.raises(ValueError, match=sentence):
        estimated(Remembering(1, then))


def test_a_memory_that_is_written_to_is_refused():
    writes = Remembering(
        lambda like: {"value": torch.zeros_like(like)}, lambda memory: {"value": memory["value"].add_(1)}
    )
    with pytest.raises(ValueError, match="wrote to its memory"):
        estimated(writes)


@pytest.mark.parametrize("first", ["word", None, [1.0]], ids=repr)
def test_a_memory_that_no_file_could_hold_is_refused_before_the_first_step(ranks, first):
    job = Fit(strategy={"workers": 2, "f": 0, "aggregator": Mean(), "estimator": Remembering(first, first)})
    kind, sentence = ranks(1).run(attempt, job, 1)[0]
    assert (kind, "Remembering.init returned" in sentence) == ("TypeError", True), sentence


class WritesTheReference(Attack):
    def replace(self, sight):
        sight.stack.reference.add_(1)
        return sight.own


class NeedsTheReference(Aggregator):
    uses_reference = True

    def __call__(self, stack, *, generator=None):
        return stack.centre()


class WritesRows(PreAggregator):
    def __call__(self, stack, *, generator=None):
        stack.vectors.mul_(2)
        return stack


class ReturnsRows(PreAggregator):
    def __call__(self, stack, *, generator=None):
        return stack.vectors


def test_attacks_and_preaggregators_write_to_nothing_either():
    round, rows = robust(4, 1, NeedsTheReference(), attackers=[3], attack=WritesTheReference()), torch.ones(4, 2)
    memory = take(robust(4, 1, NeedsTheReference()), Memory(), rows).memory
    with pytest.raises(ValueError, match=r"WritesTheReference wrote to stack\.reference"):
        take(round, memory, rows)
    for preaggregator, sentence in [
        (WritesRows(), r"WritesRows wrote to stack\.vectors"),
        (ReturnsRows(), r"ReturnsRows must return a Stack of \(4, 2\) numbers, not \(4, 2\) of torch.float32"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            take(robust(4, 1, Mean(), preaggregators=[preaggregator]), Memory(), rows)


def test_an_attack_that_cannot_go_on_is_not_a_fault_of_the_workers():
    class Refuses(Attack):
        def replace(self, sight):
            raise ToleranceError("no")

    with pytest.raises(ToleranceError, match="no"):
        take(robust(4, 1, Mean(), attackers=[3], attack=Refuses()), Memory(), torch.ones(4, 2))


# ---------------------------------------------------------------------- other ranks


class RefusesOnOneRank(Aggregator):
    """Fine where it is tried before the run; in the run, rank 1 refuses."""

    def __call__(self, stack, *, generator=None):
        if stack.total > 200 and os.environ["LOCAL_RANK"] == "1":
            raise ToleranceError("not here")
        return stack.vectors.mean(0)


def test_a_rule_that_refuses_on_one_rank_stops_all(ranks):
    with pytest.raises(RankFailure) as caught:
        ranks(2).run(fit, Fit(strategy={"f": 0, "aggregator": RefusesOnOneRank()}), 2)
    for rank, reason in enumerate(("a rule refused this step on another rank", "not here")):
        assert "3 steps in a row could not be taken" in caught.value.failures[rank]
        assert reason in caught.value.failures[rank]


def test_another_estimators_memories_are_refused_in_a_sentence(ranks, tmp_path):
    path, two = str(tmp_path / "file.ckpt"), {"workers": 2, "f": 0, "aggregator": Mean()}
    ranks(1).run(fit, Fit(strategy={**two, "estimator": Remembering(1, 2)}, trainer={"max_epochs": 1}, save=path), 1)
    kind, sentence = ranks(1).run(attempt, Fit(strategy=two, checkpoint=path), 1)[0]
    assert kind == "ValueError"
    assert "holds ['value'] of each worker's estimator, and this run's estimator remembers []" in sentence


def test_blocks_of_another_width_are_those_of_the_stack():
    placement = AllGather().place(2)
    for exchange in (Local(), AllGather()):
        wire = exchange.open(1000, dtype=torch.float32, device=CPU, placement=placement, width=128)
        for worker in (0, 1):
            wire.row(worker).fill_(1.0)
        stack = Stack(wire.deliver([0, 1], torch.zeros(0, dtype=torch.int64)).vectors, slice=wire.slice)
        assert (stack.blocks().width, len(stack.blocks())) == (128, 8)
        assert stack.squared_norms().tolist() == [1000, 1000]


# ---------------------------------------------------------------------- buffers of manual optimization


class ByHand(Classifier):
    """Batch norm under manual optimization; one batch is not a number."""

    def __init__(self, options):
        super().__init__(options)
        self.automatic_optimization = False
        self.means = []

    def training_step(self, batch, batch_idx):
        optimizer, points = self.optimizers(), batch[0] * (float("nan") if batch_idx == 2 else 1.0)
        optimizer.zero_grad()
        self.manual_backward(super().training_step((points, batch[1]), batch_idx))
        optimizer.step()
        self.means.append(self.network[1].running_mean.clone())

    def on_train_end(self):
        self.register_buffer("means_seen", torch.stack(self.means), persistent=False)


def test_a_refused_step_by_hand_leaves_no_buffer_behind(ranks):
    job = Fit(Options(batch_norm=True), {"f": 0, "aggregator": Mean(), "workers": 1}, {"max_steps": 6}, ByHand)
    seen = ranks(1).run(fit, job, 1)[0]["buffers"]["means_seen"]
    assert bool(seen.isfinite().all())
    assert torch.equal(seen[2], seen[1]), "as before the refused step, and at once"
    assert not torch.equal(seen[3], seen[2])
