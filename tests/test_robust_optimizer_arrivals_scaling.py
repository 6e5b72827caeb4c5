"""A GradScaler around a plain loop of stale workers: messages wait without their scale, in any number of processes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightning_byz.aggregators import CoordinateMedian
from lightning_byz.arrivals import FixedDelays
from lightning_byz.attacks import SignFlip
from lightning_byz.estimators import WorkerMomentum
from tests.plain import in_a_world, same
from tests.stale import Stale, alike
from tests.test_robust_optimizer_arrivals import CASES, EACH, RULE


class Scaled(Stale):
    """With a gradient scaler, and losses too large for it in some calls of a step."""

    def __init__(self, *, too_large: Sequence[tuple[int, int]] = (), **arguments: Any) -> None:
        super().__init__(**arguments)
        self.scaler, self.too_large = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3), too_large

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.scaler.scale(
            super().loss(inputs, labels) * (float("inf") if self.called[-1] in self.too_large else 1.0)
        )

    def train(self, start: int = 0, stop: int = 12, *, by_hand: bool = False) -> "Scaled":
        for step in range(start, stop):
            self.robust.zero_grad()
            self.backward(*divmod(step, 6))
            if by_hand:
                self.robust.aggregate()
                self.scaler.unscale_(self.robust)
            self.scaler.step(self.robust)
            self.scaler.update()
        return self


@EACH
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_scaler_changes_nothing_but_its_scale(name, by_hand) -> None:
    scaled, plain = Scaled(**CASES[name]).train(by_hand=by_hand), Stale(**CASES[name]).run()
    assert same(scaled.left(), plain.left()), "a power of two costs no bit, whatever it is when a message is delivered"
    counts = {kind: count for kind, count in scaled.memory.counts.items() if kind != "at scale"}
    assert alike(replace(scaled.memory, counts=counts), plain.memory)
    assert scaled.scaler.get_scale() == 1024.0 * 2**4


def test_an_overflow_is_heard_when_it_is_computed() -> None:
    """Worker 3 overflows at step 1, and has nothing to deliver at step 3: alone it is its own; where that exceeds f, the scaler hears at once."""
    arguments = {"aggregator": CoordinateMedian(), "arrivals": FixedDelays([0, 0, 0, 2])}
    for f, scale in ((1, 1024.0), (0, 512.0)):
        loop = Scaled(**arguments, f=f, too_large=[(1, 3)]).train(0, 1)
        loop.scaler.set_growth_interval(100)
        parameters = [parameter.clone() for parameter in loop.module.parameters()]
        assert loop.train(1, 2).scaler.get_scale() == scale
        moved = [not torch.equal(*pair) for pair in zip(parameters, loop.module.parameters(), strict=True)]
        assert any(moved) == (f == 1)
        assert loop.train(2, 4).status[3] == "absent"
        assert loop.scaler.get_scale() == scale
        assert all(bool(value.isfinite().all()) for value in loop.train(4, 8).left().values())


def scaled(path: str, start: int, stop: int) -> tuple[dict, float, list[int]]:
    loop = Scaled(**RULE, attack=SignFlip(), estimator=WorkerMomentum(0.9), arrivals=FixedDelays([0, 4, 9, 9]), f=0)
    loop.scaler.scale(torch.zeros(()))  # as in a process whose workers do not compute at once
    if start:
        saved = torch.load(path, weights_only=True)
        for name in ("module", "robust", "scaler"):
            getattr(loop, name).load_state_dict(saved[name])
    computing = list(loop.robust.computing)
    loop.train(start, stop, by_hand=True)
    state = {"robust": loop.robust.state_dict(), "module": loop.left(), "scaler": loop.scaler.state_dict()}
    if dist.get_rank() == 0 and not start:
        torch.save(state, path)
    return loop.left(), loop.scaler.get_scale(), computing


def test_a_process_where_nobody_computes_hears_the_scale_from_others(ranks, tmp_path) -> None:
    path = str(tmp_path / "saved.pt")
    whole, other = ranks(2).run(in_a_world, scaled, str(tmp_path / "whole.pt"), 0, 6)
    ranks(2).run(in_a_world, scaled, path, 0, 3)
    (left, scale, _), (apart, its, computing) = ranks(2).run(in_a_world, scaled, path, 3, 6)
    assert computing == []
    assert same(left, apart)
    assert same(left, whole[0])
    assert scale == its == whole[1] == other[1]
