"""DM21: two averages over time, the first of which may be corrected at the worker's own earlier point."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_byz.estimators import DM21, Gradient, Storm
from tests.recording import Plan, column, train
from tests.scenarios import Fit, attempt, fit
from tests.scenarios import same_bits as changed
from tests.test_storm import FAULTS, OPTIONS, STRATEGY, Bowl, with_faults


def restated(rows, eta: float, reduced: bool) -> list[float]:
    """DM21 with averages, and a point, per worker, behind a median, in float64; a worker that was refused keeps what it had."""
    w, trajectory, kept = 0.0, [], {}
    for step in rows:
        sent = {}
        for worker, x in enumerate(step):
            if np.isfinite(x):
                once, twice, point = kept.get(worker, (None, None, w))
                here, there = ((1 + 0.2 * abs(x)) * (at - x) for at in (w, point))
                corrected = here + (1 - eta) * (once - there) if reduced and once is not None else None
                averaged = here if once is None else (1 - eta) * once + eta * here
                once = averaged if corrected is None else corrected
                sent[worker] = (once, once if twice is None else (1 - eta) * twice + eta * once, w)
        kept |= sent
        w -= 0.05 * float(np.median([twice for _, twice, _ in sent.values()]))
        trajectory.append(w)
    return trajectory


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("name", FAULTS)
def test_each_worker_has_averages_of_its_own(ranks, name, reduced):
    rows = with_faults(name)
    estimator = DM21(0.25, variance_reduced=reduced)
    (record,) = ranks(1).run(train, Plan(rows, {**STRATEGY, "estimator": estimator}, module=Bowl))
    assert column(record, "weight") == pytest.approx(restated(rows, 0.25, reduced), rel=1e-5, abs=1e-6)
    assert all(column(record, "taken"))


@pytest.mark.parametrize("reduced", [False, True])
def test_resume_equals_no_interruption(ranks, tmp_path, reduced):
    job = Fit(OPTIONS, {**STRATEGY, "f": 0, "estimator": DM21(0.25, variance_reduced=reduced)})
    path = str(tmp_path / "half.ckpt")
    whole = ranks(1).run(fit, job, 1)[0]
    half = ranks(2).run(fit, replace(job, trainer={"max_epochs": 1}, save=path), 2)[0]
    assert changed(half["parameters"], whole["parameters"])
    for result in ranks(1).run(fit, replace(job, seed=9, checkpoint=path), 1):
        assert not changed(result["parameters"], whole["parameters"])
        assert not changed(result["buffers"], whole["buffers"])
    other = replace(job, strategy={**STRATEGY, "estimator": DM21(0.25, variance_reduced=not reduced)}, checkpoint=path)
    ((kind, sentence),) = ranks(1).run(attempt, other, 1)
    assert kind == "ValueError"
    own = sorted(["momentum" if reduced else "estimate", "joined", "twice"])
    assert re.search(rf"this run's estimator remembers {re.escape(str(own))}", sentence)


@pytest.mark.parametrize("reduced", [False, True])
def test_an_eta_of_one_sends_the_gradient(ranks, reduced):
    strategy = {**STRATEGY, "f": 0}
    jobs = [Fit(OPTIONS, {**strategy, "estimator": one}) for one in (Gradient(), DM21(1, variance_reduced=reduced))]
    plain, twice = (ranks(1).run(fit, job, 1)[0] for job in jobs)
    assert not changed(plain["parameters"], twice["parameters"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("reduced", [False, True])
def test_the_recursion(dtype, reduced):
    rule = DM21(0.25, variance_reduced=reduced)
    gradients = torch.randn(5, 2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)
    memory = rule.init(gradients[0][0])
    once = twice = gradients[0][0].double()
    for count, (here, there) in enumerate(gradients):
        if count:
            before = 0.75 * (once - there.double()) + here.double() if reduced else 0.75 * once + 0.25 * here.double()
            once, twice = before, 0.75 * twice + 0.25 * before
        estimate, memory = rule.update(memory, [here, there.clone()][: rule.points], count=count)
        assert estimate.dtype == dtype
        near = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(memory["twice"].double(), twice, **near)
        torch.testing.assert_close(memory["estimate" if reduced else "momentum"].double(), once, **near)
        torch.testing.assert_close(estimate, memory["twice"].to(dtype), rtol=0, atol=0)


def test_recorded_values():
    """Worked out by hand, with eta = 1/2."""
    pairs = [([8.0], [0.0]), ([4.0], [6.0]), ([2.0], [3.0])]
    for reduced, expected in [(False, [8.0, 7.0, 5.5]), (True, [8.0, 6.5, 4.75])]:
        rule, sent = DM21(0.5, variance_reduced=reduced), []
        memory = rule.init(torch.empty(1))
        for count, pair in enumerate(pairs):
            gradients = [torch.tensor(one) for one in pair][: rule.points]
            estimate, memory = rule.update(memory, gradients, count=count)
            sent.append(estimate.item())
        assert sent == expected


@pytest.mark.parametrize("reduced", [False, True])
def test_coordinates_that_join_start_at_their_gradient(reduced):
    rule = DM21(0.25, variance_reduced=reduced)
    _, memory = rule.update(rule.init(torch.empty(2)), [torch.tensor([1.0, 2.0])] * rule.points, count=0)
    memory = rule.realigned(memory, lambda vector, fill: torch.cat([vector, vector.new_full((1,), fill)]))
    gradient = torch.tensor([5.0, 6.0, 7.0])
    estimate, memory = rule.update(memory, [gradient.clone() for _ in range(rule.points)], count=1)
    assert estimate[2] == memory["twice"][2] == memory["estimate" if reduced else "momentum"][2] == 7.0
    assert memory["joined"] is False
    assert estimate[:2].tolist() == [1.25, 2.25]


def test_the_first_average_is_storms():
    """Variance-reduced, with lengths."""
    storm, rule = Storm(0.25, clip=1.0), DM21(0.25, variance_reduced=True, clip=1.0)
    pairs = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(2)) * 3
    known, memory = storm.init(pairs[0][0]), rule.init(pairs[0][0])
    for count, pair in enumerate(pairs):
        known = storm.update(known, [one.clone() for one in pair], count=count)[1]
        memory = rule.update(memory, [one.clone() for one in pair], count=count)[1]
        assert torch.equal(known["estimate"], memory["estimate"])


@pytest.mark.parametrize("eta", [0, -0.1, 1.5, float("nan"), True])
def test_weights_that_are_refused(eta):
    with pytest.raises(ValueError, match=r"DM21\(eta=.*must be in \(0, 1\]"):
        DM21(eta)


@pytest.mark.parametrize("clip", [0, -1.0, float("inf")])
def test_lengths_that_are_refused(clip):
    with pytest.raises(ValueError, match=r"DM21\(clip=.*give the largest length"):
        DM21(clip=clip)
