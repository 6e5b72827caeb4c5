"""A plain loop under torchrun: the same workers on several ranks train what one process does, bit for bit."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lightning_byz.aggregators import CTMA, CoordinateMedian, Krum
from lightning_byz.attacks import LabelFlip, SignFlip
from lightning_byz.estimators import Gradient, Storm, WorkerMomentum
from lightning_byz.exchange import AllGather, AllToAll
from lightning_byz.optimizers import Anytime, RobustOptimizer
from lightning_byz.preaggregators import NNM
from tests.plain import Loop, Network, in_a_world, linear, same, sgd
from tests.ranks import RankFailure

RULE = {"aggregator": CTMA(CoordinateMedian())}
DOUBLE = {**RULE, "estimator": Storm(0.3), "anytime": Anytime(0.2), "attackers": [3], "attack": SignFlip()}


def trained(arguments: dict[str, Any], absent: list[tuple[int, int]]) -> dict:
    return Loop(**arguments).run(absent=absent).left()


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (DOUBLE, []),
        (DOUBLE, [(3, 2), (3, 3), (7, 0)]),
        ({**RULE, "estimator": WorkerMomentum(0.9), "attackers": [0], "attack": LabelFlip(classes=3)}, []),
        ({"aggregator": Krum(), "preaggregators": [NNM()], "estimator": Gradient(), "weights": [1, 1, 1, 1]}, []),
        ({**RULE, "exchange": AllGather()}, []),
    ],
    ids=["storm and averaging", "a rank without workers once", "labels flipped", "krum", "all gather"],
)
def test_several_ranks_train_what_one_does(ranks, arguments, absent) -> None:
    alone = trained(arguments, absent)
    for world in (2, 3):
        for left in ranks(world).run(in_a_world, trained, arguments, absent):
            assert same(left, alone)


def one_each(arguments: dict[str, Any]) -> tuple[list[int], torch.Tensor]:
    module, robust = linear(**arguments)
    for step in range(4):
        for worker in robust.local:
            batch = torch.randn(3, 5, generator=torch.Generator().manual_seed(10 * step + worker))
            robust.backward(worker, lambda batch=batch: nn.functional.dropout(module(batch)).square().sum())
        robust.step()
    return list(robust.local), module.weight.detach().clone()


def test_one_worker_per_rank_is_the_default(ranks) -> None:
    arguments = {"f": 0, "aggregator": CoordinateMedian(), "estimator": Storm(0.3)}
    workers, alone = one_each({**arguments, "workers": 2})
    assert workers == [0, 1]
    for rank, (local, left) in enumerate(ranks(2).run(in_a_world, one_each, arguments)):
        assert local == [rank]
        assert torch.equal(left, alone)


def begun(path: str) -> None:
    loop = Loop(**DOUBLE, seed=5).run(0, 7)
    state = {"module": loop.left(), "robust": loop.robust.state_dict()}
    if not dist.is_initialized() or dist.get_rank() == 0:
        torch.save(state, path)


def ended(path: str) -> dict:
    saved, loop = torch.load(path, weights_only=True), Loop(**DOUBLE)
    loop.module.load_state_dict(saved["module"])
    loop.robust.load_state_dict(saved["robust"])
    return loop.run(7).left()


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3)])
def test_a_state_goes_on_in_another_layout(ranks, tmp_path, before, after) -> None:
    whole, path = Loop(**DOUBLE, seed=5).run().left(), str(tmp_path / "saved.pt")
    ranks(before).run(in_a_world, begun, path) if before > 1 else begun(path)
    for left in ranks(after).run(in_a_world, ended, path) if after > 1 else [ended(path)]:
        assert same(left, whole)


class Own(Network):
    """Other numbers on each rank."""

    def __init__(self) -> None:
        super().__init__()
        rank = dist.get_rank() if dist.is_initialized() else 0
        with torch.no_grad():
            for tensor in (*self.parameters(), self.layers[1].running_mean):
                tensor.add_(rank)


def started() -> dict:
    loop = Loop(**RULE, network=Own)
    head = nn.Parameter(torch.full((2,), float(dist.get_rank())))
    RobustOptimizer(torch.optim.SGD([*loop.module.parameters(), head]), loop.module, f=0, **RULE)
    return {**loop.left(), "head": head.detach()}


def test_all_ranks_start_from_rank_0(ranks) -> None:
    expected = {**Own().state_dict(), "head": torch.zeros(2)}
    for left in ranks(2).run(in_a_world, started):
        assert same(left, expected)


def of_other_width() -> None:
    module = nn.Linear(2 + dist.get_rank(), 1)
    RobustOptimizer(sgd(module), module, f=0, aggregator=CoordinateMedian())


def wrapped() -> None:
    module = nn.parallel.DistributedDataParallel(nn.Linear(2, 1))
    RobustOptimizer(sgd(module), module, f=0, aggregator=CoordinateMedian())


def too_few() -> None:
    linear(workers=1, f=0, aggregator=CoordinateMedian(), exchange=AllToAll())


def drifting() -> None:
    loop = Loop(**RULE, digest_every=3).run(0, 2)
    if dist.get_rank() == 1:
        loop.module.layers[0].weight.data.add_(1e-6)
    loop.run(2, 4)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (of_other_width, "1 ranks built a Linear whose parameters or buffers differ from rank 0's"),
        (wrapped, "The module is wrapped in DistributedDataParallel, which mixes the workers' gradients"),
        (too_few, "workers=1 on 2 ranks leaves a rank without a worker"),
        (drifting, "After 3 steps of this run the 2 ranks have 2 different sets of parameters"),
    ],
)
def test_what_ranks_refuse(ranks, function, sentence) -> None:
    with pytest.raises(RankFailure) as failure:
        ranks(2).run(in_a_world, function)
    assert len(failure.value.failures) == 2
    assert all(sentence in text for text in failure.value.failures.values())


def scaled(overflow: int) -> tuple[dict, float, list[str]]:
    loop = Loop(**DOUBLE)
    scaler, plain, status = torch.amp.GradScaler("cpu", init_scale=1024.0), loop.loss, []

    def loss(inputs, labels):
        factor = float("inf") if len(status) == 2 and int(loop.robust.local[0]) <= overflow else 1.0
        return scaler.scale(plain(inputs, labels) * factor)

    loop.loss = loss
    for step in range(5):
        loop.robust.zero_grad()
        loop.backward(0, step)
        scaler.step(loop.robust)
        scaler.update()
        status.append("taken" if loop.robust.report.taken else "skipped")
    return loop.left(), scaler.get_scale(), status


def test_a_scaler_skips_on_all_ranks_or_none(ranks) -> None:
    results = ranks(2).run(in_a_world, scaled, 0)
    assert same(results[0][0], results[1][0])
    for _, scale, status in results:
        assert scale == 512.0
        assert status == ["taken", "taken", "skipped", "taken", "taken"]
