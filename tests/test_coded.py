"""Coded steps: the mean of all parts whatever liars send, and what is refused, waits or is not caught."""

from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from lightning_byz.aggregators import Bulyan, Mean, SignMajority
from lightning_byz.attacks import ALIE, Attack, Constant, LabelFlip, NonFinite, Replay, ReverseGradient
from lightning_byz.codes import Code, Cyclic, Interleaved, Repetition, Solon
from lightning_byz.errors import TooManyFaults, TooManyLiars
from lightning_byz.estimators import WorkerMomentum
from lightning_byz.rounds.coded_wire import CodedWire
from tests.coded import Steps, apart, of, train
from tests.scenarios import Classifier, HiddenAverage, Options, same_bits

NOISY = Options(dropout=0.2, batch_norm=True, augment=True)
CODES: dict[str, tuple[Code, int, list[int]]] = {
    "solon": (Solon(1, 2), 8, [1, 6]),
    "repetition": (Repetition(1), 6, [0, 5]),
    "cyclic": (Cyclic(1), 4, [3]),
}


def parts_of(code: Code, workers: int) -> int:
    return 1 + max(map(max, code.parts(workers)))


def coded(name: str, attack: Attack | None = None, **rest: Any) -> dict[str, Any]:
    code, workers, attackers = CODES[name]
    return {"code": code, "workers": workers, "attack": attack, "attackers": attackers if attack else [], **rest}


def plain(name: str, **rest: Any) -> dict[str, Any]:
    """The mean of as many workers as there are parts."""
    code, workers, _ = CODES[name]
    return {"f": 0, "aggregator": Mean(), "workers": parts_of(code, workers), **rest}


# ---------------------------------------------------------------------- ways of parameters


@pytest.mark.parametrize("name", CASES := list(CODES))
def test_a_coded_run_is_the_mean_run_of_its_parts(name):
    clean, own = train(plain(name), NOISY), train(coded(name, ReverseGradient(100)), NOISY)
    assert apart(own, clean) < 1e-5
    if name == "repetition":
        assert all(torch.equal(value, clean.noted[step]) for step, value in own.noted.items())


@pytest.mark.parametrize("attack", [NonFinite(), Constant(3e38), Constant(-100), LabelFlip(2)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_no_lie_of_s_workers_moves_it(name, attack):
    clean, own = (
        train(coded(name, one, estimator=WorkerMomentum()), NOISY, steps=12, every=4) for one in (None, attack)
    )
    assert apart(own, clean) < 1e-5
    if name == "repetition":
        assert all(torch.equal(value, clean.noted[step]) for step, value in own.noted.items())


@pytest.mark.filterwarnings("ignore:Mean tolerates no Byzantine worker", "ignore:3 workers attack in this experiment")
def test_300_steps_are_the_clean_run_where_other_rules_drift():
    """Three of eight lie: the coded way stays within 1e-5 of the clean one; Bulyan and the mean end far away or stop, signs lose much."""
    attacked = {"workers": 8, "attackers": [1, 4, 6], "attack": ALIE(1.5)}
    options = Options(dropout=0.2, batch_norm=True)
    clean = train({"f": 0, "aggregator": Mean(), "workers": 1}, options, steps=300, every=50)
    own = train({**attacked, "code": Solon(3, 2)}, options, steps=300, every=50)
    assert list(own.noted) == [50, 100, 150, 200, 250, 300]
    assert apart(own, clean) < 1e-4  # measured: 6e-6
    assert own.loss == pytest.approx(clean.loss, rel=1e-4)  # 0.293
    for rules in ({"aggregator": Mean()}, {"aggregator": Bulyan()}):
        try:
            other = train({**attacked, **rules, "f": 1}, options, steps=100, every=50)
        except TooManyFaults:
            continue
        assert float((other.noted[100] - clean.noted[100]).norm() / clean.noted[100].norm()) > 1  # Mean: 5, Bulyan: 1e5
    signs = {"aggregator": SignMajority(), "estimator": WorkerMomentum(), "f": 1}
    options.learning_rate = 0.003  # of signs
    lied = train({**attacked, **signs}, options, steps=150, every=150)
    honest = train({**attacked, **signs, "attack": None, "attackers": []}, options, steps=150, every=150)
    assert apart(lied, honest) > 1
    assert lied.loss > 1.3 * honest.loss  # 0.297 and 0.198


# ---------------------------------------------------------------------- single steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_step_is_the_mean_of_all_parts_and_names_liars(name, dtype):
    code, workers, liars = CODES[name]
    steps = Steps(code, workers, dtype=dtype)
    for value in (float("nan"), 3e38, -7.0, lambda row: -100 * row):
        outcome = steps.take(of(liars, value))
        assert outcome.report.taken
        assert outcome.report.named == liars
        assert outcome.vector is not None
        assert outcome.vector.dtype == dtype
        torch.testing.assert_close(outcome.vector, steps.mean.to(dtype), rtol=None, atol=None)
        shares = outcome.report.coefficients
        assert shares is not None
        assert [worker for worker, share in enumerate(shares.tolist()) if not share] == liars
        assert float(shares.sum()) == pytest.approx(1.0)
    assert list(steps.memory.counts["named"]) == [4 * (worker in liars) for worker in range(workers)]


@pytest.mark.parametrize("name", ["solon", "cyclic"])
def test_one_liar_too_many_stops_the_run_at_the_third_step(name):
    code, workers, _ = CODES[name]
    workers = 8 if name == "cyclic" else workers
    liars = [0, 1]
    steps = Steps(code, workers)
    for _ in range(2):
        outcome = steps.take(of(liars, lambda row: -100 * row))
        assert outcome.vector is None
        assert not outcome.report.taken
        assert outcome.report.coefficients is None
    assert (steps.memory.step, steps.memory.faults) == (2, 2)
    with pytest.raises(TooManyFaults, match="3 steps in a row could not be taken") as raised:
        steps.take(of(liars, lambda row: -100 * row))
    said = str(raised.value)
    assert "more than 1 of a group lie, or honest workers of a group did not compute the same" in said
    assert f"the rows of workers 0 to {3 if name == 'solon' else 7} fit no message" in said
    assert steps.take().report.taken, "and one that is taken ends the row"


def test_a_step_that_is_taken_ends_a_row_of_faults():
    steps = Steps(Solon(1, 2), 4)
    for taken in (False, False, True, False, False, True):
        assert steps.take(of([] if taken else [0, 1], 5.0)).report.taken is taken


def test_a_coalition_that_knows_the_code_is_believed():
    """The limit of the method: two liars agree on another word, an honest worker is named, and the step is theirs."""
    code = Solon(1, 2)
    steps = Steps(code, 4)
    space = code.polynomials(4)
    word = space.generator @ torch.linalg.svd(space.generator[[3]], full_matrices=True).Vh[-1]
    lie = 50 * torch.randn(steps.wire.where.coded, generator=torch.Generator().manual_seed(5))

    def agreed(worker: int, row: Tensor) -> None:
        if worker < 2:
            row += lie * float(word[worker])

    outcome = steps.take(agreed)
    assert outcome.report.taken
    assert outcome.report.named == [2], "who is honest"
    assert outcome.vector is not None
    assert float((outcome.vector - steps.mean).norm()) > float(steps.mean.norm())


# ---------------------------------------------------------------------- gradients that overflow


def overflown(steps: Steps, part: int) -> None:
    steps.gradients[part] = torch.inf


@pytest.mark.parametrize("sends", [float("nan"), -100.0], ids=["not finite", "finite"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_that_overflow_under_a_scaler_are_no_fault(name, sends):
    """Whatever liars send meanwhile: more than s rows of a group that are not finite are not theirs alone."""
    code, workers, liars = CODES[name]
    steps = Steps(code, workers)
    overflown(steps, 0)
    for _ in range(5):
        outcome = steps.take(of(liars, sends), scale=1024.0)
        assert outcome.vector is None
        assert steps.memory.faults == 0
        assert not outcome.report.without_gradients, "the scaler has to hear of it"
    for _ in range(2):
        steps.take(of(liars, sends), scale=1.0)
    assert steps.memory.faults == 2
    with pytest.raises(TooManyFaults):
        steps.take(of(liars, sends))


def test_plain_liars_are_a_fault_under_a_scaler_too():
    steps = Steps(Solon(1, 2), 8)
    overflown(steps, 0)  # group 0 overflows, and in group 1 too many lie
    steps.take(of([4, 5], 7.0), scale=1024.0)
    assert steps.memory.faults == 1
    steps = Steps(Solon(1, 2), 8)
    outcome = steps.take(of([4, 5], 7.0), scale=1024.0)
    assert (steps.memory.faults, outcome.vector) == (1, None)


@pytest.mark.parametrize("name", CASES)
def test_the_mean_is_unscaled(name):
    code, workers, liars = CODES[name]
    steps = Steps(code, workers)
    outcome = steps.take(of(liars, 3.0), scale=1024.0)
    torch.testing.assert_close(outcome.vector, steps.mean.float())


# ---------------------------------------------------------------------- in Lightning


class Silent(Classifier):
    """Has no loss on some batches, or one of zero."""

    weight: float | None = None

    def configure_optimizers(self) -> Any:  # whose momentum would go on where nobody has a loss, or not
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        if float(batch[0].sum()) > 14:
            return None if self.weight is None or loss is None else loss * self.weight
        return loss


class Zeroed(Silent):
    weight = 0.0


@pytest.mark.parametrize("name", CASES)
def test_a_part_without_a_loss_counts_as_zero(name):
    silent = train(coded(name, ReverseGradient(100)), steps=20, every=5, module=Silent)
    zeroed = train(plain(name), steps=20, every=5, module=Zeroed)
    assert apart(silent, zeroed) < 1e-5
    assert apart(silent, train(plain(name), steps=20, every=5)) > 1e-3, "some have no loss"


class WritesToBatches(Classifier):
    """Changes its batch in place, as some augmentation does."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        batch[0].mul_(0.5).add_(1.0)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("name", CASES)
def test_each_worker_has_its_own_copy_of_a_batch(name):
    own = train(coded(name, ReverseGradient(100)), steps=6, every=2, module=WritesToBatches)
    assert apart(own, train(plain(name), steps=6, every=2, module=WritesToBatches)) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_buffers_that_the_loss_depends_on_are_those_of_each_part(name):
    """Also where a worker has several parts."""
    own = train(coded(name, ReverseGradient(100)), steps=12, every=4, module=HiddenAverage)
    assert apart(own, train(plain(name), steps=12, every=4, module=HiddenAverage)) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_accumulated_batches_are_larger_ones(name):
    large, small = Options(shuffle=False, batch_size=8, samples=192), Options(shuffle=False, samples=192)
    one = train(coded(name, ReverseGradient(100)), large, steps=10, every=5)
    two = train(coded(name, ReverseGradient(100)), small, steps=10, every=5, accumulate_grad_batches=2)
    assert list(two.noted) == list(one.noted)
    assert apart(two, one) < 1e-5


class Freezes(pl.Callback):
    """Freezes some parameters before a step, and thaws them later."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        frozen = 5 <= trainer.global_step < 9
        pl_module.network[0].requires_grad_(not frozen)
        pl_module.network[-1].bias.requires_grad_(trainer.global_step < 7)


@pytest.mark.parametrize("name", CASES)
def test_parameters_may_be_frozen_and_thawed(name):
    rest = {"steps": 14, "every": 2, "callbacks": [Freezes()]}
    momentum = {"estimator": WorkerMomentum()}
    own = train(coded(name, Replay(3), **momentum), NOISY, **rest)
    assert apart(own, train(plain(name, **momentum), NOISY, **rest)) < 1e-5


@dataclass(frozen=True)
class Doubled(Code):
    """A user's own code: each of three sends twice the gradient of their part, and two that agree are believed."""

    s: int = 1

    def groups(self, workers: int) -> list[range]:
        if workers % 3:
            raise ValueError(f"Doubled needs threes, and {workers} workers are none")
        return [range(first, first + 3) for first in range(0, workers, 3)]

    def parts(self, workers: int) -> list[tuple[int, ...]]:
        return [(worker // 3,) for worker in range(workers)]

    def coordinates(self, total: int) -> Interleaved:
        return Interleaved(total)

    def encode(self, worker, gradients, coordinates, *, workers, out=None):
        return torch.mul(gradients[0], 2, out=out)

    def project(self, rows, coordinates, slice=None, *, generator):
        ahead = torch.cat([rows[one : one + 3].roll(-1, 0) for one in range(0, len(rows), 3)])
        counts = rows.ne(ahead).sum(1, keepdim=True)
        return counts if slice is None else slice.add(counts)

    def locate(self, projections, *, dtype=torch.float32):
        liars = []
        for first in range(0, len(projections), 3):
            same = [not count for count in projections[first : first + 3, 0].tolist()]
            if not any(same):
                raise TooManyLiars("no two agree", workers=range(first, first + 3))
            liars += [] if all(same) else [first + (same.index(True) + 2) % 3]
        return liars

    def decode(self, rows, liars, coordinates, slice=None, *, out=None):
        used = [next(one for one in group if one not in liars) for group in self.groups(len(rows))]
        return torch.div(rows[used].mean(0), 2, out=out)


def test_a_code_of_ones_own():
    own = train({"code": Doubled(), "workers": 6, "attackers": [0, 5], "attack": NonFinite()}, NOISY, steps=12, every=4)
    assert apart(own, train(plain("repetition"), NOISY, steps=12, every=4)) < 1e-6
    with pytest.raises(ValueError, match="Doubled needs threes, and 4 workers are none"):
        train({"code": Doubled(), "workers": 4})


def test_what_rows_are_projected_on_is_nobodys_to_know():
    """Drawn anew at each step, from no seed that the run has; and what comes out is not one of the draw."""
    right, drawn = CodedWire.drawn, []

    def listening(wire: CodedWire, draw: Any) -> int:
        drawn.append(right(wire, draw))
        return drawn[-1]

    with patch.object(CodedWire, "drawn", listening):
        ways = [train(coded("solon", ReverseGradient(100)), NOISY, steps=8, every=2) for _ in range(2)]
    assert len(drawn) == 16
    assert len(set(drawn)) == 16
    assert not same_bits(*[{str(step): value for step, value in way.noted.items()} for way in ways])
