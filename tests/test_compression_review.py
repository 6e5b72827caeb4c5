"""Faults that a review of compressed messages has found."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_byz.aggregators import CoordinateMedian, Mean
from lightning_byz.arrivals import RandomArrivals, Synchronous
from lightning_byz.attacks import SignFlip
from lightning_byz.compressors import Cast, Identity, RandomK, TopK
from lightning_byz.links import EF21, Diana, Downlink, ErrorFeedback
from lightning_byz.optimizers import RobustOptimizer
from lightning_byz.rounds import channel
from lightning_byz.rounds.aggregation import Aggregation
from lightning_byz.rounds.plan import Plan
from lightning_byz.strategies.refusals import check_optimizers
from lightning_byz.testing import check_compressor


def started(module: nn.Module, **arguments) -> RobustOptimizer:
    arguments = {"workers": 4, "f": 1, "aggregator": CoordinateMedian(), "seed": 0, **arguments}
    return RobustOptimizer(torch.optim.SGD(module.parameters(), lr=0.1), module, **arguments)


def aggregation(robust: RobustOptimizer) -> Aggregation:
    return robust._run.aggregation


def linear(features: int = 6, **options) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(features, 1, bias=False, **options)


def computed(robust: RobustOptimizer, module: nn.Linear, scale: float = 1.0, step: int = 0) -> None:
    for worker in robust.computing:
        draws = torch.Generator().manual_seed(100 * step + worker)
        rows = torch.randn(3, module.in_features, generator=draws).to(module.weight.dtype)
        robust.backward(worker, lambda rows=rows: module(rows).square().mean() * scale)


@pytest.mark.parametrize("arrivals", [Synchronous(), RandomArrivals("uniform")], ids=str)
@pytest.mark.parametrize("link", [EF21(), ErrorFeedback()], ids=str)
def test_an_aggregate_without_a_step_leaves_nothing_on_the_way_back(arrivals, link) -> None:
    module = linear()
    robust = started(module, arrivals=arrivals, downlink=Downlink(TopK(k=1), link))
    computed(robust, module)
    robust.step()
    robust.zero_grad()
    before = aggregation(robust).memory
    computed(robust, module)
    robust.aggregate()
    changed = aggregation(robust).memory
    robust.zero_grad()
    after, name = aggregation(robust).memory, type(link).__name__
    assert not torch.equal(changed.rules["downlink"].values[name], before.rules["downlink"].values[name])
    assert after.rules["downlink"].values[name] is before.rules["downlink"].values[name]
    if link.mirrored:
        assert after.workers[0]["downlink"][name] is before.workers[0]["downlink"][name]


@pytest.mark.parametrize("way", [{"compressor": RandomK(k=2)}, {"downlink": RandomK(k=2)}], ids=str)
def test_draws_of_a_resumed_loop_are_those_of_the_saved_seed(way) -> None:
    def weights(*seeds: int) -> Tensor:
        module, state = linear(), None
        for part, seed in enumerate(seeds):
            robust = started(module, seed=seed, **way)
            if state is not None:
                robust.load_state_dict(state)
            for step in range(3):
                computed(robust, module, step=3 * part + step)
                robust.step()
                robust.zero_grad()
            state = robust.state_dict()
        return module.weight.detach()

    assert torch.equal(weights(7, 8), weights(7, 7))
    assert not torch.equal(weights(7, 7), weights(8, 8))


def test_an_aggregate_that_overflows_on_its_way_back_is_not_stepped_on() -> None:
    module = linear(dtype=torch.float16)
    robust = started(module, aggregator=Mean(), f=0, downlink=Downlink(RandomK(k=5), Diana(1.0)))
    for size in (2e4, 6e4):
        module.weight.grad = None
        before = module.weight.detach().clone()
        for worker in robust.local:
            robust.backward(worker, lambda size=size: (module.weight.float() * size).sum())
        report = robust.step()
        robust.zero_grad()
        if not report.taken:
            break
        module.weight.data.zero_()
    assert not report.taken
    assert "on its way back" in report.reason
    assert module.weight.isfinite().all()
    assert torch.equal(module.weight, before)


@dataclass(frozen=True)
class Unreadable(Identity):
    """Reads nothing of a message whose first number is negative."""

    def decode(self, part, coordinates, *, generator, out):
        valid = super().decode(part, coordinates, generator=generator, out=out)
        bad = out[0] < 0
        out.masked_fill_(bad, 0.0)
        return valid & ~bad


def test_what_cannot_be_read_of_an_attacker_is_broken() -> None:
    module = linear()
    robust = started(module, compressor=Unreadable(), attackers=[3], attack=SignFlip())
    for worker in robust.local:
        robust.backward(worker, lambda: module.weight.sum())
    assert robust.step().status == ("arrived",) * 3 + ("broken",)


def test_messages_say_which_way_cannot_be_compressed() -> None:
    with pytest.raises(ValueError, match=r"^downlink: link=EF21\(\) with compressor=RandomK"):
        started(linear(), downlink=Downlink(RandomK(k=1), EF21()))
    with pytest.raises(ValueError, match=r"^link=EF21\(\) with compressor=RandomK"):
        started(linear(), link=EF21(), compressor=RandomK(k=1))


@pytest.mark.parametrize(
    "way", [{"link": EF21(), "compressor": Cast()}, {"downlink": Downlink(Cast(), EF21())}], ids=str
)
def test_lbfgs_and_a_link_are_refused_either_way(way) -> None:
    plan = Plan(**way)
    parameter = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=f"LBFGS.*{next(iter(way))}"):
        check_optimizers(LightningModule(), [torch.optim.LBFGS([parameter])], plan)


def test_complex_parameters_have_two_numbers_each() -> None:
    module = nn.ParameterList([torch.ones(3, dtype=torch.complex64)])
    robust = started(module, link=EF21(), compressor=TopK(k=6), downlink=Cast())
    for worker in robust.local:
        robust.backward(worker, lambda: module[0].abs().square().sum())
    assert robust.step().taken
    torch.testing.assert_close(module[0].detach(), torch.full((3,), 0.8 + 0j), atol=1e-3, rtol=0)


@dataclass(frozen=True)
class Undrawn(RandomK):
    """Says that it draws nothing."""

    draws: ClassVar[bool] = False


def test_a_compressor_that_draws_cannot_say_that_it_does_not() -> None:
    with pytest.raises(AssertionError, match="draws is False"):
        check_compressor(Undrawn(0.3, scaled=False), cases=3)


def test_nothing_is_seeded_for_a_compressor_that_draws_nothing(monkeypatch) -> None:
    def refuse(*key, device="cpu"):
        raise AssertionError(key)

    module = linear()
    robust = started(module, link=EF21(), compressor=TopK(k=1))
    monkeypatch.setattr(channel, "generator", refuse)
    computed(robust, module)
    assert robust.step().taken
