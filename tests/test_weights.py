"""Weights of workers: what they do to the aggregate, to f, and what is refused of them."""

import math
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset

from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian, GeometricMedian, Mean
from lightning_byz.attacks import SignFlip
from lightning_byz.errors import ToleranceError
from lightning_byz.estimators import WorkerMomentum
from lightning_byz.exchange import AllToAll, Local
from lightning_byz.memory import Memory
from lightning_byz.preaggregators import NNM
from lightning_byz.rounds import Attackers, Defence, Robust
from lightning_byz.rounds.start_up import fitting_defence, start_up_line, warn_of_many
from lightning_byz.rounds.weights import capped, heaviest, worker_weights
from lightning_byz.stack import Stack
from lightning_byz.strategies import RobustStrategy
from tests.rounds import robust, take
from tests.scenarios import Classifier, Fit, Options, Points, attempt, fit, same_bits
from tests.test_refusals import OverStream, construct

UNEQUAL = {
    "workers": 4,
    "f": 1,
    "aggregator": GeometricMedian(),
    "preaggregators": [NNM()],
    "weights": [1, 2, 1.5, 0.5],
}


class EqualOnly(Aggregator):
    unequal_weights = False

    def __call__(self, stack, *, generator=None):
        stack = self.admit(stack)
        return stack.vectors.mean(0)


# ---------------------------------------------------------------------- the arithmetic of caps


positive = st.floats(1e-6, 1e6)


@given(st.lists(positive, min_size=1, max_size=12), st.floats(0.01, 1.0))
def test_caps_are_kept_and_lower_no_more_than_needed(weights, share):
    if share * len(weights) < 1 - 1e-9:
        with pytest.raises(ValueError, match="cannot add up to 1"):
            capped(weights, share)
        return
    result = capped(weights, share)
    total, cap = math.fsum(result), max(result)
    assert all(weight <= share * total * (1 + 1e-6) for weight in result)
    assert all(after in (before, cap) for before, after in zip(weights, result, strict=True)), "only the largest change"
    assert result == tuple(weights) or cap >= share * total * (1 - 1e-6), "the cap is reached"


def test_zero_weights_stay_zero_and_do_not_help():
    assert capped([9, 0, 3, 3], 0.5) == (6.0, 0.0, 3.0, 3.0)
    with pytest.raises(ValueError, match=r"max_share=0.3 and 3 workers of positive weight.*at least 1 / 3"):
        capped([9, 0, 3, 3], 0.3)


def test_equal_weights_are_none():
    assert worker_weights([0.1, 0.1, 0.1], None, workers=3) is None
    assert worker_weights([7, 2, 1], 1 / 3, workers=3) is None
    assert worker_weights([1, 2], 1.0, workers=2) == (1.0, 2.0)


# ---------------------------------------------------------------------- what rules get


def shown(defence: Defence, absent: tuple[int, ...] = (), broken: tuple[int, ...] = ()) -> Stack:
    """The stack that an aggregator gets behind the same f and weights."""
    seen = []

    class Looks(Aggregator):
        def __call__(self, stack, *, generator=None):
            seen.append(stack)
            return stack.centre()

    rows = torch.arange(float(defence.workers))[:, None]
    rows[list(broken)] = float("nan")
    take(Robust(replace(defence, aggregator=Looks())), Memory(), rows, absent=absent)
    return seen[0]


def test_f_is_in_heads_and_the_stack_has_it_in_weight():
    stack = shown(Defence(4, 1.5, Mean(), weights=[1, 2, 3, 4]))
    assert (stack.weights.tolist(), stack.f) == ([1, 2, 3, 4], 4 + 0.5 * 3)
    assert shown(Defence(6, 5, Mean(), weights=[1, 1, 2, 1, 1, 1])).f == 6
    assert shown(Defence(3, 1, Mean())).f == 1
    assert shown(Defence(3, 2, Mean(), weights=[0.5, 0.5, 0.5])).f == 1, "f times the weight where all are equal"


@given(st.lists(positive, min_size=1, max_size=8), st.data())
def test_no_f_workers_weigh_more(weights, data):
    f = data.draw(st.floats(0, len(weights)))
    chosen = data.draw(st.lists(st.sampled_from(range(len(weights))), unique=True, max_size=int(f)))
    assert heaviest(weights, f) >= math.fsum(weights[worker] for worker in chosen) * (1 - 1e-12)
    assert heaviest(weights, f) <= math.fsum(weights) * (1 + 1e-12)
    assert heaviest(weights, len(weights)) == math.fsum(weights)


def test_who_is_absent_has_no_weight_and_f_is_that_of_who_is_there():
    stack = shown(Defence(4, 1, Mean(), weights=[1, 2, 3, 4]), absent=(3,))
    assert (stack.weights.tolist(), stack.f) == ([1, 2, 3, 0], 3)
    assert shown(Defence(4, 1.5, Mean(), weights=[1, 2, 3, 4]), absent=(1, 3)).f == 3.5
    assert shown(Defence(4, 1, Mean()), absent=(3,)).f == 1


def test_sanitising_takes_the_refused_weight_from_f():
    stack = shown(Defence(4, 1, Mean(), weights=[1, 2, 3, 4]), broken=(0,))
    assert (stack.weights.tolist(), stack.f) == ([0, 2, 3, 4], 3)
    stack = shown(Defence(4, 1, Mean(), weights=[1, 2, 3, 4]), absent=(2,), broken=(3,))
    assert (stack.weights.tolist(), stack.f) == ([1, 2, 0, 0], 0)


@pytest.mark.parametrize("liar", range(5))
def test_any_one_of_five_unequal_workers_may_lie(liar):
    weights, rows = [5, 4, 3, 2, 1], torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    honest = [worker for worker in range(5) if worker != liar]
    spread = rows[honest].amin(0), rows[honest].amax(0)
    rows[liar] = 1e6
    for aggregator in (CoordinateMedian(), CTMA(GeometricMedian())):
        vector = take(robust(5, 1, aggregator, weights=weights), Memory(), rows).vector
        assert bool((vector >= spread[0] - 2).all() and (vector <= spread[1] + 2).all())


def test_only_weightless_workers_present_is_absence():
    memory = Memory()
    for _ in range(5):
        vector, memory, _ = take(robust(3, 0, Mean(), weights=[1, 1, 0]), memory, torch.ones(3, 2), absent=[0, 1])
        assert vector is None
    assert (memory.step, memory.faults) == (5, 0)


def test_the_mean_is_the_weighted_mean(ranks):
    """One step of plain SGD on the same batch is the weighted mean of the workers' own steps."""
    plain = Options(learning_rate=0.1)
    steps = {"max_steps": 1}
    start = {name: value.detach() for name, value in Classifier(plain).named_parameters()}
    weights = [1.0, 0.0, 5.0, 2.0]

    def trained(weights):
        strategy = {"f": 0, "workers": 4, "aggregator": Mean(), "weights": weights}
        return ranks(1).run(fit, Fit(plain, strategy, steps), 1)[0]["parameters"]

    alone = [trained([float(worker == other) for other in range(4)]) for worker in range(4)]
    for name, value in trained(weights).items():
        expected = sum(
            weight / sum(weights) * (one[name] - start[name]) for weight, one in zip(weights, alone, strict=True)
        )
        assert torch.allclose(value - start[name], expected, atol=1e-7)
        assert not torch.allclose(value, alone[2][name])


@pytest.mark.parametrize("weights", [[1, 1], [0.1, 0.1], "samples"])
def test_equal_weights_are_ddp_bit_for_bit(ranks, weights):
    expected = ranks(2).run(fit, Fit(), 2)
    for result, plain in zip(
        ranks(2).run(fit, Fit(strategy={"f": 0, "aggregator": Mean(), "weights": weights}), 2), expected, strict=True
    ):
        assert not same_bits(result["parameters"], plain["parameters"])


@pytest.mark.parametrize("aggregator", [CoordinateMedian(), GeometricMedian()], ids=["median", "geometric median"])
def test_any_layout_and_resume(ranks, tmp_path, aggregator):
    strategy = {
        **UNEQUAL,
        "aggregator": aggregator,
        "estimator": WorkerMomentum(0.9),
        "attackers": [3],
        "attack": SignFlip(),
    }
    alone = ranks(1).run(fit, Fit(strategy=strategy), 1)[0]
    path = str(tmp_path / "half.ckpt")
    ranks(2).run(fit, Fit(strategy=strategy, trainer={"max_epochs": 1}, save=path), 2)
    for world in (2, 4):
        for job in (Fit(strategy=strategy), Fit(strategy=strategy, checkpoint=path)):
            for result in ranks(world).run(fit, job, world):
                assert not same_bits(result["parameters"], alone["parameters"])
    unweighted = ranks(1).run(fit, Fit(strategy={**strategy, "weights": None}), 1)[0]
    assert same_bits(unweighted["parameters"], alone["parameters"])


# ---------------------------------------------------------------------- sizes of shards


class OwnSites(Classifier):
    """Each rank reads data of its own, as many as it has."""

    def train_dataloader(self):
        return DataLoader(Subset(Points(), range((24, 48, 36, 40)[self.trainer.global_rank])), batch_size=4)


def weights_of(job: Fit, devices: int):
    """Fit, and return the weights of the run."""
    seen = []

    class Looks(job.module):
        def on_train_end(self):
            seen.append(self.trainer.strategy.worker_weights)
            super().on_train_end()

    job.module = Looks
    fit(job, devices)
    return seen[0]


def test_samples_are_counted_where_they_are(ranks):
    steps = {"use_distributed_sampler": False, "max_steps": 5}
    sites = Fit(strategy={"f": 1, "aggregator": Mean(), "weights": "samples"}, module=OwnSites, trainer=steps)
    assert ranks(4).run(weights_of, sites, 4) == [(24.0, 48.0, 36.0, 40.0)] * 4
    capped_sites = Fit(strategy={**sites.strategy, "max_share": 0.275}, module=OwnSites, trainer=sites.trainer)
    for weights in ranks(4).run(weights_of, capped_sites, 4):
        assert max(weights) / sum(weights) == pytest.approx(0.275)
    assert ranks(2).run(weights_of, Fit(Options(samples=99), {**UNEQUAL, "weights": "samples"}), 2) == [None, None], (
        "IID shards are padded"
    )


# ---------------------------------------------------------------------- refusals and words


ARGUMENTS = [
    ({"weights": [1, -1]}, r"weights=\[1, -1\].*finite number >= 0 per worker"),
    ({"weights": [1, float("nan")]}, r"weights=\[1, nan\].*finite"),
    ({"weights": [1, True]}, r"weights=\[1, True\].*finite"),
    ({"weights": ["1", 2]}, r"weights=\['1', 2\]"),
    ({"weights": "size"}, r"weights='size'.*'samples'"),
    ({"weights": 3}, r"weights=3"),
    ({"weights": [0, 0.0]}, "at least one worker must have a weight above 0"),
    ({"weights": [1, 2, 3], "workers": 4}, "are 3 numbers for 4 workers: give one per worker"),
    ({"weights": [1, 2], "max_share": 0}, r"max_share=0.*above 0 and at most 1"),
    ({"weights": [1, 2], "max_share": 1.5}, "max_share=1.5"),
    ({"weights": [1, 2], "max_share": "half"}, "max_share='half'"),
    ({"max_share": 0.5}, "max_share=0.5 caps unequal weights, and with weights=None all are equal"),
]


def test_arguments_are_refused_at_construction(ranks):
    (answers,) = ranks(1).run(construct, [arguments for arguments, _ in ARGUMENTS])
    for answer, (arguments, sentence) in zip(answers, ARGUMENTS, strict=True):
        assert re.search(sentence, answer), (arguments, answer)


HEAVY = {"workers": 5, "f": 2, "aggregator": CoordinateMedian(), "weights": [1, 2, 3, 4, 5]}
REFUSED = {
    "two of five unequal workers": (
        Fit(strategy=HEAVY),
        "ToleranceError",
        r"f = 2 means any 2 of the 5 workers, and the heaviest, of \[3, 4\], have 9 of the weight 15\."
        r" Give f=1 \(then any 1 may lie, and no more\), or max_share=0.24 \(workers \[2, 3, 4\] then count 2.571, not 3, 4, 5\),"
        r" or weights=None \(worker 0 then counts as much as worker 4, which weighs 5 times as much\)\.",
    ),
    "half of the weight": (
        Fit(strategy={**HEAVY, "f": 1, "workers": 4, "weights": [0, 1, 10, 6]}),
        "ToleranceError",
        r"and the heaviest, of \[2\], have 10 of the weight 17\. Give max_share=0.49 .*worker 2, which weighs more\)\.",
    ),
    "the wrong number": (
        Fit(strategy={"f": 0, "aggregator": Mean(), "weights": [1, 2, 3]}),
        "ValueError",
        "are 3 numbers for 2 workers",
    ),
    "too small a share": (
        Fit(strategy={**HEAVY, "max_share": 0.1}),
        "ValueError",
        r"max_share=0.1 and 5 workers.*at least 1 / 5",
    ),
    "a rule of equal weights": (
        Fit(strategy={**HEAVY, "f": 0, "aggregator": EqualOnly()}),
        "ToleranceError",
        "EqualOnly takes equal weights only",
    ),
    "f beyond any weights": (
        Fit(strategy={**HEAVY, "f": 3}),
        "ToleranceError",
        r"cannot tolerate f = 12 of the total weight W = 15.*Give f=1 \(then any 1 may lie, and no more\)\.$",
    ),
    "sizes of a stream": (
        Fit(strategy={"f": 0, "aggregator": Mean(), "weights": "samples"}, module=OverStream),
        "ValueError",
        r"weights='samples': the shards of workers \[0, 1\] are of unknown size.*give weights=\[",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_is_refused_on_every_rank(ranks, name):
    job, kind, sentence = REFUSED[name]
    for answer in ranks(2).run(attempt, job, 2):
        assert answer[0] == kind, answer
        assert re.search(sentence, answer[1]), answer


@pytest.mark.parametrize("change", [{"max_share": 0.24}, {"f": 1}, {"f": 0}, {"weights": None}])
def test_what_the_refusal_offers_runs(ranks, change):
    assert ranks(2).run(attempt, Fit(strategy={**HEAVY, **change}), 2) == [("nothing", "was refused")] * 2


@dataclass(frozen=True)
class TwoOfFive(CoordinateMedian):
    """Tolerates little more than two of five alike."""

    def tolerates(self, weights, f):
        return f < 0.41 * sum(weights)


def test_a_cap_that_makes_all_alike_is_called_so():
    with pytest.raises(ToleranceError, match=r"as much; max_share=0.2 is that in disguise\)\.") as caught:
        fitting_defence(2, lambda f: Defence(5, f, TwoOfFive(), weights=[1, 2, 3, 4, 5]), workers=5, sliced=False)
    assert "or max_share" not in str(caught.value)


def test_arrays_are_lists(ranks):
    assert ranks(1).run(weights_as_given) == [[[1.0, 1.0, 2.0]] * 3]


def weights_as_given():
    given = (np.array([1, 1, 2]), torch.tensor([1.0, 1.0, 2.0]), [np.float32(1), 1, 2])
    return [
        [float(weight) for weight in RobustStrategy(f=1, aggregator=CoordinateMedian(), weights=weights).weights]
        for weights in given
    ]


def test_max_is_the_largest_that_weights_leave():
    def found(weights, aggregator):
        return fitting_defence(
            "max", lambda f: Defence(len(weights), f, aggregator, weights=weights), workers=len(weights), sliced=True
        ).f

    assert found([1, 2, 3, 4, 5], CoordinateMedian()) == 1
    assert found([1, 1, 1, 1, 1], CoordinateMedian()) == 2
    with pytest.raises(ToleranceError, match="takes equal weights only"):
        found([1, 2, 3], EqualOnly())


def test_attackers_are_weighed():
    with pytest.warns(
        UserWarning, match=r"2 workers attack in this experiment and f = 1 are tolerated \(by weight, 6 and 4 of 10\)"
    ):
        warn_of_many(Defence(4, 1, CoordinateMedian(), weights=[1, 2, 3, 4]), Attackers([1, 3], SignFlip()))
    for few in ([3], [0], [0, 1]):
        warn_of_many(Defence(4, 1, CoordinateMedian(), weights=[1, 2, 3, 4]), Attackers(few, SignFlip()))
    warn_of_many(Defence(3, 2, CoordinateMedian(), weights=[0.1, 0.3, 0.2]), Attackers([1, 2], SignFlip()))


def test_the_start_up_line_says_what_the_weights_mean():
    defence = Defence(4, 1, CoordinateMedian(), weights=(1.0, 4.0, 3.0, 2.0))
    line = start_up_line(defence, AllToAll(), AllToAll().place(4))
    assert line.endswith("weights 1, 4, 3, 2, of which any 1 workers have at most 4")
    assert "exceed" not in line
    assert "weights" not in start_up_line(Defence(4, 1, CoordinateMedian()), Local(), Local().place(4))
