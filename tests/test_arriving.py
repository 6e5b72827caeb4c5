"""One process's steps under arrivals, against re-statements: who computes, what waits, what rules see, what is remembered."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_byz.aggregators import Aggregator, CoordinateMedian
from lightning_byz.arrivals import Arrivals, FixedDelays, RandomArrivals, Schedule, Synchronous
from lightning_byz.attacks import IPM, NonFinite, Replay, SignFlip
from lightning_byz.census import Arrival
from lightning_byz.errors import TooManyFaults
from lightning_byz.estimators import Gradient, Storm, WorkerMomentum
from lightning_byz.exchange import Local
from lightning_byz.memory import NOWHERE, Memory
from lightning_byz.rounds import Attackers, Defence, Sent
from lightning_byz.rounds.plan import Plan
from lightning_byz.stack import Stack


@dataclass(frozen=True)
class Told(Arrivals):
    """Who delivers is written down, and starts over."""

    steps: tuple[tuple[int, ...], ...]
    byzantine_share: float | None = None

    def schedule(self, workers, attackers, seed):
        return TellsSteps(workers, self.steps)


@dataclass(frozen=True)
class TellsSteps(Schedule):
    workers: int
    steps: tuple[tuple[int, ...], ...]

    def due(self, step):
        return list(range(self.workers)) if step == 0 else self.steps[(step - 1) % len(self.steps)]


@dataclass(frozen=True)
class Noting(Aggregator):
    """Keeps the stacks that it was given."""

    base: Aggregator = field(default_factory=CoordinateMedian)
    seen: list[Stack] = field(default_factory=list, compare=False)

    def __call__(self, stack, *, generator=None):
        self.seen.append(Stack(stack.vectors.clone(), stack.weights.clone(), stack.f))
        return self.base(stack, generator=generator)


@dataclass(frozen=True)
class OneThird(CoordinateMedian):
    """A median that asks for two honest thirds."""

    def tolerates(self, weights, f):
        return f < sum(weights) / 3


def arriving(n: int, arrivals: Arrivals, *, f=0.0, aggregator=None, estimator=None, attackers=(), attack=None, **rest):
    plan = Plan(estimator or Gradient(), Attackers(attackers, attack), arrivals, **rest)
    return plan.round(Defence(n, f, aggregator or Noting(), share=plan.share))


class Runs:
    """Steps of a round on gradients that a function gives."""

    def __init__(self, round: Any, gradient, *, coordinates: int = 3, earlier=None) -> None:
        self.round, self.gradient, self.earlier = round, gradient, earlier
        self.memory, self.outcomes = Memory(), []
        self.placement = Local().place(round.workers)
        self.wire = Local().open(coordinates, dtype=torch.float64, device=torch.device("cpu"), placement=self.placement)

    def step(self, *, absent=(), used=None, **rest):
        step, sent = self.memory.step, {}
        for turn in self.round.turns(self.memory, self.placement, (0, step)):
            if turn.worker in absent or not turn.visible:
                continue
            row = self.wire.row(turn.worker)
            row.copy_(torch.as_tensor(self.gradient(step, turn.worker)))
            gradients = (
                [row] if self.earlier is None else [row, torch.as_tensor(self.earlier(step, turn.worker)).clone()]
            )
            flags = [True, True] if used is None else used(step, turn.worker)
            sent[turn.worker] = Sent(gradients, flags, torch.full_like(row, step) if self.round.points > 1 else None)
        outcome = self.round.take(self.memory, sent, self.wire, parameters=2, **rest)
        self.memory = outcome.memory
        vector = None if outcome.vector is None else outcome.vector.clone()
        self.outcomes.append(outcome._replace(vector=vector))
        return self.outcomes[-1]


def names_itself(step, worker):
    """A gradient that tells where it was computed, and by whom."""
    return [step, worker, 1.0]


def test_who_delivered_computes_next_and_the_message_waits():
    runs = Runs(arriving(3, Told(((1,), (0, 2), (1,)))), names_itself)
    tables = []
    for _ in range(5):
        runs.step()
        tables.append(runs.memory.rules["arrivals"].values["rows"][:, 0].tolist())
    # steps:   everyone at 0; then all compute at 1 and 1 delivers; 1 computes at 2, 0 and 2 deliver what they made at 1; ...
    assert tables == [[0, 0, 0], [0, 1, 0], [1, 1, 1], [1, 2, 1], [1, 4, 1]]
    assert runs.memory.counts["turns"] == [3, 4, 3]
    assert runs.memory.counts["accepted"] == [2, 4, 2]
    assert runs.memory.counts["fetched"] == [3, NOWHERE, 3]
    assert [outcome.report.census.ages for outcome in runs.outcomes] == [
        [0, 0, 0],
        [1, 0, 1],
        [1, 1, 1],
        [2, 1, 2],
        [3, 0, 3],
    ]
    assert runs.outcomes[2].report.status == ("arrived", "not due", "arrived")
    assert runs.round.waiting(runs.memory) == [0, 2]


def test_rules_see_the_table_with_its_weights():
    noting = Noting()
    weights = {"weights": "counts", "age_decay": 0.5}
    runs = Runs(arriving(3, Told(((1,), (0, 2))), aggregator=noting, f=1, **weights), names_itself)
    for _ in range(4):
        runs.step()
    # ages 2, 1, 2 and counts 2, 3, 2 at step 3: worker 1 delivers what it made at step 2
    assert noting.seen[-1].weights.tolist() == [0.5, 1.5, 0.5]
    assert noting.seen[-1].f == 1.5, "the heaviest worker's weight"
    assert noting.seen[-1].vectors.tolist() == [[1, 0, 1], [2, 1, 1], [1, 2, 1]]
    assert runs.outcomes[-1].report.census.weights == [0.5, 1.5, 0.5]


def test_counts_are_as_good_as_repeated_rows():
    noting = Noting(CoordinateMedian())
    arrivals = RandomArrivals("squared", byzantine_share=0.35)
    draws = np.random.default_rng(0).normal(size=(60, 6, 3))
    runs = Runs(
        arriving(6, arrivals, aggregator=noting, f=2, attackers=(1, 4), attack=SignFlip(), weights="counts"),
        lambda step, worker: draws[step, worker],
    )
    counts = []
    for _ in range(60):
        outcome = runs.step()
        stack, counts = noting.seen[-1], runs.memory.counts["accepted"]
        repeated = Stack(stack.vectors.repeat_interleave(torch.tensor(counts), 0), f=stack.f)
        assert torch.equal(outcome.vector, CoordinateMedian()(repeated))
        assert stack.weights.tolist() == counts
    assert max(counts) > 8 > min(counts)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.35, 0.4, 0.49])
def test_the_share_is_exact_and_counts_replay_the_schedule(share):
    n, attackers = 8, (1, 6)
    schedule = RandomArrivals("squared", byzantine_share=share).schedule(n, attackers, seed=5)
    delivered = Counter(schedule.due(0))
    assert sorted(delivered) == list(range(n))
    for step in range(1, 400):
        (worker,) = schedule.due(step)
        delivered[worker] += 1
        total, theirs = delivered.total(), delivered[1] + delivered[6]
        assert theirs == min(max(2, int(share * total + 1e-9)), 2 + step), "who is behind the share delivers first"
        assert schedule.byzantine_share(attackers, step) == theirs / total
        if share and step >= max(np.ceil(2 / share) - n, 2):
            assert theirs / total <= share + 1e-12
            assert share - theirs / total < 1 / total
    runs = Runs(
        arriving(n, RandomArrivals("squared", byzantine_share=share), attackers=attackers, attack=SignFlip(), f=2),
        names_itself,
    )
    runs.round = replace(runs.round, defence=replace(runs.round.defence, seed=5))
    for _ in range(400):
        runs.step()
    assert runs.memory.counts["accepted"] == [delivered[worker] for worker in range(n)]


def test_laws_of_arrival():
    """Shares of 20,000 draws within four standard errors, counted within attackers and within honest workers."""
    laws: Any = {"uniform": [1, 1, 1], "proportional": [1, 2, 3], "squared": [1, 4, 9]}
    for law, masses in laws.items():
        schedule = RandomArrivals(law, byzantine_share=0.4).schedule(5, [0, 3], seed=1)
        found = Counter(schedule.due(step)[0] for step in range(1, 20001))
        for place, worker in enumerate((1, 2, 4)):
            expected = 0.6 * masses[place] / sum(masses)
            assert abs(found[worker] / 20000 - expected) < 4 * (expected * (1 - expected) / 20000) ** 0.5
        free = RandomArrivals(law).schedule(5, [0, 3], seed=1)
        found = Counter(free.due(step)[0] for step in range(1, 20001))
        whole = sum(masses) + sum(masses[:2])
        for worker, mass in zip((1, 2, 4, 0, 3), [*masses, *masses[:2]], strict=True):
            assert abs(found[worker] / 20000 - mass / whole) < 4 * (mass / whole / 20000) ** 0.5


def test_asynchronous_momentum_is_what_the_paper_says():
    """The server's table, weighted median and IPM of the weighted honest mean, re-stated in numpy."""
    n, attackers, beta, steps = 6, (1, 4), 0.9, 80
    arrivals = RandomArrivals("proportional", byzantine_share=0.4)
    draws = np.random.default_rng(1).normal(size=(steps, n, 3))
    kwargs = {"attackers": attackers, "attack": IPM(0.3), "weights": "counts", "estimator": WorkerMomentum(beta)}
    runs = Runs(
        arriving(n, arrivals, aggregator=CoordinateMedian(), f=2, **kwargs), lambda step, worker: draws[step, worker]
    )
    schedule, honest = arrivals.schedule(n, attackers, 0), [0, 2, 3, 5]
    table, momenta, pending, counts = np.zeros((n, 3)), np.zeros((n, 3)), {}, np.zeros(n)
    for step in range(steps):
        for worker in range(n) if step == 0 else schedule.due(step - 1):
            pending[worker] = beta * momenta[worker] + (1 - beta) * draws[step, worker]
        for worker in schedule.due(step):
            momenta[worker] = table[worker] = pending[worker]
            counts[worker] += 1
        shares = counts[honest] / counts[honest].sum()
        for worker in set(attackers) & set(schedule.due(step)):
            table[worker] = -0.3 * shares @ table[honest]
        vector = runs.step().vector
        order = np.argsort(table, axis=0)
        for place in range(3):
            column, sums = table[order[:, place], place], np.cumsum(counts[order[:, place]]) / counts.sum()
            first = np.searchsorted(sums, 0.5 - 1e-12)
            middle = column[first] if abs(sums[first] - 0.5) > 1e-12 else (column[first] + column[first + 1]) / 2
            assert abs(float(vector[place]) - middle) < 1e-12


def test_storm_corrects_at_its_own_fetch():
    """Each worker's estimate adds the gradient's change between its own two last fetches, which no other worker's step touches."""
    n, steps, beta = 4, 40, 0.25
    arrivals = RandomArrivals("squared")
    draws = np.random.default_rng(2).normal(size=(steps, n, 3))
    asked = []

    def earlier(step, worker):
        point = runs.memory.point(worker)
        asked.append((step, worker, None if point is None else int(point[0])))
        return draws[step, worker] * 0.5 + (0 if point is None else float(point[0]))

    runs = Runs(
        arriving(n, arrivals, estimator=Storm(beta), weights="counts"),
        lambda step, worker: draws[step, worker],
        earlier=earlier,
    )
    schedule, known, pending, fetched = arrivals.schedule(n, (), 0), {}, {}, {}
    for step in range(steps):
        for worker in range(n) if step == 0 else schedule.due(step - 1):
            estimate = draws[step, worker].copy()
            if worker in known:
                estimate += (1 - beta) * (known[worker] - (draws[step, worker] * 0.5 + fetched[worker]))
            pending[worker], fetched[worker] = estimate, step
        for worker in schedule.due(step):
            known[worker] = pending[worker]
        runs.step()
        table = runs.memory.rules["arrivals"].values["rows"].numpy()
        assert np.allclose(table, [known[worker] for worker in range(n)], atol=1e-12)
        assert len(runs.memory.points) <= n
        assert set(runs.memory.points) == set(fetched.values())


def test_a_broken_delivery_keeps_the_row_and_its_count():
    def gradient(step, worker):
        return [float("nan")] * 3 if worker == 1 and step == 2 else names_itself(step, worker)

    runs = Runs(arriving(3, Told(((1,), (1,), (0,))), f=1, estimator=WorkerMomentum(0.5)), gradient)
    for _ in range(2):
        runs.step()
    before, rows = runs.memory, runs.memory.rules["arrivals"].values["rows"].clone()
    outcome = runs.step()  # worker 1 delivers what it made at step 2
    assert outcome.report.status == ("not due", "broken", "not due")
    assert not outcome.report.taken
    assert outcome.report.without_gradients, "one worker's nonsense is no overflow"
    assert outcome.report.reason == "no usable message has arrived"
    assert torch.equal(runs.memory.rules["arrivals"].values["rows"], rows)
    assert runs.memory.counts["accepted"] == before.counts["accepted"] == [1, 2, 1]
    assert runs.memory.counts["refused"] == [0, 1, 0]
    assert runs.memory.faults == 0
    assert torch.equal(runs.memory.workers[1]["estimator"]["momentum"], before.workers[1]["estimator"]["momentum"])  # type: ignore[arg-type]
    assert runs.step().report.taken
    assert runs.step().report.taken
    assert runs.memory.counts["refused"] == [0, 0, 0]


def test_storm_starts_anew_after_a_refusal():
    def gradient(step, worker):
        return [float("nan")] * 3 if worker == 1 and step == 2 else [float(step)] * 3

    runs = Runs(
        arriving(3, Told(((1,), (1,), (1,), (0,))), f=1, estimator=Storm(0.25)), gradient, earlier=lambda *_: [7.0] * 3
    )
    for _ in range(3):
        runs.step()
    assert runs.memory.counts["point"][1] == NOWHERE
    assert runs.memory.counts["adopted"][1] == 0
    runs.step()
    assert runs.memory.rules["arrivals"].values["rows"][1].tolist() == [3.0] * 3, "its gradient alone"


def test_attackers_see_the_table_and_change_their_row_when_due():
    @dataclass(frozen=True)
    class Watching(SignFlip):
        seen: list = field(default_factory=list, compare=False)

        def replace(self, sight):
            self.seen.append((sight.step, list(sight.attackers), sight.stack.vectors[:, 0].tolist(), list(sight.ages)))
            return super().replace(sight)

    attack = Watching()
    runs = Runs(
        arriving(3, Told(((1,), (2,), (0,))), f=2, attackers=(1, 2), attack=attack),
        lambda step, worker: [step + 1.0] * 3,
    )
    for _ in range(5):
        runs.step()
    rows = runs.memory.rules["arrivals"].values["rows"][:, 0].tolist()
    assert rows == [2.0, -3.0, -2.0], (
        "each flipped once, when it was due; at step 4 worker 1 delivered what it made at step 2"
    )
    assert [step for step, *_ in attack.seen] == [0, 1, 2, 4], "nobody attacks where no attacker is due"
    assert attack.seen[2] == (2, [1, 2], [1.0, -2.0, 2.0], [2, 1, 1])


def test_an_attacked_row_lasts_while_somebody_has_sent_nothing_usable():
    """Rules see a copy of the table then, without that worker's row."""
    runs = Runs(
        arriving(5, Told(((1,), (2,))), f=2, attackers=(1,), attack=SignFlip()),
        lambda step, worker: [float("nan") if worker == 4 else worker + 1.0] * 3,
    )
    for _ in range(3):
        runs.step()
        assert runs.memory.rules["arrivals"].values["rows"][:, 0].tolist() == [1.0, -2.0, 3.0, 4.0, 0.0]


def test_a_step_that_raises_leaves_the_table_as_it_was():
    @dataclass(frozen=True)
    class Fails(Noting):
        def __call__(self, stack, *, generator=None):
            if len(self.seen) == 2:
                raise RuntimeError("no memory left")
            return super().__call__(stack, generator=generator)

    runs = Runs(
        arriving(3, Told(((1, 2), (0,))), f=1, aggregator=Fails(), attackers=(2,), attack=SignFlip()),
        lambda step, worker: [10.0 * step + worker + 1] * 3,
    )
    runs.step()
    runs.step()
    rows = runs.memory.rules["arrivals"].values["rows"].clone()
    with pytest.raises(RuntimeError, match="no memory left"):
        runs.step()
    assert torch.equal(runs.memory.rules["arrivals"].values["rows"], rows)


def test_replay_counts_deliveries():
    runs = Runs(
        arriving(2, Told(((1,), (0,), (0,))), f=1, attackers=(1,), attack=Replay(1)),
        lambda step, worker: [step + 1.0] * 3,
    )
    sent = [runs.memory.rules["arrivals"].values["rows"][1, 0].item() for _ in range(8) if runs.step()]
    # worker 1 makes messages at 0, 1, 2, 5 and delivers them at 0, 1, 4, 7; it sends the one before
    assert sent == [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0]


def test_attackers_that_only_send_nonsense_are_charged_to_f():
    arrivals = RandomArrivals("squared", byzantine_share=0.4)
    noting = Noting(CoordinateMedian())
    runs = Runs(
        arriving(5, arrivals, f=2, aggregator=noting, attackers=(3, 4), attack=NonFinite(), weights="counts"),
        names_itself,
    )
    taken = [runs.step().report.taken for _ in range(30)]
    byzantine = [runs.round.due(step)[0] in (3, 4) for step in range(1, 30)]
    assert taken == [True, *(not theirs for theirs in byzantine)]
    assert runs.memory.counts["accepted"][3:] == [0, 0]
    assert runs.memory.faults == 0
    assert noting.seen[0].f == 0.0
    assert noting.seen[0].weights.tolist() == [1, 1, 1, 0, 0]


def test_too_many_broken_messages_stop_the_run():
    runs = Runs(arriving(3, Told(((0,), (1,), (2,))), f=1), lambda step, worker: [float("inf")] * 3)
    assert runs.step().report.fault
    assert runs.memory.faults == 1
    assert not runs.outcomes[0].report.without_gradients, "a gradient scaler is to see it"
    runs.step()
    with pytest.raises(
        TooManyFaults, match="3 times in a row more weight was broken than may be: the last messages of workers"
    ):
        runs.step()


def test_a_scaler_that_scales_too_much_is_no_fault():
    runs = Runs(arriving(2, Told(((0,), (1,))), f=0), lambda step, worker: [float("inf") if step < 3 else 1.0] * 3)
    for _ in range(3):
        assert runs.step(scale=4.0).report.fault
    assert runs.memory.faults == 0
    outcomes = [runs.step(scale=4.0) for _ in range(3)]
    assert [outcome.report.taken for outcome in outcomes] == [False, True, True]
    assert outcomes[0].report.fault is False, "what worker 0 made at step 2 was heard of then"
    assert outcomes[0].report.without_gradients
    assert outcomes[1].vector.tolist() == [0.25] * 3


def test_no_update_is_made_while_a_rule_does_not_tolerate_f():
    """At the start 4 of 9 attack, more than this rule takes, and its table fills until they are the stated share."""
    arrivals = Told(((0,), (1,)), byzantine_share=0.32)
    kwargs = {"attackers": (5, 6, 7, 8), "attack": SignFlip(), "weights": "counts", "aggregator": OneThird()}
    runs = Runs(arriving(9, arrivals, f=4, **kwargs), names_itself)
    outcome = runs.step()
    assert not outcome.report.taken
    assert "OneThird cannot tolerate f = 4 of the total weight W = 9" in outcome.report.reason
    assert outcome.report.adopted == (True,) * 9
    assert runs.memory.faults == 0
    taken = [runs.step().report.taken for _ in range(6)]
    assert taken == [False, False, False, True, True, True], "from 4 of 13 deliveries on"
    assert runs.memory.counts["accepted"][0] == 4
    assert "reference" not in runs.memory.rules


def test_the_stated_share_is_the_weight_that_may_be_byzantine():
    noting = Noting(CoordinateMedian())
    arrivals = RandomArrivals("uniform", byzantine_share=0.4)
    runs = Runs(
        arriving(5, arrivals, f=2, aggregator=noting, attackers=(3, 4), attack=SignFlip(), weights="counts"),
        names_itself,
    )
    for _ in range(40):
        runs.step()
    for step, stack in enumerate(noting.seen):
        theirs = float(stack.weights[3:].sum())
        assert stack.f == runs.outcomes[step].report.f == max(0.4 * (5 + step), theirs)
        assert theirs <= 0.4 * (5 + step)


def test_parameters_count_as_used_while_a_row_uses_them():
    def used(step, worker):
        return [worker == 1 and step < 2, True]

    runs = Runs(arriving(2, Told(((0,), (0,), (1,), (0,), (1,)))), names_itself)
    found = [runs.step(used=used).report.census.used[0] for _ in range(7)]
    # worker 1 used the first parameter at steps 0 and 1, which it delivers at 0 and 3; at 5 it delivers what it made at 4
    assert found == [1, 1, 1, 1, 1, 0, 0]


def test_an_absent_worker_delivers_nothing_and_keeps_its_row():
    runs = Runs(arriving(2, Told(((0,), (1,)))), names_itself)
    runs.step()
    runs.step(absent=[1])  # whose training step returned None
    outcome = runs.step()
    assert outcome.report.census.arrival == [Arrival.NOT_DUE, Arrival.ABSENT]
    assert not outcome.report.taken
    assert outcome.report.without_gradients
    assert runs.memory.counts["accepted"] == [2, 1]
    assert runs.step().report.taken
    assert runs.step().report.census.arrival == [Arrival.NOT_DUE, Arrival.ARRIVED]
    assert runs.memory.rules["arrivals"].values["rows"][1].tolist() == names_itself(3, 1)


def test_the_default_is_lock_step():
    plan = Plan(arrivals=Synchronous())
    assert plan.in_lock_step
    assert type(plan.round(Defence(3, 1, CoordinateMedian()))).__name__ == "Robust"
    assert Synchronous().schedule(3, (), 0).per_step(3) == 3


def test_fixed_delays():
    schedule = FixedDelays([0, 1, 2]).schedule(3, (), 0)
    assert [schedule.due(step) for step in range(7)] == [[0, 1, 2], [0], [0, 1], [0, 2], [0, 1], [0], [0, 1, 2]]
    assert schedule.per_step(3) == pytest.approx(1 + 1 / 2 + 1 / 3, abs=2e-3)
    slow = FixedDelays([2, 5]).schedule(2, (), 0)
    assert [slow.due(step) for step in range(5)] == [[0, 1], [0], [0, 1], [0], [0, 1]], (
        "ticks without a delivery are no steps"
    )
    assert slow.due(3) == [0], "asked again, or out of order"
    assert slow.due(0) == [0, 1]


class Alternating(Arrivals):
    """A user's class that is its own schedule."""

    def schedule(self, workers, attackers, seed) -> Any:
        self.workers = workers
        return self

    def due(self, step):
        return range(self.workers) if step == 0 else [step % self.workers]


def test_any_object_that_says_who_is_due_is_a_schedule():
    runs = Runs(arriving(3, Alternating()), names_itself)
    for _ in range(5):
        runs.step()
    assert runs.memory.counts["accepted"] == [2, 3, 2]
    assert type(runs.round.schedule).__name__ == "Alternating"
