"""Each published method through ``RobustOptimizer`` is its restatement, in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_byz.aggregators import CoordinateMedian, TrimmedMean
from lightning_byz.attacks import IPM, SignFlip
from lightning_byz.compressors import Compressor, Coordinates, RandomK, ScaledSign, TopK
from lightning_byz.estimators import DM21, Gradient, WorkerMomentum
from lightning_byz.links import EF21, Diana, Direct, ErrorFeedback, HeavyBall
from lightning_byz.optimizers import RobustOptimizer
from lightning_byz.random import generator
from tests import recursions
from tests.recursions import Problem, Run

SEED, RATE, K, ETA, BETA = 5, 0.5, 3, 0.2, 0.9
MOST = 20
"""Coordinates kept where nothing is sent later: of rows that are mostly zero, the median is zero and stays it."""
ATTACKERS = (5, 6)
RULES = {"median": (CoordinateMedian(), recursions.median), "trimmed mean": (TrimmedMean(), recursions.trimmed_mean(2))}


ATTACKS = {
    "no attack": ((), None, None),
    "sign flip": (ATTACKERS, SignFlip(), recursions.sign_flip),
    "IPM": (ATTACKERS, IPM(0.5), recursions.against_the_mean(0.5)),
}


def of_the_library(problem: Problem, aggregator, **arguments) -> np.ndarray:
    """The same batches, worker by worker, through the library."""
    module = nn.Linear(problem.d, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(module.weight)
    robust = RobustOptimizer(
        torch.optim.SGD(module.parameters(), lr=RATE), module, workers=problem.workers, f=2,
        aggregator=aggregator, seed=SEED, **arguments,
    )  # fmt: skip
    features, labels = torch.tensor(problem.features), torch.tensor(problem.labels, dtype=torch.float64)
    visited = []
    for step in range(problem.steps):
        for worker in robust.local:

            def loss(step: int = step, worker: int = worker) -> torch.Tensor:
                logits = module(features[step, worker])[:, 0]
                own = nn.functional.binary_cross_entropy_with_logits(logits, labels[step, worker])
                return own + problem.l2 / 2 * module.weight.square().sum()

            robust.backward(worker, loss)
        assert set(robust.step().status) == {"arrived"}
        robust.zero_grad()
        visited.append(module.weight.detach()[0].numpy().copy())
    return np.array(visited)


def drawn(compressor: Compressor, problem: Problem, *worker: int) -> list[list[int]]:
    """Which coordinates are kept at each step: those that a vector of ones has afterwards."""
    coordinates, ones, masks = Coordinates([(1, problem.d)]), torch.ones(problem.d, dtype=torch.float64), []
    for step in range(problem.steps):
        out, draws = torch.empty_like(ones), (SEED, 0, "compress", step, *worker)
        part = compressor.encode(ones, coordinates, generator=generator(*draws)).part(0, problem.d)
        assert compressor.decode(part, coordinates, generator=generator(*draws), out=out)
        masks.append(out.nonzero()[:, 0].tolist())
        assert len(masks[-1]) == K
    return masks


def diana(run: Run, *, compressor: Compressor) -> np.ndarray:
    each = [drawn(compressor, run.problem, worker) for worker in range(run.problem.workers)]
    masks = [[one[step] for one in each] for step in range(run.problem.steps)]
    assert masks[0][0] != masks[0][1]
    return recursions.br_diana(run, compress=recursions.random_k(masks), omega=run.problem.d / K - 1)


def rosdhb(run: Run, *, compressor: Compressor, beta: float) -> np.ndarray:
    return recursions.rosdhb(run, masks=drawn(compressor, run.problem), beta=beta)


TOP, FEW_DROPPED, RANDOM, SHARED = TopK(k=K), TopK(k=MOST), RandomK(k=K), RandomK(k=K, shared=True)
MOMENTUM = WorkerMomentum(1 - ETA)
METHODS = {
    "Byz-EF21-SGDM": ((MOMENTUM, EF21(), TOP), recursions.byz_ef21_sgdm, {"eta": ETA, "k": K}),
    "Byz-EF21": ((Gradient(), EF21(), TOP), recursions.byz_ef21, {"k": K}),
    "compressed SGD": ((Gradient(), Direct(), FEW_DROPPED), recursions.compressed_sgd, {"k": MOST}),
    "compressed momentum": ((MOMENTUM, Direct(), FEW_DROPPED), recursions.compressed_momentum, {"eta": ETA, "k": MOST}),
    "EF-signSGD": ((Gradient(), ErrorFeedback(), ScaledSign()), recursions.ef_signsgd, {}),
    "BR-DIANA": ((Gradient(), Diana(), RANDOM), diana, {"compressor": RANDOM}),
    "Byz-DM21": ((DM21(ETA), EF21(), TOP), recursions.byz_dm21, {"eta": ETA, "k": K}),
    "Byz-VR-DM21": ((DM21(ETA, variance_reduced=True), EF21(), TOP), recursions.byz_vr_dm21, {"eta": ETA, "k": K}),
    "RoSDHB": ((Gradient(), HeavyBall(BETA), SHARED), rosdhb, {"compressor": SHARED, "beta": BETA}),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("attacked", ATTACKS)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_its_recursion(name, attacked, rule) -> None:
    (estimator, link, compressor), method, numbers = METHODS[name]
    aggregator, aggregate = RULES[rule]
    problem = recursions.logistic(seed=SEED, whole=name == "Byz-EF21")
    attackers, attack, restated = ATTACKS[attacked]
    expected = method(Run(problem, np.zeros(problem.d), RATE, aggregate, attackers, restated), **numbers)
    way = {"estimator": estimator, "link": link, "compressor": compressor}
    found = of_the_library(problem, aggregator, attackers=attackers, attack=attack, **way)
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_methods_differ() -> None:
    """So that none passes for another."""
    problem = recursions.logistic(seed=SEED)
    run = Run(problem, np.zeros(problem.d), RATE, recursions.median, ATTACKERS, recursions.sign_flip)
    last = [method(run, **numbers)[-1] for _, method, numbers in METHODS.values()]
    for place, one in enumerate(last):
        assert all(np.abs(one - other).max() > 1e-4 for other in last[:place])
