"""The asynchronous studies: their grids compare what they say, and the convex problem's loop is the package's own."""

import math
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from lightning_byz.aggregators import CoordinateMedian, Mean
from lightning_byz.arrivals import RandomArrivals
from lightning_byz.attacks import Attack
from lightning_byz.compare.cells import Cells
from lightning_byz.compare.grid import read_grid
from lightning_byz.optimizers import RobustOptimizer

from .test_benchmarks import ROOT, run
from .test_studies import results

STUDIES = ROOT / "configs" / "studies"


@pytest.fixture
def loop() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import convex_arrivals

        yield convex_arrivals
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_runs_of_the_smaller_study_are_kept_by_the_larger() -> None:
    whole, part = (Cells(read_grid(STUDIES / f"{name}.yaml")) for name in ("async_rules", "async_weights"))
    ids = [{cell.id for variant in cells.variants for cell in cells.compared(variant, {})} for cells in (whole, part)]
    assert ids[1] < ids[0]
    assert (len(ids[0]), len(ids[1])) == (160, 60)


def test_without_an_attack_deliveries_come_as_under_one() -> None:
    grid = read_grid(STUDIES / "async.yaml")
    attacks = next(axis for axis in grid.axes if axis.name == "attack").variants
    assert all(set(values) <= {"trainer.strategy.attack"} for values in attacks.values())


@pytest.mark.parametrize("method", ["mu2", "momentum"])
@pytest.mark.parametrize("attack", ["none", "SignFlip", "ALIE"])
def test_the_loop_is_that_of_the_package(loop: ModuleType, method: str, attack: str) -> None:
    """Same draws, same schedule, another implementation: equal losses after each step."""
    estimator, anytime, _ = loop.METHODS[method]
    share, rate, steps = 0.4, 0.01, 40
    found = loop.run(method, loop.RULE, loop.ATTACKS[attack], steps, 3, share=share, rate=rate, noise=1.0).losses
    draws, deviations = torch.Generator().manual_seed(3), loop.CURVATURES.sqrt()
    module = torch.nn.Linear(loop.DIMENSION, 1, bias=False, dtype=torch.float64)
    module.weight.data.zero_()
    robust = RobustOptimizer(
        torch.optim.SGD(module.parameters(), lr=rate),
        module,
        workers=loop.WORKERS,
        f=8,
        aggregator=loop.RULE,
        estimator=estimator,
        anytime=anytime,
        attackers=list(loop.ATTACKERS),
        attack=loop.ATTACKS[attack] or Attack(),
        arrivals=RandomArrivals("squared", byzantine_share=share),
        weights="counts",
        seed=3,
    )
    for loss in found:
        for worker in robust.computing:
            row = torch.randn(loop.DIMENSION, generator=draws, dtype=torch.float64) * deviations
            target = row @ loop.OPTIMUM + torch.randn((), generator=draws, dtype=torch.float64)
            robust.backward(worker, lambda row=row, target=target: (module(row)[0] - target).square() / 2)
        robust.step()
        assert loop.excess(module.weight.detach()[0]) == pytest.approx(loss, rel=1e-9)


def test_no_error_exceeds_the_root_of_kappa(loop: ModuleType) -> None:
    for share in (0.1, 0.4):
        rule = CoordinateMedian()
        found = loop.run("momentum", rule, loop.ATTACKS["ALIE"], 300, 1, share=share, rate=0.05, noise=1.0)
        assert found.kappa == pytest.approx(1 / (1 - 2 * share), rel=0.02)
        assert max(found.errors[100:]) <= 1 / (1 - 2 * share)
        assert math.sqrt(sum(found.errors[100:]) / 200) > 0.1
    assert max(loop.run("mu2", Mean(), None, 9, 1, share=0.0, rate=0.05, noise=1.0).errors) < 1e-20


def test_convex_arrivals_prints_its_tables(tmp_path) -> None:
    slopes = ("slopes", "--lengths=[8, 16]", "--seeds=2", "--attacks=[ALIE]")
    assert "| `ALIE` | " in run("convex_arrivals", *slopes, folder=tmp_path).stdout
    floors = ("floors", "--shares=[0, 0.4]", "--seeds=1", "--length=16", "--attacks=[SignFlip]")
    done = run("convex_arrivals", *floors, folder=tmp_path)
    assert "| `median, SignFlip, root of kappa` | 1.00 | " in done.stdout, done.stderr


def test_paired(tmp_path) -> None:
    """Each variant is compared with the first on equal seeds; a missing run is in no pair."""
    lines = [
        ["median", "ALIE", weights, seed, "compare", "fit", one / 100]
        for weights, seed, one in [("equal", 1, 80), ("equal", 2, 70), ("counts", 2, 95), ("counts", 3, 20)]
    ]
    done = run("paired", str(results(tmp_path, ["rule", "attack", "weights"], lines)), folder=tmp_path)
    assert "| rule, attack | equal | counts | counts - equal | pairs |" in done.stdout, done.stderr
    assert "| `median, ALIE` | 75.0 ± 5.0 | 57.5 ± 37.5 | +25.0 ± nan | 1 |" in done.stdout
