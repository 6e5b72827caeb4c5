"""What WorkerMonitor logs and prints, against reports worked out by hand and against fits."""

import csv
import io
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_byz import RobustStrategy, WorkerMonitor
from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian, Mean
from lightning_byz.attacks import ReverseGradient
from lightning_byz.callbacks.worker_monitor import _table, _Tally
from lightning_byz.census import Arrival, Census
from lightning_byz.rounds import Report
from tests.scenarios import Classifier, Options

WORKERS, STEPS = 4, 6  # of an epoch of 96 samples in batches of 4


class Memory(Logger):
    """A logger that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> str:
        return "0"

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def steps_with(self, key: str) -> list[int | None]:
        return [step for step, metrics in self.rows if key in metrics]

    def values_of(self, key: str) -> list[float]:
        return [metrics[key] for _, metrics in self.rows if key in metrics]


def train(
    logger: Any,
    *,
    aggregator: Aggregator,
    attackers: tuple[int, ...] = (),
    options: Options | None = None,
    **trainer: Any,
) -> WorkerMonitor:
    seed_everything(1, verbose=False)
    attack = ReverseGradient(factor=10) if attackers else None
    f, weights = 0 if aggregator == Mean() else 1, trainer.pop("weights", None)
    strategy = RobustStrategy(
        workers=WORKERS, f=f, aggregator=aggregator, weights=weights, attackers=attackers, attack=attack
    )
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "max_epochs": 1,
        "log_every_n_steps": 1,
    }
    checkpoint, save = trainer.pop("checkpoint", None), trainer.pop("save", None)
    monitor = WorkerMonitor()
    fit = Trainer(
        accelerator="cpu", devices=1, strategy=strategy, logger=logger, callbacks=[monitor], **{**quiet, **trainer}
    )
    fit.fit(Classifier(options or Options()), ckpt_path=checkpoint)
    if save:
        fit.save_checkpoint(save)
    return monitor


def report(*words: str, **parts: Any) -> Report:
    arrival = [Arrival(word) for word in words or ("arrived",) * 3]
    return Report(**{"step": 0, "taken": True, "census": Census(arrival, [1.0] * 3, [0] * 3, []), **parts})


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def cells(table: Any) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_table_is_the_mean_over_steps() -> None:
    tally = _Tally.empty(3)
    tally = tally.add(report(coefficients=doubles(0.5, 0.5, 0.0), distances=doubles(1.0, 2.0, 30.0)))
    tally = tally.add(report(coefficients=doubles(0.25, 0.75, 0.0), distances=doubles(3.0, 2.0, 50.0)))
    assert cells(_table(tally, attackers=[2])) == [
        ["0", "0.3750", "0", "2"],
        ["1", "0.6250", "0", "2"],
        ["2 (attacks)", "0.0000", "2", "40"],
    ]


def test_absent_and_broken_workers_have_no_distance_and_only_the_broken_one_is_left_out() -> None:
    seen = report("arrived", "absent", "broken", distances=doubles(1.0, math.nan, math.nan))
    tally = _Tally.empty(3).add(seen).add(report("arrived", "absent", "arrived", distances=doubles(1.0, math.nan, 2.0)))
    table = _table(tally, attackers=[])
    assert [column.header for column in table.columns][2:5] == ["times left out", "times broken", "times absent"]
    assert cells(table) == [
        ["0", "-", "0", "0", "0", "1"],
        ["1", "-", "0", "0", "2", "-"],
        ["2", "-", "1", "1", "0", "2"],
    ]


def test_steps_without_diagnosis_count_but_do_not_dilute() -> None:
    """A step that was not taken has no coefficients and distances; the means are over those that have."""
    tally = _Tally.empty(3).add(report(coefficients=doubles(0.2, 0.3, 0.5), distances=doubles(1.0, 1.0, 1.0)))
    tally = tally.add(report("broken", "broken", "arrived", taken=False))
    assert tally.steps == 2
    assert cells(_table(tally, attackers=[])) == [
        ["0", "0.2000", "1", "1", "1"],
        ["1", "0.3000", "1", "1", "1"],
        ["2", "0.5000", "0", "0", "1"],
    ]


def test_logs_each_worker_at_the_steps_of_the_loss() -> None:
    logger = Memory()
    train(logger, aggregator=CTMA(CoordinateMedian()), attackers=(3,), log_every_n_steps=2)
    assert (
        logger.steps_with("worker_norm/0")
        == [step for step in logger.steps_with("train_loss_step") if step in (1, 3, 5)]
        == [1, 3, 5]
    )
    for key in ("worker_norm", "worker_distance", "worker_coefficient", "worker_accepted"):
        assert len(logger.values_of(f"{key}/0")) == len(logger.values_of(f"{key}/{WORKERS - 1}")) == STEPS // 2
    shares = [
        sum(values)
        for values in zip(*(logger.values_of(f"worker_coefficient/{worker}") for worker in range(WORKERS)), strict=True)
    ]
    assert shares == pytest.approx([1.0] * 3)
    assert logger.values_of("worker_coefficient/3") == [0.0] * 3
    assert min(logger.values_of("worker_distance/3")) > 5 * max(logger.values_of("worker_distance/0"))
    assert logger.values_of("exchange/bytes_received") == [0.0] * 3  # one process
    assert all(0 < seconds < 60 for key in ("rule/seconds", "exchange/seconds") for seconds in logger.values_of(key))


def test_a_broken_worker_is_not_accepted_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    logger = Memory()
    broken = Options(nan_calls=tuple(WORKERS * step + 2 for step in range(STEPS)))
    train(logger, aggregator=CTMA(CoordinateMedian()), options=broken)
    assert logger.values_of("worker_accepted/2") == [0.0] * STEPS
    assert logger.values_of("worker_accepted/1") == [1.0] * STEPS
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("│ 2"))
    assert [cell.strip() for cell in row.split("│")[1:6]] == ["2", "0.0000", str(STEPS), str(STEPS), "-"]
    assert logger.values_of("worker_broken/2") == logger.values_of("worker_left_out/2") == [1.0] * STEPS
    assert logger.values_of("worker_absent/2") == logger.values_of("worker_broken/1") == [0.0] * STEPS


def test_an_absent_worker_is_neither_accepted_nor_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    logger = Memory()
    silent = Options(none_calls=tuple(WORKERS * step + 1 for step in range(STEPS)))
    train(logger, aggregator=CTMA(CoordinateMedian()), options=silent)
    assert logger.values_of("worker_absent/1") == [1.0] * STEPS
    assert logger.values_of("worker_accepted/1") == logger.values_of("worker_left_out/1") == [0.0] * STEPS
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("│ 1"))
    assert [cell.strip() for cell in row.split("│")[1:6]] == ["1", "0.0000", "0", str(STEPS), "-"]


def test_prints_the_table_of_the_whole_fit_and_marks_attackers(capsys: pytest.CaptureFixture[str]) -> None:
    train(False, aggregator=CTMA(CoordinateMedian()), attackers=(1,), log_every_n_steps=50)
    printed = capsys.readouterr().out
    assert f"Workers over {STEPS} steps" in printed
    rows = [[cell.strip() for cell in line.split("│")[1:5]] for line in printed.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["0", "1 (attacks)", "2", "3"]
    assert [row[1:3] for row in rows] == [["0.3333", "0"], ["0.0000", str(STEPS)], ["0.3333", "0"], ["0.3333", "0"]]


def test_the_table_stays_above_a_live_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """A live display replaces sys.stdout by a proxy that prints above it; what goes around the proxy is wiped out."""
    above, screen = io.StringIO(), io.StringIO()
    above.rich_proxied_file = screen
    monkeypatch.setattr(sys, "stdout", above)
    train(False, aggregator=Mean())
    assert "Workers over" in above.getvalue()
    assert "Workers over" not in screen.getvalue()


def test_rules_that_are_no_weighted_sum_show_no_coefficient(capsys: pytest.CaptureFixture[str]) -> None:
    logger = Memory()
    train(logger, aggregator=CoordinateMedian())
    assert logger.values_of("worker_coefficient/0") == []
    assert len(logger.values_of("worker_distance/0")) == STEPS
    assert all(
        line.split("│")[2].strip() == "-" for line in capsys.readouterr().out.splitlines() if line.startswith("│")
    )


def test_accumulation_counts_steps_not_batches() -> None:
    logger = Memory()
    monitor = train(logger, aggregator=Mean(), accumulate_grad_batches=2)
    assert logger.steps_with("worker_norm/0") == [0, 1, 2]
    assert monitor.state_dict()["steps"] == STEPS // 2


def test_table_survives_a_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = {"aggregator": CTMA(CoordinateMedian()), "attackers": (3,)}
    train(False, save=tmp_path / "end.ckpt", **common)
    torch.load(tmp_path / "end.ckpt", weights_only=True)
    capsys.readouterr()
    train(False, checkpoint=tmp_path / "end.ckpt", max_epochs=2, **common)
    resumed = capsys.readouterr().out
    train(False, max_epochs=2, **common)
    assert capsys.readouterr().out == resumed
    assert f"Workers over {2 * STEPS} steps" in resumed


def test_a_new_fit_starts_a_new_table() -> None:
    monitor = train(False, aggregator=Mean())
    strategy = RobustStrategy(workers=2, f=0, aggregator=Mean())
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    Trainer(accelerator="cpu", devices=1, strategy=strategy, callbacks=[monitor], max_steps=3, **quiet).fit(
        Classifier(Options())
    )
    assert monitor.state_dict()["steps"] == 3


def test_writes_to_lightnings_loggers(tmp_path: Path) -> None:
    train(
        [CSVLogger(tmp_path, name="csv", version=0), TensorBoardLogger(tmp_path, name="board", version=0)],
        aggregator=Mean(),
    )
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["worker_coefficient/2"]]
    assert [float(row["worker_coefficient/2"]) for row in rows] == [1 / WORKERS] * STEPS
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "board" / "version_0")).Reload()
    assert [event.value for event in events.Scalars("worker_coefficient/2")] == [1 / WORKERS] * STEPS


def fit_with_csv(folder: str, devices: int) -> str | None:
    """Fit on this rank of a pool; return the report's account of what came from other ranks."""
    strategy = RobustStrategy(workers=3, f=0, aggregator=Mean())
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
    }
    callbacks, logger = [WorkerMonitor()], CSVLogger(folder, version=0)
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, logger=logger, callbacks=callbacks, max_steps=2, **quiet
    )
    trainer.fit(Classifier(Options()))
    return strategy.report.bytes_received


def test_two_ranks_write_once_and_count_bytes(ranks: Any, tmp_path: Path) -> None:
    received = ranks(2).run(fit_with_csv, str(tmp_path), 2)
    with next(tmp_path.rglob("metrics.csv")).open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["exchange/bytes_received"]]
    assert [float(row["exchange/bytes_received"]) for row in rows] == [float(received[0])] * 2
    assert received[0] > 0
    assert {f"worker_norm/{worker}" for worker in range(3)} <= set(rows[0])


def test_refuses_another_strategy() -> None:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[WorkerMonitor()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    with pytest.raises(
        MisconfigurationException,
        match=r"the trainer's strategy is a SingleDeviceStrategy; give Trainer\(strategy=RobustStrategy",
    ):
        trainer.fit(Classifier(Options()))


def test_unequal_weights_are_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    train(False, aggregator=Mean(), weights=[1, 2, 0.5, 0])
    rows = [
        [cell.strip() for cell in line.split("│")[1:4]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("│")
    ]
    assert rows == [["0", "1", "0.2857"], ["1", "2", "0.5714"], ["2", "0.5", "0.1429"], ["3", "0", "0.0000"]]
