"""Stale workers inside Lightning: logging that never hangs, messages that are what they should be, epochs, refusals, what is said."""

import re
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torchmetrics.classification import BinaryAccuracy

from lightning_byz.aggregators import CTMA, SMEA, CoordinateMedian, Mean
from lightning_byz.arrivals import Arrivals, FixedDelays, RandomArrivals, Schedule
from lightning_byz.attacks import SignFlip
from lightning_byz.data import Everyone
from lightning_byz.estimators import Gradient, WorkerMomentum
from lightning_byz.random import Streams
from lightning_byz.strategies import RobustStrategy
from tests.scenarios import Classifier, Fit, Options, attempt, fit, same_bits

pytestmark = pytest.mark.filterwarnings("ignore:workers .* have delivered at the first step only")

EIGHT = {"workers": 8, "f": 2, "aggregator": CTMA(CoordinateMedian()), "arrivals": RandomArrivals("squared")}


class Logs(pl.LightningModule):
    """Logs in every way there is; one key is first logged in epoch 3, by rank 0 only."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)
        self.accuracy = BinaryAccuracy()
        self.turns: list[int] = []
        self.seen: list[dict[str, float]] = []

    def training_step(self, batch, batch_idx):
        worker: Any = self.trainer.strategy.worker  # type: ignore[attr-defined]
        self.turns.append(self.current_epoch)
        loss = nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
        self.log("both", loss, on_step=True, on_epoch=True, sync_dist=True)
        self.log("worker", float(worker), on_step=True, on_epoch=False, sync_dist=True)
        self.accuracy(self.layer(batch[0]).argmax(1), batch[1])
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        if self.current_epoch >= 3 and worker == 0:
            self.log("late", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def on_train_epoch_end(self):
        self.seen.append({name: float(value) for name, value in self.trainer.callback_metrics.items()})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    train_dataloader = Classifier.train_dataloader
    options = Options(samples=24, batch_size=8)


def what_is_logged(world: int):
    modules = []

    def module(options):
        modules.append(Logs(options))
        return modules[-1]

    arrivals = RandomArrivals("uniform")
    job = Fit(strategy={"f": 0, "aggregator": Mean(), "workers": 2, "arrivals": arrivals}, trainer={"max_epochs": 8})
    job.module = module  # type: ignore[assignment]
    result = fit(job, world)
    return modules[-1].turns, modules[-1].seen, result["global_step"]


@pytest.mark.timeout(120)
def test_ranks_that_deliver_nothing_in_an_epoch_hang_nobody(ranks):
    (first, said, steps), (second, also, _) = ranks(2).run(what_is_logged, 2, timeout=60)
    assert steps == 3 * 8
    idle = [epoch for epoch in range(8) if epoch not in first or epoch not in second]
    assert idle, "no rank was ever idle: another seed shows what this test is for"
    assert len(said) == 8
    for epoch, (one, other) in enumerate(zip(said, also, strict=True)):
        assert one.keys() == other.keys(), epoch
        assert one == pytest.approx(other, nan_ok=True), epoch
    assert "late" in said[-1]
    assert "late" not in said[2]


class Remembers(Classifier):
    """Writes down what every turn computed on, and the streams it started from."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.turns = []

    def training_step(self, batch, batch_idx):
        position = self.trainer.current_epoch, batch_idx, self.trainer.strategy.worker  # type: ignore[attr-defined]
        parameters = [parameter.detach().clone() for parameter in self.parameters()]
        self.turns.append((self.trainer.global_step, position, parameters, [part.clone() for part in batch]))
        return super().training_step(batch, batch_idx)


class Keeps(RobustStrategy):
    """Writes down every table."""

    def optimizer_step(self, optimizer, closure, model=None, **kwargs):
        output = super().optimizer_step(optimizer, closure, model, **kwargs)
        run: Any = self._run
        memory = run.aggregation(0).memory
        tables.append((memory.rules["arrivals"].values["rows"].clone(), list(memory.counts["row"])))
        return output


tables: list[tuple[torch.Tensor, list[int]]] = []


def test_a_message_is_the_gradient_where_it_was_fetched(monkeypatch):
    """Each row equals, bit for bit, a computation at the parameters saved when it was fetched, on its batch, with the draws of its key."""
    tables.clear()
    modules = []

    def module(options):
        modules.append(Remembers(options))
        return modules[-1]

    options = Options(dropout=0.3, samples=64)
    job = Fit(options, {**EIGHT, "estimator": Gradient()}, {"max_epochs": 2}, kind=Keeps)
    job.module = module  # type: ignore[assignment]
    fit(job, 1)
    known, stale = {}, 0
    again = Classifier(options)
    for step, (epoch, batch_idx, worker), parameters, batch in modules[-1].turns:
        for own, value in zip(again.parameters(), parameters, strict=True):
            own.data = value
        with Streams(torch.device("cpu")).inside(3, "step", epoch, batch_idx, worker):
            loss = nn.functional.cross_entropy(again(batch[0]), batch[1])
        gradients = torch.autograd.grad(loss, list(again.parameters()))
        known[worker, step] = torch.cat([gradient.flatten() for gradient in gradients])
    for step, (rows, computed) in enumerate(tables):
        for worker, row in enumerate(rows):
            assert torch.equal(row, known[worker, computed[worker]])
            stale += computed[worker] < step
    assert len(tables) == 32
    assert stale > 100


def received(job: Fit, devices: int):
    found = []

    class Counts(RobustStrategy):
        def optimizer_step(self, *args, **kwargs):
            output = super().optimizer_step(*args, **kwargs)
            run: Any = self._run
            placement, part = run.placement, run.aggregation(0)._wire.slice
            assert self.report is not None
            found.append((self.report.bytes_received, list(placement.local), part.stop - part.start, part.total))
            return output

    job.kind = Counts
    fit(job, devices)
    return found


def test_only_due_rows_travel(ranks):
    arrivals = FixedDelays([0, 1, 2, 3, 0, 2, 1, 5])
    job = Fit(Options(samples=64), {**EIGHT, "arrivals": arrivals}, {"max_epochs": 3})
    schedule = arrivals.schedule(8, (), 0)
    for found in ranks(4).run(received, job, 4):
        for step, (bytes_, local, own, total) in enumerate(found):
            elsewhere = sum(worker not in local for worker in schedule.due(step))
            assert bytes_ == 4 * (elsewhere * own + total - own), step
        assert len(found) == 3 * 4


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        ({}, 16),
        ({"partition": Everyone()}, 16),
        ({"arrivals": FixedDelays([0] * 8)}, 2),
        ({"arrivals": FixedDelays([1] * 8)}, 2),
        ({"arrivals": FixedDelays([0, 1, 1, 1, 1, 1, 1, 1]), "partition": Everyone()}, 4),
    ],
)
def test_an_epoch_is_the_data_over_deliveries(change, steps):
    result = fit(Fit(Options(samples=64), {**EIGHT, **change}, {"max_epochs": 2}), 1)
    assert result["global_step"] == 2 * steps


def test_in_lock_step_everyone_counts_the_data_once():
    result = fit(Fit(Options(samples=64), {"workers": 8, "f": 0, "aggregator": Mean(), "partition": Everyone()}), 1)
    assert result["global_step"] == 2 * 2


def test_hooks_see_none_for_who_does_not_compute():
    seen = []

    class Looks(Classifier):
        def on_train_batch_start(self, batch, batch_idx):
            seen.append([part is not None for part in batch])

    fit(Fit(Options(samples=64), EIGHT, {"max_epochs": 1}, module=Looks), 1)
    assert [sum(row) for row in seen] == [8, 8, *[1] * 14]


class Idle(Schedule):
    def __init__(self, workers, steps):
        self.workers, self.steps = workers, steps

    def due(self, step):
        return self.steps(step, self.workers)


class Own(Arrivals):
    """A user's own schedule, in the user's own file."""

    def __init__(self, steps):
        self.steps = steps

    def schedule(self, workers, attackers, seed):
        return Idle(workers, self.steps)


@pytest.mark.parametrize(
    ("strategy", "trainer", "sentence"),
    [
        ({}, {"accumulate_grad_batches": 2}, "accumulate_grad_batches=2: under arrivals=RandomArrivals"),
        ({"weights": "counts", "aggregator": SMEA(), "f": 1}, {}, "SMEA takes equal weights only"),
        ({"arrivals": FixedDelays([0, 1])}, {}, "are 2 delays for 8 workers: give one per worker"),
        (
            {"arrivals": FixedDelays([0] * 7 + [50])},
            {"max_steps": 10, "max_epochs": None},
            r"workers \[7\] never deliver after step 0 in the 10 steps",
        ),
        ({"arrivals": Own(lambda step, n: [0])}, {}, r"due\(0\) returned \[0\]: at step 0 all workers deliver"),
        (
            {"arrivals": Own(lambda step, n: list(range(n)) if step == 0 else [step % (n - 1)])},
            {"max_steps": 100, "max_epochs": None},
            r"workers \[7\] never deliver after step 0 in the 100 steps",
        ),
        ({"arrivals": Own(lambda step, n: list(range(n)) if step == 0 else [])}, {}, r"due\(.*\) returned \[\]"),
        ({"arrivals": Own(lambda step, n: list(range(n)) if step == 0 else [9])}, {}, r"due\(.*\) returned \[9\]"),
        (
            {"arrivals": RandomArrivals("squared", byzantine_share=0.01), "attackers": [6, 7], "attack": SignFlip()},
            {"max_steps": 50, "max_epochs": None},
            r"byzantine_share=0.01: of the deliveries until step 49, attackers \[6, 7\] make 0.0351",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_step(strategy, trainer, sentence):
    kind, said = attempt(Fit(Options(samples=64), {**EIGHT, **strategy}, {"max_epochs": 1, **trainer}), 1)
    assert kind in ("ValueError", "ToleranceError"), said
    assert re.search(sentence, said), said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"arrivals": RandomArrivals(), "data": "local"}, "data='local' does not allow that"),
        ({"arrivals": RandomArrivals(), "workers": None, "split_batches": True}, "split_batches=True does not allow"),
        ({"weights": "counts"}, "follows from what workers deliver, which under arrivals=Synchronous"),
        ({"age_decay": 0.9}, "follows from what workers deliver"),
        ({"arrivals": RandomArrivals(), "age_decay": 1.5}, "age_decay=1.5: give the factor"),
    ],
)
def test_arguments_that_do_not_go_together(arguments, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        RobustStrategy(**{"f": 1, "aggregator": CoordinateMedian(), "workers": 8, **arguments})


@pytest.mark.parametrize("share", [0.5, 0.7, -0.1, True])
def test_a_share_must_be_below_one_half(share):
    for kind in (lambda: RandomArrivals(byzantine_share=share), lambda: FixedDelays([0, 0], byzantine_share=share)):
        with pytest.raises(ValueError, match="must be below one half, as no rule survives more"):
            kind()


def test_manual_optimization_is_refused():
    class ByHand(Classifier):
        def __init__(self, options):
            super().__init__(options)
            self.automatic_optimization = False

    kind, said = attempt(Fit(Options(), {**EIGHT, "workers": None, "f": 0}, module=ByHand), 1)
    assert kind == "ValueError"
    assert "uses manual optimization" in said
    assert "arrivals=Synchronous()" in said


def test_chance_is_said_before_and_at_the_end():
    arrivals = {"arrivals": RandomArrivals("squared"), "workers": 8}
    with pytest.warns(UserWarning, match=r"By chance workers \[.*\] deliver at step 0 only of the 6 steps of this run"):
        fit(Fit(Options(samples=64), {**EIGHT, **arrivals}, {"max_steps": 6, "max_epochs": None}), 1)
    with pytest.warns(UserWarning, match=r"workers \[.*\] have delivered at the first step only"):
        fit(Fit(Options(samples=24), {**EIGHT, **arrivals}, {"max_epochs": 1}), 1)


def test_the_start_up_line_says_both(caplog):
    with caplog.at_level("INFO"):
        arrivals = RandomArrivals("squared", byzantine_share=0.4)
        strategy = {**EIGHT, "arrivals": arrivals, "weights": "counts", "attackers": [6, 7], "attack": SignFlip()}
        fit(Fit(Options(samples=64), strategy, {"max_epochs": 1}), 1)
    line = next(record.message for record in caplog.records if record.message.startswith("lightning_byz: "))
    assert "RandomArrivals(law='squared', byzantine_share=0.4); weights: deliveries; f = 0.4 of the weight" in line


def test_a_checkpoint_of_lock_step_is_refused(tmp_path):
    path = str(tmp_path / "lock.ckpt")
    lock = {"workers": 8, "f": 2, "aggregator": CoordinateMedian(), "estimator": WorkerMomentum(0.9)}
    fit(Fit(Options(samples=64), lock, {"max_epochs": 1}, save=path), 1)
    stale = {**lock, "arrivals": RandomArrivals("squared")}
    kind, said = attempt(Fit(Options(samples=64), stale, {"max_epochs": 2}, checkpoint=path), 1)
    assert kind == "ValueError"
    assert "The checkpoint is of a run without arrivals=" in said
    fit(Fit(Options(samples=64), stale, {"max_epochs": 1}, save=path), 1)
    kind, said = attempt(Fit(Options(samples=64), lock, {"max_epochs": 2}, checkpoint=path), 1)
    assert kind == "ValueError"
    assert "The checkpoint is of a run with arrivals=" in said


def test_batch_norm_counts_by_deliveries():
    """What evaluation sees is the median of the workers' statistics, weighted by what each has delivered."""
    found = {}

    class Looks(Keeps):
        def teardown(self):
            run: Any = self._run
            memory, placement = run.aggregation(0).memory, run.placement
            found["own"] = torch.stack(
                [run.buffers.state(worker)["network.1.running_mean"] for worker in placement.local]
            )
            found["counts"] = torch.tensor(memory.counts["accepted"])
            super().teardown()

    result = fit(Fit(Options(samples=64, batch_norm=True), EIGHT, {"max_epochs": 3}, kind=Looks), 1)
    shown = result["buffers"]["network.1.running_mean"]
    repeated = found["own"].repeat_interleave(found["counts"], 0)
    expected = repeated.sort(0).values
    middle = (expected[(len(expected) - 1) // 2] + expected[len(expected) // 2]) / 2
    assert torch.allclose(shown, middle, atol=1e-7)
    assert not torch.allclose(shown, found["own"].median(0).values, atol=1e-4), "counts do not matter here"


def test_without_counts_nothing_is_weighted():
    one = fit(Fit(Options(samples=64), EIGHT), 1)["parameters"]
    other = fit(Fit(Options(samples=64), {**EIGHT, "weights": [1.0] * 8}), 1)["parameters"]
    assert not same_bits(one, other)
