"""Law 10: Storm(beta=1), whose second pass really runs, equals Gradient() in everything the user can see, bit for bit."""

import pytest
from torch import nn

from lightning_byz.aggregators import CoordinateMedian, Mean
from lightning_byz.estimators import Gradient, Storm
from tests.watching import Case, Watched, differences, watch

CASES = {
    "plain": Case(),
    "accumulation": Case(trainer={"accumulate_grad_batches": 3}),
    "clip by norm": Case(trainer={"gradient_clip_val": 0.2, "gradient_clip_algorithm": "norm"}),
    "clip by value": Case(trainer={"gradient_clip_val": 0.02, "gradient_clip_algorithm": "value"}),
    "bf16-mixed": Case(trainer={"precision": "bf16-mixed"}),
    "bf16-true": Case(trainer={"precision": "bf16-true"}),
    "float16 with a scaler": Case(scaler=True, trainer={"gradient_clip_val": 0.5}),
}


def compared(name: str, strategy: dict, devices: int) -> tuple[list[str], int, int]:
    """Return what differs on this rank between one pass and two, and how many passes there were."""
    one, two = (watch(CASES[name], {**strategy, "estimator": own}, devices) for own in (Gradient(), Storm(beta=1)))
    passes = one.pop("passes"), two.pop("passes")
    return differences(one, two), *passes


ALONE = {"f": 0, "aggregator": Mean(), "workers": None}


@pytest.mark.parametrize("name", CASES)
def test_one_worker(ranks, name):
    ((different, once, twice),) = ranks(1).run(compared, name, ALONE, 1)
    assert not different
    assert twice == 2 * once > 0
