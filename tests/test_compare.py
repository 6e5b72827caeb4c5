"""``lightning-byz compare``: what a grid stands for, what its runs leave, and that nothing is lost, or chosen by test data."""

import csv
import errno
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_byz import cli
from lightning_byz.compare import answer, command
from lightning_byz.compare.cells import Cells
from lightning_byz.compare.fit import Job, SeveralRanks, perform
from lightning_byz.compare.grid import read_grid
from lightning_byz.compare.records import Evaluation, Folder, Record, write_whole
from lightning_byz.compare.summaries import Spread, chosen, summarized
from lightning_byz.compare.tables import TIMES

ROOT = Path(__file__).resolve().parent.parent
RULE = {"trainer.strategy.aggregator": ["Mean", "CoordinateMedian"]}
ATTACK = {
    "attack": {
        "flip": {"trainer.strategy.attack": "SignFlip"},
        "none": {"trainer.strategy.attack": None, "trainer.strategy.attackers": []},
    }
}
SHORT = {
    "trainer.max_epochs": 1,
    "trainer.limit_train_batches": 2,
    "trainer.callbacks": [],
    "trainer.strategy.preaggregators": [],
}

Write = Callable[..., Path]
Run = Callable[..., str]


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Write:
    """Write a grid beside the quickstart's config, in the current directory; return its path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "base.yaml").write_text((ROOT / "configs" / "quickstart.yaml").read_text())

    def write(**given: Any) -> Path:
        whole = {
            "base": "base.yaml",
            "grid": {**RULE, **ATTACK},
            "set": SHORT,
            "seeds": [1, 2],
            "processes": 0,
            "output": "out",
            **given,
        }
        Path("grid.yaml").write_text(
            yaml.safe_dump({key: one for key, one in whole.items() if one != "leave out"}, sort_keys=False)
        )
        return Path("grid.yaml")

    return write


@pytest.fixture
def run(write: Write, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process on the grid that was written; return what it prints."""

    def run(*options: str, status: int | None = None) -> str:
        capfd.readouterr()
        if status is None:
            cli.main(["compare", "--config", "grid.yaml", *options])
            return capfd.readouterr().out
        with pytest.raises(SystemExit) as stopped:
            cli.main(["compare", "--config", "grid.yaml", *options])
        code, told = stopped.value.code, capfd.readouterr().err
        assert (1 if isinstance(code, str) else code) == status, (code, told)
        return str(code) if isinstance(code, str) else told

    return run


Score = Callable[[Mapping[str, Any]], Mapping[str, float]]


@pytest.fixture
def imagined(monkeypatch: pytest.MonkeyPatch) -> Callable[[Score], list[str]]:
    """Have runs log what a function makes of their options, in place of a fit; return the list of ids that ran."""

    def imagine(score: Score, *, check: bool = False) -> list[str]:
        made: list[str] = []

        def performed(job: Job) -> Record:
            options = dict(option.removeprefix("--").split("=", 1) for option in job.arguments[3:])
            made.append(job.id)
            told, failure = {}, ""
            try:
                told = score(options)
            except ZeroDivisionError as error:
                failure = str(error)
            each = 8000 if options.get("trainer.strategy.aggregator") == "Mean" else 80
            epochs = () if failure else (1, 2)
            evaluations = [Evaluation(one, 10 * one, 0.1, one * 1000, told, one * each) for one in epochs]
            record = Record(
                job.id, failure, 0.2, evaluations, {"test_accuracy": 0.25} if job.tests else {}, {"torch": "2"}
            )
            Folder(Path(job.output)).save(record)
            return record

        monkeypatch.setattr(answer, "perform", performed)
        if not check:
            monkeypatch.setattr(command, "check_paths", lambda cells: None)
        return made

    return imagine


def rows_of(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((Path("out") / name).read_text())))


def without_times(text: str) -> list[dict[str, str]]:
    return [{key: one for key, one in row.items() if key not in TIMES} for row in csv.DictReader(io.StringIO(text))]


def test_axes_multiply_in_the_order_of_the_file(write: Write) -> None:
    cells = Cells(read_grid(write()))
    assert [variant.title for variant in cells.variants] == [
        "Mean, flip",
        "Mean, none",
        "CoordinateMedian, flip",
        "CoordinateMedian, none",
    ]
    runs = [cell for variant in cells.variants for cell in cells.compared(variant, {})]
    assert [cell.seed for cell in runs] == [1, 2] * 4
    assert cells.count == len({cell.id for cell in runs}) == 8
    assert runs[2].values["trainer.strategy.attackers"] == []
    assert list(runs[0].variant.names) == ["aggregator", "attack"]  # a path goes by its last word
    assert "--trainer.strategy.attack=null" in runs[2].arguments(Path("base.yaml"), Path("out"))


def test_an_id_names_what_a_run_computes(write: Write) -> None:
    def ids(**given: Any) -> dict[tuple[str, int], str]:
        return {
            (cell.variant.title, cell.seed): one for one, cell in Cells(read_grid(write(**given))).possible().items()
        }

    first = ids()
    grown = ids(
        grid={"trainer.strategy.aggregator": ["Krum", "Mean", "CoordinateMedian"], **ATTACK},
        seeds=[3, 1, 2],
        output="elsewhere",
        metric="val_loss",
        processes=2,
    )
    assert first.items() <= grown.items()
    for other in ({"set": {**SHORT, "trainer.max_epochs": 2}}, {"test": True}, {"threads": 2}):
        assert not set(first.values()) & set(ids(**other).values())
    Path("base.yaml").write_text(Path("base.yaml").read_text() + "\n# a remark\n")
    assert ids() == first
    Path("base.yaml").write_text(Path("base.yaml").read_text().replace("f: 2", "f: 1"))
    assert not set(first.values()) & set(ids().values())


def test_statistics_of_a_hand_made_grid(write: Write, run: Run, imagined: Callable[..., list[str]]) -> None:
    """Means 0.2, 0.7, 0.4 and 0.9 over three seeds; the baseline's runs are paired seed by seed."""
    points = {
        ("Mean", "SignFlip"): [0.1, 0.2, 0.3],
        ("Mean", "null"): [0.7, 0.7, 0.7],
        ("CoordinateMedian", "SignFlip"): [0.3, 0.5, 0.4],
    }

    def score(options: Mapping[str, Any]) -> Mapping[str, float]:
        place = options["trainer.strategy.aggregator"], options["trainer.strategy.attack"]
        return {"val_accuracy": points[place][int(options["seed_everything"]) - 1] if place in points else 1 / 0}

    imagined(score)
    write(seeds=[1, 2, 3], baseline={"aggregator": "Mean"})
    run()
    first, second, third, fourth = rows_of("summary.csv")
    assert [float(first[key]) for key in ("n", "val_accuracy", "standard_error")] == pytest.approx(
        [3, 0.2, 0.1 / math.sqrt(3)]
    )
    assert first["difference"] == second["difference"] == ""
    assert float(second["standard_error"]) == 0
    assert float(third["difference"]) == pytest.approx(0.2)
    assert float(third["difference_standard_error"]) == pytest.approx(0.1 / math.sqrt(3))  # of 0.2, 0.3, 0.1
    assert third["pairs"] == "3"
    assert [fourth[key] for key in ("n", "failed", "val_accuracy", "failure")] == ["0", "3", "", "division by zero"]
    assert (
        r"CoordinateMedian & flip & $0.4000 \pm 0.0577$ & $+0.2000 \pm 0.0577$ \\"
        in (Path("out") / "summary.tex").read_text()
    )


def test_one_run_has_no_error() -> None:
    assert math.isnan(Spread.of([1.0]).error)
    assert Spread.of([]).n == 0


@pytest.mark.parametrize(("mode", "best", "edge"), [("max", "0.2", ""), ("min", "0.8", "model.learning_rate")])
def test_a_value_is_tuned_per_variant_and_an_edge_is_told(
    write: Write, run: Run, imagined: Callable[..., list[str]], mode: str, best: str, edge: str
) -> None:
    """Best at 0.2 for the mean, for the median at the edge 0.1 (max); seeds that tune are never compared."""

    def score(options: Mapping[str, Any]) -> Mapping[str, float]:
        rate, middle = (
            float(options["model.learning_rate"]),
            0.2 if options["trainer.strategy.aggregator"] == "Mean" else 0.1,
        )
        return {"val_accuracy": 1 - abs(math.log(rate / middle)) + 0.01 * int(options["seed_everything"])}

    made = imagined(score)
    write(
        grid=RULE, tune={"model.learning_rate": [0.4, 0.1, 0.2, 0.8]}, tune_seeds=[11, 12], seeds=[1, 2, 3], mode=mode
    )
    run()
    assert len(made) == len(set(made)) == 2 * (4 * 2 + 3)
    mean, median = rows_of("summary.csv")
    assert (mean["learning_rate"], mean["at_edge"]) == (best, edge)
    assert (median["learning_rate"], median["at_edge"]) == ("0.1" if mode == "max" else "0.8", "model.learning_rate")
    page = (Path("out") / "index.html").read_text()
    assert "lies at the edge of what was tried" in page
    assert {row["seed"] for row in rows_of("results.csv") if row["purpose"] == "compare"} == {"1", "2", "3"}
    assert (Path("out") / "figures" / "tuned.png").stat().st_size > 5000


def test_a_tuned_value_needs_all_its_runs(write: Write) -> None:
    """A rate at which one seed failed is not chosen, however good the other; NaN is worse than anything."""
    cells = Cells(read_grid(write(grid=RULE, tune={"model.learning_rate": [0.1, 0.2, 0.3]}, tune_seeds=[11, 12])))
    variant = cells.variants[0]
    scores = {0.1: (0.5, 0.5), 0.2: (0.99, None), 0.3: (math.nan, 0.99)}
    records = {
        run.id: Record(
            run.id,
            "" if score is not None else "it broke",
            0,
            [Evaluation(1, 1, 0, None, {"val_accuracy": score or 0})],
        )
        for values, runs in cells.tuning(variant)
        for run, score in zip(runs, scores[values["model.learning_rate"]], strict=True)
    }
    assert chosen(cells, variant, records).values == {"model.learning_rate": 0.1}
    broken = {one: Record(one, "it broke") for one in records}
    assert chosen(cells, variant, broken).values is None
    assert summarized(cells, broken)[0].failures == ["nothing to tune by: it broke"]


def test_nothing_is_run_twice_and_a_grid_may_grow(write: Write, run: Run, imagined: Callable[..., list[str]]) -> None:
    made = imagined(
        lambda options: {"val_accuracy": 0.5} if options["trainer.strategy.aggregator"] == "Mean" else 1 / 0
    )
    write()
    run()
    assert len(made) == 8
    run()
    assert len(made) == 8
    write(seeds=[1, 2, 3])
    run()
    assert len(made) == 12
    run("--retry")  # failed ones only
    assert len(made) == 18


def test_the_folder_of_another_grid_is_left_alone(write: Write, run: Run, imagined: Callable[..., list[str]]) -> None:
    imagined(lambda options: {"val_accuracy": 0.5})
    write()
    run()
    before = (Path("out") / "results.csv").read_text()
    write(set={**SHORT, "trainer.max_epochs": 3})
    assert "out holds 8 runs that are not in this grid, such as " in run(status=2)
    assert (Path("out") / "results.csv").read_text() == before


def test_one_command_at_a_time(write: Write, run: Run, imagined: Callable[..., list[str]]) -> None:
    imagined(lambda options: {"val_accuracy": 0.5})
    write()
    with Folder(Path("out")).locked():
        assert "another command is running in out" in run(status=2)


def test_a_metric_that_no_run_logs_is_known_after_the_first(
    write: Write, run: Run, imagined: Callable[..., list[str]]
) -> None:
    made = imagined(lambda options: {"val_accuracy": 0.5, "val_loss": 1.0})
    write(metric="val_acuracy")
    said = "metric=val_acuracy: the first run has not logged it, and is kept in out: did you mean val_accuracy?"
    assert said in run(status=2)
    assert len(made) == 1
    assert said in run(status=2)
    assert len(made) == 1  # the kept run says it
    write()
    run()
    assert len(made) == 8  # the first run counts


def test_a_full_disk_loses_nothing(
    write: Write, run: Run, imagined: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = imagined(lambda options: {"val_accuracy": 0.5})
    write()
    save = Folder.save

    def full(folder: Folder, record: Record) -> None:
        if len(made) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(folder, record)

    monkeypatch.setattr(Folder, "save", full)
    assert run(status=1) == (
        "error: the disk is full: 3 of 8 runs are safe in out/records; make room and give the same command, which goes on from there."
    )
    monkeypatch.setattr(Folder, "save", save)
    run()
    assert len(made) == 9
    assert len(rows_of("results.csv")) == 16


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        write_whole(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_many_runs_want_a_yes(write: Write, run: Run, imagined: Callable[..., list[str]]) -> None:
    imagined(lambda options: {"val_accuracy": 0.5})
    write(seeds=list(range(2501)))
    assert "the grid has 10,004 runs: give --yes to go ahead, or fewer variants or seeds." in run(status=2)


def test_page_and_figures(write: Write, run: Run, imagined: Callable[..., list[str]]) -> None:
    imagined(lambda options: {"val_accuracy": 0.5 + 0.1 * (options["trainer.strategy.aggregator"] == "Mean")})
    write(grid={**RULE, "<attack> & co": ATTACK["attack"]}, test=True)
    run()
    page = (Path("out") / "index.html").read_text()
    assert not re.search(r"""(src|href|url|@import)\s*[=(]\s*["']?(?!["']?data:)""", page)
    assert "http" not in re.sub(r"data:[^\"]*", "", page)
    assert "&lt;attack&gt; &amp; co" in page
    assert "<attack>" not in page
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', page)
    assert len(pictures) == 4  # heat map, worst, steps, bytes
    assert all(b"<svg" in b64decode(picture) and b"<path" in b64decode(picture) for picture in pictures)
    assert {path.name for path in (Path("out") / "figures").glob("*.png")} == {
        "heatmap.png",
        "worst.png",
        "steps.png",
        "bytes.png",
    }
    assert all(path.stat().st_size > 5000 for path in (Path("out") / "figures").glob("*.png"))
    ids = set(Cells(read_grid(Path("grid.yaml"))).possible())
    assert {one for one in ids if f"lightning-byz fit --config out/cells/{one}.yaml" in page} == ids
    assert "Test data" in page
    assert {row["mean"] for row in rows_of("test.csv")} == {"0.25"}


def test_without_matplotlib_everything_else_is_written(
    write: Write, run: Run, imagined: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    imagined(lambda options: {"val_accuracy": 0.5})
    write()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'lightning-byz[plots]'" in run()
    assert {path.name for path in Path("out").iterdir() if path.is_file()} == {
        ".lock",
        "results.csv",
        "summary.csv",
        "summary.tex",
        "index.html",
    }


OWN = """
import os, sys
import torch
from lightning_byz.demos import DigitsClassifier, DigitsData


class Untidy(DigitsClassifier):
    def on_fit_end(self):
        torch.use_deterministic_algorithms(True)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(1)
        os.environ["LEFT"] = "behind"
        os.chdir("/")


class Broken(DigitsClassifier):
    def on_train_epoch_end(self):
        raise RuntimeError("a fault of mine")


class Gone(DigitsClassifier):
    def on_train_epoch_end(self):
        try:
            input()  # the next job is not its to read
        except EOFError:
            os._exit(3)


class Poisoned(DigitsData):
    def test_dataloader(self):
        loader = super().test_dataloader()
        images, labels = loader.dataset.tensors
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, (labels + 1) % 10), batch_size=16)
"""


def test_a_cell_is_the_same_alone_after_others_and_replayed(
    write: Write, run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One run that leaves its process in disorder comes before; a failed one has its sentence; the fit of the cell's config ends the same."""
    Path("own.py").write_text(OWN)
    models = {name: {"model": f"own.{name}"} for name in ("Untidy", "Broken")}
    write(grid={"model": {**models, "tidy": {}}}, seeds=[1])
    run()
    place = Path.cwd()
    assert torch.get_default_dtype() is torch.float32
    assert "LEFT" not in os.environ
    untidy, broken, tidy = (row for row in rows_of("results.csv"))
    assert broken["failure"] == "RuntimeError: a fault of mine"
    assert broken["stage"] == "failed"
    assert {key: untidy[key] for key in ("train_loss", "val_loss")} == {
        key: tidy[key] for key in ("train_loss", "val_loss")
    }
    assert "every number of every evaluation is that of the kept run, bit for bit" in run("--cell", tidy["cell"])
    write(grid={"model": {"tidy": {}}}, seeds=[1], output="alone")
    run()
    alone = next(iter(Folder(Path("alone")).records().values()))
    assert alone.bits == Folder(Path("out")).records()[tidy["cell"]].bits
    assert Path.cwd() == place
    record = Path("out") / "records" / f"{tidy['cell']}.json"
    record.write_text(record.read_text().replace(tidy["val_loss"], "1.5"))
    write(grid={"model": {**models, "tidy": {}}}, seeds=[1])
    assert "this is not what out/records/" in run("--cell", tidy["cell"], status=1)
    monkeypatch.setattr(sys, "argv", ["lightning-byz"])
    cli.main(["fit", "--config", f"out/cells/{tidy['cell']}.yaml"])
    told = capfd.readouterr().out.split("last epoch: ")[1]
    assert f"val_loss {float(tidy['val_loss']):.4f}" in told


def test_selection_never_reads_test_data(write: Write, run: Run) -> None:
    Path("own.py").write_text(OWN)
    told = {}
    for data in ("DigitsData", "own.Poisoned"):
        write(
            grid={"trainer.strategy.aggregator": ["CoordinateMedian"]},
            set={**SHORT, "data": {"class_path": data, "init_args": {"batch_size": 16}}, "trainer.limit_train_batches": 8},
            tune={"model.learning_rate": [0.001, 0.5]}, tune_seeds=[11], seeds=[1], test=True, output=f"out/{data}",
        )  # fmt: skip
        run()
        fits = [row for row in without_times((Path("out") / data / "results.csv").read_text()) if row["stage"] == "fit"]
        bits = [
            {key: row[key] for key in ("learning_rate", "seed", "step", "val_accuracy", "val_loss")} for row in fits
        ]
        told[data] = (rows_of(f"{data}/summary.csv"), bits), float(rows_of(f"{data}/test.csv")[0]["mean"])
        assert {row["purpose"] for row in rows_of(f"{data}/results.csv") if row["stage"] == "test"} == {"compare"}
    assert told["DigitsData"][0] == told["own.Poisoned"][0]
    assert told["DigitsData"][0][0][0]["learning_rate"] == "0.5"
    assert told["DigitsData"][1] != told["own.Poisoned"][1]


def children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(one) for task in tasks for one in task.read_text().split()]


@pytest.mark.timeout(400)
def test_killed_and_resumed_is_as_if_nothing_had_happened(write: Write, run: Run) -> None:
    """``kill -9`` of the command's process group; its warm process ends too; a cell that takes its process down is a row."""
    Path("own.py").write_text(OWN)
    models = {"digits": {}, "gone": {"model": "own.Gone"}, "small": {"model.hidden": 16}}
    write(grid={"model": models}, seeds=[1], processes=1)
    line = [sys.executable, "-W", "ignore", "-m", "lightning_byz", "compare", "--config", "grid.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(line, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    records = Path("out") / "records"
    while len(list((Path("out") / "cells").glob("*.yaml"))) < 3:  # the third is under way
        assert started.poll() is None
        time.sleep(0.02)
    nursery = children(started.pid)
    workers = [*nursery, *(worker for one in nursery for worker in children(one))]
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert len(list(records.glob("*.json"))) == 2
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(
        Path(f"/proc/{one}/stat").exists() and ") Z" not in Path(f"/proc/{one}/stat").read_text() for one in workers
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(list(records.glob("*.json"))) == 2  # nobody goes on behind the command's back
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    resumed = (Path("out") / "results.csv").read_text()
    assert [row["failure"] for row in rows_of("results.csv")] == ["", "the process ended with status 3", ""]
    write(grid={"model": {name: models[name] for name in ("digits", "small")}}, seeds=[1], output="whole")
    run()
    whole = without_times((Path("whole") / "results.csv").read_text())
    assert [row for row in without_times(resumed) if row["model"] != "gone"] == whole


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"grid": {"model.rates": [1]}}, "axis rates, 1: DigitsClassifier has no argument 'rates'"),
        (
            {"set": {"trainer.max_epoch": 1}},
            "base base.yaml with set: there is no option --trainer.max_epoch: did you mean --trainer.max_epochs?",
        ),
        (
            {"tune": {"model.learning_rat": [1]}, "tune_seeds": [9]},
            "tune, model.learning_rat: DigitsClassifier has no argument 'learning_rat': did you mean learning_rate?",
        ),
        ({"tune": {"model.learning_rate": [1]}}, "tune and tune_seeds go together"),
        ({"tune": {"model.learning_rate": [1]}, "tune_seeds": [1]}, "seed 1 stands in seeds and in tune_seeds"),
        (
            {"grid": {"a": {"x": {"model.hidden": 1}}, "model.hidden": [2]}},
            "axis a and axis hidden both set model.hidden",
        ),
        ({"grid": {"seed_everything": [1]}}, "axis seed_everything sets seed_everything: give seeds instead."),
        ({"baseline": {"rule": "Mean"}}, "baseline: there is no axis 'rule': give aggregator or attack."),
        ({"grid": {}}, "grid.yaml: the grid is empty: give axes under grid, such as "),
        (
            {"grid": {"model.hidden": []}},
            "axis model.hidden has no values: give a list of values, or a mapping of named variants.",
        ),
        ({"base": ["base.yaml"]}, "base=[base.yaml]: give the path of a config, relative to the grid's file."),
        ({"mode": "most"}, "mode=most: give max where more of the metric is better, or min."),
    ],
)
def test_a_mistaken_grid_is_one_sentence(write: Write, run: Run, given: dict[str, Any], said: str) -> None:
    write(**given)
    told = run(status=2)
    assert said in told
    assert told.count("\n") == 1
    assert not Path("out/index.html").exists()


def test_the_example_of_the_repository_is_short() -> None:
    cells = Cells(read_grid(ROOT / "configs" / "compare.yaml"))
    assert cells.count == 8


def test_a_run_of_several_ranks_needs_its_own_process(write: Write, tmp_path: Path) -> None:
    arguments = ["fit", "--config", "base.yaml", "--trainer.devices=2"]
    write()
    with pytest.raises(SeveralRanks):
        perform(Job("two", arguments, "out"))
    assert json.loads(json.dumps(Job("two", arguments, "out").told()))["alone"] is False


@pytest.mark.parametrize("place", [0, 1], ids=["the grid", "from ByzFL"])
def test_the_grids_of_the_docs_are_right(write: Write, tmp_path: Path, place: int) -> None:
    write()
    text = re.findall(r"```yaml\n(base:.*?)```", (ROOT / "docs" / "compare.md").read_text(), re.DOTALL)[place]
    (tmp_path / "quickstart.yaml").write_text((tmp_path / "base.yaml").read_text())
    (tmp_path / "docs.yaml").write_text(text)
    cells = Cells(read_grid(tmp_path / "docs.yaml"))
    command.check_paths(cells)
    assert cells.count == (9 * (3 * 2 + 3), 12 * (2 * 3 + 3))[place]
