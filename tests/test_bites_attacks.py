"""One process, numbers computed by hand: what attackers see and send, and how much each worker counts."""

import math
import warnings

import lightning.pytorch as pl
import pytest
import torch

from lightning_byz.aggregators import CoordinateMedian, Krum, Mean
from lightning_byz.attacks import ALIE, LabelFlip, NonFinite, Optimized
from lightning_byz.data import Sizes
from tests.recording import ABSENT, NAN, Noting, Plan, Referring, Sends, column, train
from tests.test_bites import noted, shown

pytestmark = pytest.mark.filterwarnings("ignore:Mean tolerates no Byzantine", "ignore:.*workers attack in this")


# ---------------------------------------------------------------------- attacks


def test_an_attacker_sees_usable_rows_and_sends_in_its_own_place():
    attack = Sends(lambda stack, attackers, generator: torch.tensor([[10.0 * worker] for worker in attackers]))
    rows = ((1, 2, 3, 4), (NAN, 2, 3, 4), (1, NAN, 3, 4), (1, 2, 3, ABSENT), (1, NAN, 3, ABSENT))
    record = train(noted(rows, f=1.5, attackers=[3, 1], attack=attack))
    seen = {name: [step[name] for step in attack.seen] for name in attack.seen[0]}
    assert seen["rows"] == [[1, 2, 3, 4], [0, 2, 3, 4], [1, 0, 3, 4], [1, 2, 3, 0]]
    assert seen["weights"] == [[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 0]]
    assert seen["attackers"] == [[3, 1], [3, 1], [3], [1]]
    assert seen["f"] == [1.5, 0.5, 0.5, 1.5]
    assert shown(record, "rows") == [[1, 10, 3, 30], [0, 10, 3, 30], [1, 0, 3, 30], [1, 10, 3, 0], [1, 0, 3, 0]]
    assert column(record, "weight")[:2] == pytest.approx([-44 / 4, -11 - 43 / 3])


def test_an_attack_may_send_what_it_was_shown():
    swaps = Sends(lambda stack, attackers, generator: stack.vectors[1:3])
    record = train(noted(((1, 2, 3, 4),), coordinates=70, attackers=[2, 1], attack=swaps))
    assert shown(record, "rows") == [[1, 3, 2, 4]]


def test_an_attackers_broken_row_counts_as_one():
    plan = noted(((1, 2, 3, 4),) * 2, Mean, attackers=[2], attack=NonFinite())
    record = train(plan)
    assert column(record, "coefficients") == [pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])] * 2
    assert train(plan.under(aggregator=Noting()))["rule"][0]["f"] == 0
    stopped = train(plan.but(rows=((NAN, 2, 3, 4),) * 4, may_fail=True))
    assert stopped["error"].startswith("TooManyFaults")


def test_what_the_attack_tries_out_is_what_will_happen():
    more = {"attackers": [3], "attack": Optimized(ALIE(), evaluations=5)}
    record = train(noted(((1, 2, 3, 6), (2, 3, 4, 7)), Referring, **more))
    tried, draws = record["rule"], list(dict.fromkeys(shown(record, "draw")))
    by_step = [[seen for seen in tried if seen["draw"] == draw] for draw in draws]
    assert [len(step) > 3 for step in by_step] == [True, True], "trials, and the aggregate itself"
    aggregate = column(record, "gradient")[0]
    assert [{seen["reference"] for seen in step} for step in by_step] == [{None}, {aggregate}]
    assert all(seen["rows"][:3] == [2, 3, 4] for seen in by_step[1])


@pytest.mark.parametrize("workers", [1, 4])
def test_an_attack_that_returns_other_rows_is_named(workers):
    attack = Sends(lambda stack, attackers, generator: stack.vectors[attackers].repeat(2, 1))
    rows = ((1, 2, 3, 4)[:workers],)
    record = train(noted(rows, workers=workers, attackers=[0], attack=attack, may_fail=True))
    assert "Sends.replace must return 1 rows of 1 coordinates" in record["error"]


@pytest.mark.parametrize("workers", [1, 4])
def test_only_attackers_learn_from_wrong_labels(workers):
    attackers = [0] if workers == 1 else [3, 1]
    rows = ((1, 2, 3, 4)[:workers], (5, 6, 7, 8)[:workers])
    more = {"workers": workers, "attackers": attackers, "attack": LabelFlip(20)}
    for seen in train(noted(rows, **more))["seen"]:
        assert seen["label"] == ([19 - seen["index"][0]] if seen["worker"] in attackers else seen["index"])


def test_as_many_attackers_as_f_are_no_reason_to_warn():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(noted(((1, 2, 3, 4),), attackers=[1], attack=Sends()))
    assert not [warning for warning in caught if "attack in this experiment" in str(warning.message)]
    with pytest.warns(UserWarning, match="2 workers attack in this experiment and f = 1 are tolerated"):
        train(noted(((1, 2, 3, 4),), attackers=[1, 2], attack=Sends()))


@pytest.mark.parametrize("outside", [4, -1])
def test_an_attacker_that_is_no_worker_is_refused(outside):
    record = train(noted(((1, 2, 3, 4),), attackers=[outside], attack=Sends(), may_fail=True))
    assert record["error"].startswith(f"ValueError: attackers=[{outside}]: [{outside}] are no worker ids")
    assert record["seen"] == []


# ---------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"weights": [9, 4, 1, 1], "max_share": 0.45, "f": 1}, ([54 / 11, 4, 1, 1], 54 / 11)),
        ({"weights": [2, 2, 2, 2], "f": 1.5}, ([1, 1, 1, 1], 1.5)),
        ({"weights": [4, 2, 2, 2], "f": 1.25}, ([4, 2, 2, 2], 4.5)),
        ({"weights": "samples", "partition": Sizes([1, 2, 2, 3]), "f": 1}, ([1, 2, 2, 3], 3)),
        ({"weights": "samples", "partition": Sizes([1, 1, 1, 5]), "max_share": 0.4, "f": 1}, ([1, 1, 1, 2], 2)),
    ],
)
def test_weights_are_those_asked_for(more, expected):
    record = train(noted(((1, 2, 3, 4), (5, 6, 7, 8)), **more))
    assert (record["rule"][0]["weights"], record["rule"][0]["f"]) == tuple(map(pytest.approx, expected))


@pytest.mark.filterwarnings("ignore:f='max' is 0")
def test_max_is_what_the_rules_tolerate():
    for rule, f in ((CoordinateMedian(), 1), (Krum(neighbors="paper"), 0)):
        plan = noted(((1, 2, 3, 4),), f="max").under(aggregator=rule)
        assert fitted(plan).f == f


def fitted(plan: Plan):
    """The strategy of a fit."""
    found = []

    class Looks(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            found.append(trainer.strategy)

    train(plan.but(callbacks=[Looks()]))
    return found[0]


def test_any_f_workers_must_weigh_less_than_half():
    heavy = noted(((1, 2, 3, 4),), weights=[2, 1, 1, 1], may_fail=True).under(aggregator=CoordinateMedian())
    assert "means any 2 of the 4 workers, and the heaviest, of [0, 1], have 3" in train(heavy.under(f=2))["error"]
    assert math.isclose(train(heavy.under(f=1))["weight"], -2, rel_tol=1e-6)
