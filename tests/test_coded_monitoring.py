"""What coded runs say: who lied, to loggers, in the table and when they start; and values that modules log, as if each part had one worker."""

from typing import Any

import lightning.pytorch as pl
import pytest
from torch import Tensor
from torchmetrics import Accuracy, MeanMetric

from lightning_byz import WorkerMonitor
from lightning_byz.aggregators import Mean
from lightning_byz.attacks import NonFinite, ReverseGradient
from lightning_byz.codes import Cyclic, Repetition, Solon
from lightning_byz.exchange import AllToAll, Local, Placement
from lightning_byz.rounds import Attackers, Defence
from lightning_byz.rounds.plan import Plan
from lightning_byz.rounds.start_up import start_up_line
from tests.coded import apart, train
from tests.scenarios import Classifier, Fit, MovesBatches, Options, fit, largest_difference
from tests.test_worker_monitor import Memory

SOLON: dict[str, Any] = {"workers": 8, "code": Solon(1, 2), "attackers": [1, 6], "attack": ReverseGradient(100)}
CODED = [
    SOLON,
    {"workers": 6, "code": Repetition(1), "attackers": [0, 4], "attack": ReverseGradient(100)},
    {"workers": 4, "code": Cyclic(1), "attackers": [2], "attack": ReverseGradient(100)},
]


def ids(strategy: dict[str, Any]) -> str:
    return type(strategy["code"]).__name__


# ---------------------------------------------------------------------- who lied


@pytest.mark.parametrize("strategy", CODED, ids=ids)
def test_who_lied_is_logged_and_shown(strategy, capsys):
    logger, attackers = Memory(), strategy["attackers"]
    train(
        strategy,
        steps=6,
        callbacks=[WorkerMonitor(per_worker=True)],
        logger=logger,
        log_every_n_steps=3,
        enable_model_summary=False,
    )
    assert logger.values_of("attackers/named") == [3.0 * len(attackers)] * 2
    assert logger.values_of("honest/named") == [0.0] * 2
    assert logger.values_of("attackers/share") == [0.0] * 2
    assert logger.values_of("honest/share") == pytest.approx([1.0] * 2)
    assert logger.values_of("left_out/precision") == [1.0] * 2
    assert logger.values_of("left_out/recall") == [1.0] * 2
    assert not logger.values_of("attackers/distance_mean"), "rows are no gradients: there is nothing to be distant from"
    for worker in range(strategy["workers"]):
        assert logger.values_of(f"worker_named/{worker}") == [3.0 * (worker in attackers)] * 2
    d = sum(value.numel() for value in Classifier(Options()).parameters())
    row = strategy["code"].coordinates(d).coded * 4
    assert logger.values_of("messages/uplink_bytes") == [row * strategy["workers"]] * 2
    assert logger.values_of("messages/downlink_bytes") == [d * 4] * 2
    shown = capsys.readouterr().out
    assert "named as liar" in shown
    assert "was left out of that step" in shown
    (line,) = [one for one in shown.splitlines() if f"{attackers[0]} (attacks)" in one]
    assert line.split()[-2] == "6" or " 6 " in line


def test_steps_that_are_not_taken_name_who_is_known(capsys):
    """In a group that fits, who lies is exact whatever another group does."""
    logger = Memory()
    lies = {**SOLON, "attackers": [0, 1, 6]}
    said = r"workers \[0, 1\] of the group 0 to 3 attack in this experiment, and Solon.* finds 1 liars of a group"
    stopped = pytest.raises(RuntimeError, match="the rows of workers 0 to 3 fit no message")
    with pytest.warns(UserWarning, match=said), stopped:
        train(lies, steps=6, callbacks=[WorkerMonitor(per_worker=True)], logger=logger, log_every_n_steps=1)
    assert logger.values_of("worker_named/6") == [1.0] * 2
    assert logger.values_of("worker_named/0") == [0.0] * 2


def test_broken_rows_are_named_too(capsys):
    logger = Memory()
    train({**SOLON, "attack": NonFinite()}, steps=2, callbacks=[WorkerMonitor()], logger=logger, log_every_n_steps=1)
    assert logger.values_of("attackers/named") == [2.0] * 2
    assert logger.values_of("attackers/broken") == [2.0] * 2
    assert "broken" in capsys.readouterr().out


@pytest.mark.parametrize("strategy", CODED, ids=ids)
def test_the_start_up_line_says_what_is_caught(strategy):
    code, n = strategy["code"], strategy["workers"]
    plan, defence = (
        Plan(attackers=Attackers(strategy["attackers"], strategy["attack"]), code=code),
        Defence(n, 1, Mean()),
    )
    line = start_up_line(defence, AllToAll(), Placement(n, 2, 0), plan)
    groups = {
        "Solon": "2 parts on 2 groups of 4 workers, 1 to each worker",
        "Repetition": "2 parts on 2 groups of 3 workers, 1 to each worker",
        "Cyclic": "4 parts on 1 group of 4 workers, 3 to each worker",
    }
    assert f"; {code!r} -> Gradient(); " in line
    assert groups[type(code).__name__] in line
    assert "up to 1 of a group who lie are named, and the step is the mean of all parts" in line
    assert (
        "2 or more are refused where their rows do not fit, and not caught where they know the code and agree" in line
    )
    assert "Mean" not in line
    assert "; 1 part on 1 group of 4 workers" in start_up_line(
        Defence(4, 1, Mean()), Local(), Placement(4, 1, 0), Plan(code=Solon(1, 2))
    )


# ---------------------------------------------------------------------- what modules log


class Reports(MovesBatches):
    """Draws in its data hooks, and logs values and metrics as Lightning's documentation shows."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.accuracy = Accuracy(task="binary")
        self.points = MeanMetric()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        self.accuracy(self(batch[0]).argmax(1), batch[1])
        self.points(batch[0])
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log_dict({"points": self.points, "spread": batch[0].std()}, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


class Epochs(pl.Callback):
    """Notes what was logged of each epoch."""

    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.values.append({name: float(value) for name, value in trainer.callback_metrics.items()})


NOISY = {"dropout": 0.2, "batch_norm": True, "augment": True, "samples": 32}


@pytest.mark.parametrize("strategy", CODED, ids=ids)
@pytest.mark.parametrize("processes", [0, 1])
def test_values_of_an_epoch_are_those_of_one_worker_per_part(strategy, processes):
    """Whatever loader processes, data hooks that draw and metric objects do."""
    parts = 1 + max(map(max, strategy["code"].parts(strategy["workers"])))
    ways, epochs = [], []
    for own in (strategy, {"f": 0, "aggregator": Mean(), "workers": parts}):
        noted = Epochs()
        options = Options(**NOISY, loader_processes=processes)
        ways.append(train(own, options, steps=32 // parts // 4 * 2, every=1, module=Reports, callbacks=[noted]))
        epochs.append(noted.values)
    assert apart(*ways) < 1e-5
    assert len(epochs[0]) == 2
    assert {"accuracy_epoch", "accuracy_step", "points", "spread", "train_loss_epoch"} <= epochs[0][0].keys()
    for coded, plain in zip(*epochs, strict=True):
        for name in plain:
            assert coded[name] == pytest.approx(plain[name], rel=1e-4), name


def test_values_are_those_of_one_process_on_ranks(ranks):
    job = Fit(Options(**NOISY), CODED[2], {"max_epochs": 2, "limit_val_batches": 0}, module=Reports)
    (alone,) = ranks(1).run(fit, job, 1)
    for result in ranks(2).run(fit, job, 2):
        assert result["metrics"] == pytest.approx(alone["metrics"], rel=1e-5)
        assert largest_difference(result["buffers"], alone["buffers"]) < 1e-6
