"""Four ranks of one worker each, one of which sends its gradient times -5."""

import pytest

from lightning_byz.aggregators import CTMA, CoordinateMedian, GeometricMedian, Mean
from lightning_byz.attacks import ReverseGradient
from lightning_byz.demos import DigitsClassifier, DigitsData
from tests.scenarios import Fit, fit

RULES = [CoordinateMedian(), GeometricMedian(), CTMA(CoordinateMedian())]


class Digits(DigitsClassifier):
    """The demo's module, with the demo's data in its own hooks."""

    def __init__(self, options) -> None:
        super().__init__(hidden=64, learning_rate=0.2)
        self.source = DigitsData(batch_size=16)

    def setup(self, stage):
        self.source.setup(stage)

    def train_dataloader(self):
        return self.source.train_dataloader()

    def val_dataloader(self):
        return self.source.val_dataloader()


def accuracy(ranks, aggregator, *, attacked: bool) -> float:
    strategy = {"f": 1, "aggregator": aggregator}
    if attacked:
        strategy |= {"attackers": [2], "attack": ReverseGradient(5)}
    results = ranks(4).run(fit, Fit(strategy=strategy, module=Digits, trainer={"max_epochs": 6}), 4)
    assert len({result["metrics"]["val_accuracy"] for result in results}) == 1
    return results[0]["metrics"]["val_accuracy"]


@pytest.fixture(scope="module")
def without_attack(ranks) -> float:
    return accuracy(ranks, Mean(), attacked=False)


def test_the_mean_fails(ranks, without_attack):
    assert without_attack > 0.9
    assert accuracy(ranks, Mean(), attacked=True) < 0.5


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_robust_rules_stay_within_three_points(ranks, without_attack, rule):
    attacked = accuracy(ranks, rule, attacked=True)
    assert attacked > accuracy(ranks, rule, attacked=False) - 0.03
    assert attacked > without_attack - 0.03
