"""What the rules' side remembers from step to step: the last aggregate, and the rows that attackers would have sent."""

from dataclasses import dataclass, replace

import pytest
import torch

from lightning_byz.aggregators import Aggregator, CoordinateMedian
from lightning_byz.attacks import Attack, NonFinite
from lightning_byz.exchange import Local
from lightning_byz.memory import Memory
from lightning_byz.rounds import Aggregation, Attackers
from lightning_byz.stack import Stack
from tests.recording import Passes
from tests.rounds import robust, take
from tests.scenarios import Fit, Options, attempt, fit, same_bits
from tests.test_lightning_life import Adversaries, OnlyTrainable, with_callbacks


@dataclass(frozen=True)
class TowardsMedian(Aggregator):
    """Go half of the way from the last aggregate to the median, and shorten the way of the far by a distance across coordinates."""

    uses_reference = True

    def __call__(self, stack, *, generator=None):
        last = stack.centre() * 0 if stack.reference is None else stack.reference
        far = stack.squared_distances_to(last).max().sqrt()
        return last + (stack.centre() - last) * (0.5 / (1 + far)).to(last.dtype)


@dataclass(frozen=True)
class Stale(Attack):
    """Send the opposite of the oldest row that is kept."""

    @property
    def remembers(self):
        return 3

    def replace(self, sight):
        past = sight.past
        assert set(sight.attackers) <= set(past)
        return torch.stack(
            [-3 * past[worker][0] if past[worker] else sight.stack.vectors[worker] for worker in sight.attackers]
        )


STRATEGY = {"workers": 4, "f": 1, "aggregator": TowardsMedian(), "attackers": [0, 3], "attack": Stale()}
OPTIONS = Options(dropout=0.2, augment=True)


def job(epochs=2, *, strategy=STRATEGY, **rest) -> Fit:
    return Fit(OPTIONS, strategy, {"max_epochs": epochs}, **rest)


def saved_by(path) -> dict:
    return torch.load(path, weights_only=True)["lightning_byz"]["optimizers"]


@pytest.mark.filterwarnings("ignore:2 workers attack")
@pytest.mark.parametrize(("first", "then"), [(1, 1), (1, 2), (2, 1), (2, 4), (4, 3)])
def test_any_layout_and_any_resume_train_the_same(ranks, tmp_path, first, then):
    whole = ranks(1).run(fit, job(4), 1)[0]
    path = str(tmp_path / "half.ckpt")
    half = ranks(first).run(fit, job(2, save=path), first)[0]
    assert same_bits(half["parameters"], whole["parameters"]), "the second half trains nothing"
    (entry,) = saved_by(path).values()
    total = sum(value.numel() for value in half["parameters"].values())
    assert entry["rules"]["reference"]["aggregate"].shape == (total,)
    past = entry["rules"]["attack"]
    assert sorted(past) == [f"worker {worker} step {step}" for worker in (0, 3) for step in (10, 11, 9)]
    assert {row.shape for row in past.values()} == {(total,)}
    for result in ranks(then).run(fit, job(4, seed=99, checkpoint=path), then):
        assert not same_bits(result["parameters"], whole["parameters"])
    for result in ranks(then).run(fit, job(4), then):
        assert not same_bits(result["parameters"], whole["parameters"])


@pytest.mark.parametrize("forgotten", ["reference", "attack"])
def test_what_the_file_holds_of_the_rules_side_matters(ranks, tmp_path, forgotten):
    path, older = str(tmp_path / "half.ckpt"), str(tmp_path / "older.ckpt")
    ranks(1).run(fit, job(2, save=path), 1)
    file = torch.load(path, weights_only=True)
    del file["lightning_byz"]["optimizers"][0]["rules"][forgotten]
    torch.save(file, older)
    kept, lost = (ranks(1).run(fit, job(3, checkpoint=name), 1)[0] for name in (path, older))
    assert same_bits(kept["parameters"], lost["parameters"])
    other = {**STRATEGY, "aggregator": CoordinateMedian(), "attack": None, "attackers": []}
    assert ranks(1).run(fit, job(3, strategy=other, checkpoint=path), 1)[0]["report"].taken, (
        "a run that reads none of it"
    )


def test_a_step_that_is_not_taken_carries_nothing_over(ranks, tmp_path):
    paths = [str(tmp_path / name) for name in ("survived.ckpt", "shorter.ckpt")]
    bad = tuple(range(40, 48))
    survived = ranks(1).run(fit, Fit(Options(nan_calls=bad), STRATEGY, save=paths[0]), 1)[0]
    ranks(1).run(fit, Fit(Options(), STRATEGY, {"max_steps": 10}, save=paths[1]), 1)
    assert not survived["report"].taken
    after, before = (saved_by(path)[0] for path in paths)
    assert after["step"] == before["step"] + 2
    assert not same_bits(after["rules"]["reference"], before["rules"]["reference"])
    assert not same_bits(after["rules"]["attack"], before["rules"]["attack"])


def test_trained_parameters_may_change(ranks):
    thawing = Fit(strategy=STRATEGY, module=OnlyTrainable, trainer={"max_epochs": 3})
    results = [ranks(world).run(with_callbacks, thawing, ["thaw"], world)[0] for world in (1, 2, 4)]
    for result in results[1:]:
        assert not same_bits(result["parameters"], results[0]["parameters"])


def test_each_optimizer_carries_its_own(ranks, tmp_path):
    path = str(tmp_path / "half.ckpt")
    strategy = {**STRATEGY, "workers": None, "attackers": [1], "f": 0}
    whole = ranks(2).run(fit, Fit(strategy=strategy, module=Adversaries), 2)[0]
    ranks(2).run(fit, Fit(strategy=strategy, module=Adversaries, trainer={"max_epochs": 1}, save=path), 2)
    assert [entry["rules"]["reference"]["aggregate"].numel() for entry in saved_by(path).values()] == [
        8 * 16 + 16,
        12 * 2 + 2,
    ]
    for result in ranks(2).run(fit, Fit(strategy=strategy, module=Adversaries, checkpoint=path), 2):
        assert not same_bits(result["parameters"], whole["parameters"])


def rows(*values: float) -> torch.Tensor:
    return torch.tensor([[value, -value] for value in values], dtype=torch.float32)


@dataclass(frozen=True)
class Remembers(Aggregator):
    """The median, noting each reference it is shown."""

    seen: list
    uses_reference = True

    def __call__(self, stack, *, generator=None):
        self.seen.append(stack.reference)
        return stack.centre()


class TriesTheDefence(Stale):
    def replace(self, sight):
        sight.defence(Stack(sight.stack.vectors, f=sight.stack.f))
        return super().replace(sight)


def test_the_reference_is_the_last_aggregate_and_the_attack_tries_the_same():
    seen: list = []
    round, memory = robust(4, 1, Remembers(seen), attackers=[3], attack=TriesTheDefence()), Memory()
    first, memory, _ = take(round, memory, rows(1, 2, 3, 4))
    second, memory, _ = take(round, memory, rows(5, 6, 7, 8))
    take(round, memory, rows(5, 6, 7, 8))
    assert seen[:2] == [None, None]
    assert [value.tolist() for value in seen[2:]] == [first.tolist()] * 2 + [second.tolist()] * 2
    assert first.tolist() != second.tolist()


def test_a_preaggregator_may_ask_for_the_reference_too():
    class Asks(Passes):
        uses_reference = True

        def __call__(self, stack, *, generator=None):
            seen.append(None if stack.reference is None else stack.reference.tolist())
            return stack

    seen: list = []
    round, memory = robust(4, 1, CoordinateMedian(), preaggregators=[Asks()]), Memory()
    for _ in range(2):
        _, memory, _ = take(round, memory, rows(1, 2, 3, 4))
    assert seen == [None, [2.5, -2.5]]


def test_a_reference_that_an_attack_makes_up_is_tried():
    seen: list = []
    defence, made_up, last = robust(4, 1, Remembers(seen)).defence, torch.tensor([5.0, 6.0]), torch.tensor([7.0, 8.0])
    for reference in (made_up, None):
        defence.tried(Stack(rows(1, 2, 3, 4), f=1.0, reference=reference), step=0, reference=last)
    assert [value.tolist() for value in seen] == [[5, 6], [7, 8]]


def test_a_rule_that_does_not_ask_is_shown_nothing():
    @dataclass(frozen=True)
    class Silent(Remembers):
        uses_reference = False

    seen: list = []
    round, memory = robust(4, 1, Silent(seen), attackers=[3]), Memory()
    for _ in range(2):
        _, memory, _ = take(round, memory, rows(1, 2, 3, 4))
    assert seen == [None, None]
    assert memory.rules == {}


def test_the_past_holds_usable_rows_of_taken_steps_only():
    round, memory = robust(4, 1, CoordinateMedian(), attackers=[2, 3], attack=Stale()), Memory()
    nan = float("nan")
    for sent, absent, expected in [
        (rows(1, 2, 3, 4), (), {2: [3], 3: [4]}),
        (rows(1, 2, nan, 5), (), {2: [3], 3: [4, 5]}),
        (rows(1, nan, nan, 6), (), {2: [3], 3: [4, 5]}),
        (rows(1, 2, 7, 8), (3,), {2: [3, 7], 3: [4, 5]}),
        (rows(1, 2, 9, 10), (), {2: [3, 7, 9], 3: [4, 5, 10]}),
        (rows(1, 2, 11, 12), (), {2: [7, 9, 11], 3: [5, 10, 12]}),
    ]:
        _, memory, _ = take(round, memory, sent, absent=absent)
        past = round.attackers.past(memory)
        assert {worker: [float(row[0]) for row in kept] for worker, kept in past.items()} == expected


class Stalest(Stale):
    @property
    def remembers(self):
        return 1


@pytest.mark.parametrize(
    ("attack", "shown"), [(Stale(), {3: [2, 3, 4]}), (Stalest(), {3: [4]}), (NonFinite(), {}), (None, {})]
)
def test_an_attack_is_shown_as_much_as_it_remembers_whatever_the_file_holds(attack, shown):
    round, memory = robust(4, 1, CoordinateMedian(), attackers=[3], attack=Stale()), Memory()
    for value in (1, 2, 3, 4):
        _, memory, _ = take(round, memory, rows(0, 0, 0, value))
    past = Attackers([3], attack).past(memory)
    assert {worker: [float(row[0]) for row in kept] for worker, kept in past.items()} == shown


def test_the_reference_outlives_the_rows_it_was_a_view_of():
    class First(TowardsMedian):
        def __call__(self, stack, *, generator=None):
            return stack.vectors[0]

    vector, memory, _ = take(robust(4, 1, First()), Memory(), rows(1, 2, 3, 4))
    assert memory.rules["reference"].values["aggregate"].tolist() == [1.0, -1.0]
    assert vector.tolist() == [1.0, -1.0], "nor does what becomes .grad lie in a row"
    vector.fill_(7.0)
    assert memory.rules["reference"].values["aggregate"].tolist() == [1.0, -1.0]


def test_what_is_remembered_is_nobodys_to_write_to():
    class Writes(Stale):
        def replace(self, sight):
            return torch.stack(
                [
                    row.mul_(2)
                    for worker in sight.attackers
                    for row in sight.past[worker][:1] or [sight.stack.vectors[worker].clone()]
                ]
            )

    class WritesReference(TowardsMedian):
        def __call__(self, stack, *, generator=None):
            return stack.centre() if stack.reference is None else stack.reference.add_(stack.centre())

    for round, sentence in [
        (robust(4, 1, CoordinateMedian(), attackers=[3], attack=Writes()), "Writes wrote to past"),
        (robust(4, 1, WritesReference()), r"WritesReference wrote to stack\.reference"),
    ]:
        _, memory, _ = take(round, Memory(), rows(1, 2, 3, 4))
        with pytest.raises(ValueError, match=sentence):
            take(round, memory, rows(1, 2, 3, 4))


def test_the_reference_follows_its_parameters_by_name():
    aggregation = Aggregation(robust(2, 0, TowardsMedian()), Local(), Local().place(2), device=torch.device("cpu"))
    one, other, late = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    gradients = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
    aggregation.fit([("one", one), ("other", other)])
    aggregation.step({worker: aggregation.collect(worker, gradients) for worker in range(2)})
    before = aggregation.memory.rules["reference"].values["aggregate"]
    assert before.tolist() == torch.cat([one.grad, other.grad]).tolist()
    assert before.any()
    aggregation.fit([("late", late), ("other", other)])
    assert aggregation.layout.total == 4
    assert aggregation.memory.rules["reference"].values["aggregate"].tolist() == [0.0, 0.0, *before[2:].tolist()]


class BreaksLater(TowardsMedian):
    """Fine on the first step only."""

    def __call__(self, stack, *, generator=None):
        return stack.centre() if stack.reference is None else stack.reference * float("nan")


class LengthOfTheWay(TowardsMedian):
    """Mixes coordinates past the Stack, from the second step on."""

    def __call__(self, stack, *, generator=None):
        return (
            stack.centre()
            if stack.reference is None
            else stack.reference / (1 + (stack.centre() - stack.reference).norm())
        )


class Noise(TowardsMedian):
    """Draws as many numbers as its slice is long, so that a later slice starts with the numbers of the first."""

    random = True

    def __call__(self, stack, *, generator=None):
        return stack.centre() + torch.randn(stack.vectors.shape[1], generator=self.drawing(generator)).to(
            stack.vectors.dtype
        )


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (BreaksLater(), "BreaksLater returned values that are not finite"),
        (LengthOfTheWay(), "LengthOfTheWay gives other values on a slice"),
        (Noise(), "Noise gives other values on a slice"),
    ],
)
def test_later_steps_are_tried_before_the_first(ranks, rule, sentence):
    for kind, answer in ranks(2).run(attempt, job(strategy={**STRATEGY, "f": 1, "aggregator": rule}), 2):
        assert kind == "ValueError"
        assert sentence in answer


def test_in_the_modules_own_dtype(ranks, tmp_path):
    path = str(tmp_path / "half.ckpt")
    narrow = Fit(Options(), STRATEGY, {"max_epochs": 2, "precision": "bf16-true"})
    alone = ranks(1).run(fit, narrow, 1)[0]
    ranks(1).run(fit, replace(narrow, trainer={**narrow.trainer, "max_epochs": 1}, save=path), 1)
    assert saved_by(path)[0]["rules"]["reference"]["aggregate"].dtype == torch.bfloat16
    for result in ranks(2).run(fit, replace(narrow, checkpoint=path), 2):
        assert not same_bits(result["parameters"], alone["parameters"])
