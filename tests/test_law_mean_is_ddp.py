"""Law 1: Mean, and a user's own averaging rule, are DDP, bit for bit on two ranks."""

from dataclasses import replace

import pytest

from lightning_byz.aggregators import Mean
from tests.scenarios import Fit, Options, UsersMean, fit, largest_difference, same_bits

CASES = {
    "plain": Fit(),
    "accumulation": Fit(trainer={"accumulate_grad_batches": 5}),
    "clip by norm": Fit(trainer={"gradient_clip_val": 0.2, "gradient_clip_algorithm": "norm"}),
    "clip by value": Fit(trainer={"gradient_clip_val": 0.02, "gradient_clip_algorithm": "value"}),
    "bf16-mixed": Fit(trainer={"precision": "bf16-mixed"}),
    "float16 with a gradient scaler": Fit(scaler=True),
    "bf16-true": Fit(trainer={"precision": "bf16-true"}),
    "step scheduler": Fit(Options(step_scheduler=True)),
    "unused parameters": Fit(Options(unused=True, weight_decay=0.1)),
    "weight decay": Fit(Options(weight_decay=0.1)),
    "mixed dtypes": Fit(Options(mixed_dtypes=True)),
    "not shuffled": Fit(Options(shuffle=False)),
}


def with_rule(job: Fit, aggregator) -> Fit:
    return replace(job, strategy={"f": 0, "aggregator": aggregator})


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_ddp_bit_for_bit(ranks, name):
    job = CASES[name]
    expected = ranks(2).run(fit, job, 2)
    for aggregator in (Mean(), UsersMean()):
        results = ranks(2).run(fit, with_rule(job, aggregator), 2)
        for result, plain in zip(results, expected, strict=True):
            assert not same_bits(result["parameters"], plain["parameters"])
            assert result["global_step"] == plain["global_step"]
            assert result["calls"] == plain["calls"]
    start = fit_parameters_at_start(job)
    assert largest_difference(expected[0]["parameters"], start) > 1e-3, "nothing was trained"


def fit_parameters_at_start(job: Fit) -> dict:
    return {name: value.detach() for name, value in job.module(job.options).named_parameters()}


@pytest.mark.parametrize("aggregator", [Mean(), UsersMean()], ids=["Mean", "UsersMean"])
def test_four_ranks_equal_ddp_to_summation_order(ranks, aggregator):
    job = CASES["accumulation"]
    expected = ranks(4).run(fit, job, 4)[0]["parameters"]
    result = ranks(4).run(fit, with_rule(job, aggregator), 4)[0]["parameters"]
    assert largest_difference(result, expected) < 1e-6
