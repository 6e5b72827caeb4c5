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
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from lightning_byz import RobustStrategy, WorkerMonitor, stack
from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian, Mean
from lightning_byz.arrivals import FixedDelays, Synchronous
from lightning_byz.attacks import ReverseGradient
from lightning_byz.callbacks import summary
from lightning_byz.callbacks.table import delivered_table, table
from lightning_byz.callbacks.worker_monitor import _attacking
from lightning_byz.census import Arrival, Census
from lightning_byz.metrics import Deliveries, WorkerMeans
from lightning_byz.rounds import Report
from tests.scenarios import Classifier, Options

WORKERS, STEPS = 4, 6  # of an epoch of 96 samples in batches of 4


class Memory(Logger):
    """A logger that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []
        self.hyperparameters: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> str:
        return "0"

    def log_hyperparams(self, params: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        self.hyperparameters.append(dict(params))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def steps_with(self, key: str) -> list[int | None]:
        return [step for step, metrics in self.rows if key in metrics]

    def values_of(self, key: str) -> list[float]:
        return [metrics[key] for _, metrics in self.rows if key in metrics]


class Tables(Memory):
    """A logger that has tables too, as that of W&B."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[tuple[str, list[str], list[list[Any]], int]] = []

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int) -> None:
        self.tables.append((key, columns, data, step))


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
        workers=trainer.pop("workers", WORKERS),
        f=f,
        aggregator=aggregator,
        weights=weights,
        attackers=attackers,
        attack=attack,
    )
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "max_epochs": 1,
        "log_every_n_steps": 1,
    }
    checkpoint, save = trainer.pop("checkpoint", None), trainer.pop("save", None)
    monitor, module = WorkerMonitor(per_worker=trainer.pop("per_worker", False)), trainer.pop("module", Classifier)
    fit = Trainer(
        accelerator="cpu", devices=1, strategy=strategy, logger=logger, callbacks=[monitor], **{**quiet, **trainer}
    )
    fit.fit(module(options or Options()), ckpt_path=checkpoint)
    if save:
        fit.save_checkpoint(save)
    return monitor


def report(*words: str, **parts: Any) -> Report:
    arrival = [Arrival(word) for word in words or ("arrived",) * 3]
    return Report(
        **{"step": 0, "taken": True, "census": Census(arrival, [1.0] * len(arrival), [0] * len(arrival), []), **parts}
    )


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def measured(*distances: float) -> dict[str, torch.Tensor]:
    return {"distances": doubles(*distances), "norms": doubles(*distances)}


def totals(*reports: Report) -> WorkerMeans:
    means = WorkerMeans(len(reports[0].status))
    for each in reports:
        means.update(each)
    return means


def cells(table: Any) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


def printed_rows(printed: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if line.startswith("│")]


def test_table_is_the_mean_over_steps() -> None:
    seen = totals(
        report(coefficients=doubles(0.5, 0.5, 0.0), **measured(1.0, 2.0, 30.0)),
        report(coefficients=doubles(0.25, 0.75, 0.0), **measured(3.0, 2.0, 50.0)),
    )
    shown = table(seen, attackers=[2])
    assert cells(shown) == [
        ["0", "0.3750", "0", "2"],
        ["1", "0.6250", "0", "2"],
        ["2 (attacks)", "0.0000", "2", "40"],
    ]
    assert shown.caption == "left out: no share in the aggregate of a step"


def test_absent_and_broken_workers_have_no_distance_and_only_the_broken_one_is_left_out() -> None:
    seen = report("arrived", "absent", "broken", **measured(1.0, math.nan, math.nan))
    shown = table(totals(seen, report("arrived", "absent", "arrived", **measured(1.0, math.nan, 2.0))), attackers=[])
    assert [column.header for column in shown.columns][2:5] == ["left out", "broken", "absent"]
    assert cells(shown) == [
        ["0", "-", "0", "0", "0", "1"],
        ["1", "-", "0", "0", "2", "-"],
        ["2", "-", "1", "1", "0", "2"],
    ]


def test_steps_without_measurement_count_but_do_not_dilute() -> None:
    """The means are over the steps that have coefficients, or distances, and the caption says over how many distances are."""
    seen = totals(
        report(coefficients=doubles(0.2, 0.3, 0.5), **measured(1.0, 1.0, 1.0)),
        report(coefficients=doubles(0.4, 0.3, 0.3)),
        report("broken", "broken", "arrived", taken=False),
    )
    shown = table(seen, attackers=[])
    assert cells(shown) == [
        ["0", "0.3000", "1", "1", "1"],
        ["1", "0.3000", "1", "1", "1"],
        ["2", "0.4000", "0", "0", "1"],
    ]
    assert shown.title == "Workers over 3 steps"
    assert str(shown.caption).splitlines()[1] == "distances: means of 1 of 3 steps"


def test_the_table_of_seventeen_workers_fits_into_eighty_columns() -> None:
    """With every column that there is, and numbers as long as they get."""
    words = ["broken", "absent"] + ["arrived"] * 15
    shares, long = doubles(*[0.12345] * 17), [1.2346e30] * 17
    shown = table(
        totals(report(*words, coefficients=shares, **measured(*long))), attackers=[16], weights=[0.123456] * 17
    )
    screen = Console(width=80, file=io.StringIO())
    screen.print(shown)
    printed = screen.file.getvalue()
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert printed_rows(printed)[16] == ["16 (attacks)", "0.1235", "0.1235", "0", "0", "0", "1.235e+30"]


def test_groups_are_summed_up_and_what_is_not_known_is_not_logged() -> None:
    seen = totals(
        report(coefficients=doubles(0.5, 0.5, 0.0), **measured(1.0, 2.0, 30.0)),
        report("arrived", "absent", "broken", coefficients=doubles(1.0, 0.0, 0.0), **measured(3.0, math.nan, math.nan)),
    )
    told = summary.of_groups(seen.means(), [2])
    assert told == {
        "honest/norm_mean": 2.0, "honest/norm_max": 2.0, "honest/distance_mean": 2.0, "honest/distance_max": 2.0,
        "honest/share": 1.0, "honest/left_out": 0.0, "honest/broken": 0.0, "honest/absent": 1.0,
        "attackers/norm_mean": 30.0, "attackers/norm_max": 30.0, "attackers/distance_mean": 30.0,
        "attackers/distance_max": 30.0, "attackers/share": 0.0, "attackers/left_out": 2.0, "attackers/broken": 1.0,
        "attackers/absent": 0.0,
    }  # fmt: skip
    unmeasured = summary.known(summary.of_groups(totals(report()).means(), []))
    assert unmeasured == {"workers/left_out": 0.0, "workers/broken": 0.0, "workers/absent": 0.0}


def test_logs_groups_at_the_steps_of_the_loss() -> None:
    logger = Memory()
    train(logger, aggregator=CTMA(CoordinateMedian()), attackers=(3,), log_every_n_steps=2)
    assert (
        logger.steps_with("honest/norm_mean")
        == [step for step in logger.steps_with("train_loss_step") if step in (1, 3, 5)]
        == [1, 3, 5]
    )
    assert logger.values_of("honest/share") == pytest.approx([1.0] * 3)
    assert logger.values_of("attackers/share") == [0.0] * 3
    assert logger.values_of("attackers/left_out") == [2.0] * 3  # of the two steps of an interval
    assert logger.values_of("left_out/precision") == logger.values_of("left_out/recall") == [1.0] * 3
    assert min(logger.values_of("attackers/distance_mean")) > 5 * max(logger.values_of("honest/distance_max"))
    assert logger.values_of("rule/kappa") == pytest.approx([CTMA(CoordinateMedian()).kappa(4, 1)] * 3)
    assert logger.values_of("rule/worst_error") == pytest.approx([0.0] * 3, abs=1e-9)  # the honest rows' own mean
    assert logger.values_of("exchange/bytes_received") == logger.values_of("exchange/bytes_total") == [0.0] * 3
    assert all(0 < seconds < 60 for key in ("rule/seconds", "exchange/seconds") for seconds in logger.values_of(key))


@pytest.mark.parametrize("attackers", [(), (1,)])
def test_the_number_of_keys_does_not_grow_with_the_workers(attackers: tuple[int, ...]) -> None:
    keys = {}
    for workers in (4, 12):
        logger = Memory()
        train(logger, aggregator=CTMA(CoordinateMedian()), attackers=attackers, workers=workers, max_steps=2)
        keys[workers] = {key for _, row in logger.rows for key in row if "/" in key}
    assert keys[4] == keys[12]
    assert len(keys[12]) == (31 if attackers else 18)


def test_each_worker_on_request() -> None:
    logger = Memory()
    train(logger, aggregator=CTMA(CoordinateMedian()), attackers=(3,), log_every_n_steps=2, per_worker=True)
    for key in ("worker_norm", "worker_distance", "worker_coefficient", "worker_left_out"):
        assert len(logger.values_of(f"{key}/0")) == len(logger.values_of(f"{key}/{WORKERS - 1}")) == STEPS // 2
    assert logger.values_of("worker_coefficient/3") == [0.0] * 3
    assert logger.values_of("worker_left_out/3") == [2.0] * 3


def test_rows_are_measured_at_logged_steps_and_the_first_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each measurement reads the rows four times: their lengths, two distances, and a mean; other steps read none."""
    read = []
    for name in ("square_sums", "weighted_rows"):
        inner = getattr(stack.kernels, name)
        monkeypatch.setattr(
            stack.kernels, name, lambda rows, *rest, inner=inner: read.append(len(rows)) or inner(rows, *rest)
        )
    train(False, aggregator=CoordinateMedian(), log_every_n_steps=4)
    assert read == [WORKERS, WORKERS, WORKERS, WORKERS, 1] * 2  # at steps 0 and 3; the aggregate is a row of its own


def test_a_table_per_interval_where_the_logger_has_one() -> None:
    logger = Tables()
    train(logger, aggregator=CTMA(CoordinateMedian()), attackers=(3,), log_every_n_steps=3)
    assert [(key, step) for key, _, _, step in logger.tables] == [("workers", 2), ("workers", 5)]
    _, columns, data, _ = logger.tables[0]
    assert columns == ["worker", "attacks", "coefficient", "left_out", "broken", "absent", "norm", "distance"]
    assert [line[:4] for line in data][2:] == [[2, False, pytest.approx(1 / 3), 0.0], [3, True, 0.0, 3.0]]


def test_the_run_is_in_the_hyperparameters_beside_the_modules_own() -> None:
    class Tuned(Classifier):
        def __init__(self, options: Options, width: int = 7) -> None:
            super().__init__(options)
            self.save_hyperparameters("width")

    logger = Memory()
    train(logger, aggregator=CTMA(CoordinateMedian()), attackers=(3,), module=Tuned, max_steps=1)
    merged: dict[str, Any] = {}
    for params in logger.hyperparameters:
        merged.update(params)
    assert logger.hyperparameters[0] == merged  # a logger that keeps the first shows all
    assert merged["width"] == 7
    told = {name.removeprefix("lightning_byz/"): value for name, value in merged.items()}
    assert (told["aggregator"], told["attack"], told["attackers"]) == (
        "CTMA(base=CoordinateMedian())",
        "ReverseGradient(factor=10)",
        "3",
    )
    assert (told["f"], told["workers"], told["exchange"], told["estimator"]) == (1, WORKERS, "Local()", "Gradient()")
    assert told["version/torch"] == torch.__version__
    assert {"version/lightning", "version/lightning-byz"} <= set(told)


def test_attackers_that_do_nothing_are_not_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    strategy = RobustStrategy(workers=WORKERS, f=1, aggregator=CoordinateMedian(), attackers=())
    strategy.attackers = (1,)  # without an attack
    assert _attacking(strategy) == ()
    strategy.attack = ReverseGradient()
    assert _attacking(strategy) == (1,)


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is an extra: pip install lightning-byz[wandb]")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="monitor", save_dir=tmp_path, offline=True)
    train(logger, aggregator=CTMA(CoordinateMedian()), attackers=(3,), max_steps=2)
    logger.experiment.finish()
    assert list(tmp_path.rglob("*.wandb"))


def test_a_broken_worker_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    logger = Memory()
    broken = Options(nan_calls=tuple(WORKERS * step + 2 for step in range(STEPS)))
    train(logger, aggregator=CTMA(CoordinateMedian()), options=broken, per_worker=True)
    assert printed_rows(capsys.readouterr().out)[2] == ["2", "0.0000", str(STEPS), str(STEPS), "-"]
    assert logger.values_of("worker_distance/2") == []
    assert logger.values_of("workers/broken") == logger.values_of("workers/left_out") == [1.0] * STEPS
    assert logger.values_of("worker_broken/2") == logger.values_of("worker_left_out/2") == [1.0] * STEPS
    assert logger.values_of("worker_absent/2") == logger.values_of("worker_broken/1") == [0.0] * STEPS


def test_an_absent_worker_is_not_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    logger = Memory()
    silent = Options(none_calls=tuple(WORKERS * step + 1 for step in range(STEPS)))
    train(logger, aggregator=CTMA(CoordinateMedian()), options=silent, per_worker=True)
    assert logger.values_of("worker_absent/1") == [1.0] * STEPS
    assert logger.values_of("worker_broken/1") == logger.values_of("worker_left_out/1") == [0.0] * STEPS
    assert printed_rows(capsys.readouterr().out)[1] == ["1", "0.0000", "0", str(STEPS), "-"]


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
    train(logger, aggregator=CoordinateMedian(), per_worker=True)
    assert logger.values_of("worker_coefficient/0") == logger.values_of("workers/share") == []
    assert len(logger.values_of("worker_distance/0")) == STEPS
    assert [row[1] for row in printed_rows(capsys.readouterr().out)] == ["-"] * WORKERS


def test_accumulation_counts_steps_not_batches() -> None:
    logger = Memory()
    monitor = train(logger, aggregator=Mean(), accumulate_grad_batches=2)
    assert logger.steps_with("workers/norm_mean") == [0, 1, 2]
    assert monitor.state_dict()["fit"]["workers"]["steps"] == STEPS // 2


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
    assert monitor.state_dict()["fit"]["workers"]["steps"] == 3


def test_writes_to_lightnings_loggers(tmp_path: Path) -> None:
    train(
        [CSVLogger(tmp_path, name="csv", version=0), TensorBoardLogger(tmp_path, name="board", version=0)],
        aggregator=Mean(),
    )
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["workers/share"]]
    assert [float(row["workers/share"]) for row in rows] == [1.0] * STEPS
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "board" / "version_0")).Reload()
    assert [event.value for event in events.Scalars("workers/share")] == [1.0] * STEPS
    text = events.Tensors("workers/text_summary")
    assert [event.step for event in text] == list(range(STEPS))
    assert b"| 3 | False | 0.25 |" in text[0].tensor_proto.string_val[0]
    for told in ("csv", "board"):
        assert "lightning_byz/aggregator: Mean()" in (tmp_path / told / "version_0" / "hparams.yaml").read_text()


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
    assert [float(row["exchange/bytes_total"]) for row in rows] == [received[0], 2.0 * received[0]]
    assert {"workers/norm_mean", "workers/distance_max"} <= set(rows[0])


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
    rows = [row[:3] for row in printed_rows(capsys.readouterr().out)]
    assert rows == [["0", "1", "0.2857"], ["1", "2", "0.5714"], ["2", "0.5", "0.1429"], ["3", "0", "0.0000"]]


def stale(logger: Any, **rest: Any) -> WorkerMonitor:
    """Fit six steps with stale workers, of which the last one attacks; interval 3."""
    monitor = WorkerMonitor(per_worker=True)
    strategy = RobustStrategy(
        workers=4,
        f=1,
        aggregator=CTMA(CoordinateMedian()),
        attackers=[3],
        attack=ReverseGradient(factor=10),
        **{"arrivals": FixedDelays([0, 0, 1, 3]), "weights": "counts", **rest},
    )
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu", devices=1, strategy=strategy, logger=logger, callbacks=[monitor], max_steps=6, **quiet,
        log_every_n_steps=3,
    )  # fmt: skip
    trainer.fit(Classifier(Options()))
    return monitor


def test_ages_deliveries_and_weights_of_stale_workers(capsys: pytest.CaptureFixture[str]) -> None:
    """Worker 3 delivers at steps 0 and 4, the second time what it made at step 1; worker 2 every other step what it made one before."""
    logger = Tables()
    stale(logger)
    told = {name: logger.values_of(f"attackers/{name}") for name in ("delivered", "age_mean", "age_max", "weight")}
    assert told["delivered"] == [1.0, 1.0]
    assert told["age_mean"] == pytest.approx([1.0, 10 / 3])
    assert told["age_max"] == [2.0, 4.0]
    assert told["weight"] == pytest.approx([1 / 9, 2 / 17])
    assert logger.values_of("honest/delivered") == [8.0, 7.0]
    assert logger.values_of("honest/age_max") == [1.0, 2.0]
    assert logger.values_of("honest/weight") == pytest.approx([8 / 9, 15 / 17])
    assert logger.values_of("worker_age/2") == pytest.approx([2 / 3, 5 / 3])
    assert logger.values_of("worker_delivered/2") == [2.0, 1.0]
    assert logger.values_of("worker_oldest/3") == [2.0, 4.0]
    assert logger.values_of("worker_weight/0") == pytest.approx([1 / 3, 6 / 17])
    _, columns, data, _ = logger.tables[1]
    assert columns[8:] == ["delivered", "age", "oldest", "weight"]
    assert data[3][8:] == pytest.approx([1.0, 10 / 3, 4.0, 2 / 17])
    first, second = capsys.readouterr().out.split("What they delivered")
    assert "Workers over 6 steps" in first
    assert printed_rows(second) == [
        ["0", "6", "0.3529", "0.00", "0"],
        ["1", "6", "0.3529", "0.00", "0"],
        ["2", "3", "0.1765", "1.17", "2"],
        ["3 (attacks)", "2", "0.1176", "2.17", "4"],
    ]
    merged = {name: value for params in logger.hyperparameters for name, value in params.items()}
    assert merged["lightning_byz/arrivals"].startswith("FixedDelays(delays=[0, 0, 1, 3]")


def test_in_lock_step_nothing_is_said_of_deliveries(capsys: pytest.CaptureFixture[str]) -> None:
    logger = Tables()
    monitor = stale(logger, arrivals=Synchronous(), weights=None)
    assert "What they delivered" not in capsys.readouterr().out
    assert not [key for _, row in logger.rows for key in row if "age_" in key or "delivered" in key]
    assert logger.tables[0][1][-1] == "distance"
    assert "lightning_byz/arrivals" not in logger.hyperparameters[0]
    assert "deliveries" not in monitor.state_dict()["fit"]


def test_a_worker_that_has_delivered_nothing_has_no_age() -> None:
    seen = Deliveries(2)
    seen.update(Report(0, True, Census([Arrival.ARRIVED, Arrival.BROKEN], [1.0, 0.0], [0, 7], []), kept=True))
    assert cells(delivered_table(seen, attackers=[1])) == [
        ["0", "1", "1.0000", "0.00", "0"],
        ["1 (attacks)", "0", "0.0000", "-", "-"],
    ]
