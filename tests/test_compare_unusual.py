"""Unusual grids, metrics and modules for ``lightning-byz compare``: each was once a traceback, a silent mistake or a lost grid."""

import importlib
import json
import math
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
import yaml

from lightning_byz import cli
from lightning_byz.compare import command, fit
from lightning_byz.compare.cells import Cells
from lightning_byz.compare.figures import draw
from lightning_byz.compare.fit import Job, perform
from lightning_byz.compare.grid import read_grid
from lightning_byz.compare.isolation import untouched
from lightning_byz.compare.names import short_names
from lightning_byz.compare.records import Evaluation, Folder, Record
from lightning_byz.compare.summaries import Spread, summarized
from lightning_byz.compare.yaml_file import read

ROOT = Path(__file__).resolve().parent.parent
RULE = {"trainer.strategy.aggregator": ["Mean", "CoordinateMedian"]}

Write = Callable[..., Cells]


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Write:
    """Write a grid beside the quickstart's config, in the current directory; return its runs."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text((ROOT / "configs" / "quickstart.yaml").read_text())

    def write(**given: Any) -> Cells:
        whole = {"base": "base.yaml", "grid": RULE, "seeds": [1, 2], "processes": 0, "output": "out", **given}
        Path("grid.yaml").write_text(yaml.safe_dump(whole, sort_keys=False, allow_unicode=True))
        return Cells(read_grid(Path("grid.yaml")))

    return write


def logged(cells: Cells, *scores: float) -> dict[str, Record]:
    ids = cells.possible()
    return {
        one: Record(one, evaluations=[Evaluation(1, 10, 0.1, None, {"val_accuracy": score})])
        for one, score in zip(ids, scores * len(ids), strict=False)
    }


def refused(capfd: pytest.CaptureFixture[str], *options: str) -> str:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compare", "--config", "grid.yaml", *options])
    told = capfd.readouterr().err
    assert told.count("\n") == 1
    return told


def test_no_axis_has_the_name_of_another_column(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    cells = write(grid={"trainer.strategy.seed": [1, 2]}, tune={"data.seed": [3, 4]}, tune_seeds=[9])
    assert [axis.name for axis in cells.grid.axes] == ["trainer.strategy.seed"]
    assert cells.grid.tuned == ("data.seed",)
    assert short_names(["model.cell"]) == ("model.cell",)
    assert write(grid={"model.rate": [1]}, tune={"data.rate": [3]}, tune_seeds=[9]).grid.tuned == ("data.rate",)
    with pytest.raises(ValueError, match="axis step has the name of another column of the tables"):
        write(grid={"step": {"one": {"model.hidden": 1}}})


def test_what_lies_inside_is_written_after_what_it_lies_in(write: Write) -> None:
    """Whatever the order of axes: else a class would take back what was written into it."""
    cells = write(
        grid={"model.hidden": [8, 16], "model": ["a.One", "a.Two"]}, set={"model.init_args.learning_rate": 0.1}
    )
    for cell in cells.possible().values():
        places = [option.partition("=")[0] for option in cell.arguments(cells.grid.base, cells.grid.output)]
        assert places.index("--model") < min(map(places.index, ("--model.hidden", "--model.init_args.learning_rate")))
    with pytest.raises(ValueError, match=r"set model.init_args.hidden|both set"):
        write(grid={"model.hidden": [8], "rate": {"low": {"model.init_args.hidden": 4}}})


def test_days_are_text_and_large_seeds_are_refused(write: Write) -> None:
    Path("day.yaml").write_text("day: 2024-01-31\nrate: 1e-3\nnone: null\nyes: true\n")
    assert read(Path("day.yaml"), "grid") == {"day": "2024-01-31", "rate": 0.001, "none": None, True: True}
    with pytest.raises(ValueError, match=r"seeds are below 2\*\*32"):
        write(seeds=[1, 2**32])


def test_odd_values_reach_the_fit(write: Write) -> None:
    values = [None, True, 0.001, [[1, "zwei"], []], 'it\'s "ü" & $x_{']
    cells = write(grid={"model.thing": values}, seeds=[1])
    told = [cell.arguments(Path("b"), Path("o"))[-2:] for cell in cells.possible().values()]
    found = [next(one for one in options if "thing" in one).partition("=")[2] for options in told]
    assert [json.loads(one) for one in found[:-1]] == values[:-1]
    assert found[-1] == values[-1]


@pytest.mark.parametrize("option", ["--processes=-1", "--output=base.yaml"])
def test_options_that_cannot_be_are_one_sentence(
    write: Write, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(command, "check_paths", lambda cells: None)
    write()
    said = {"--processes=-1": "processes=-1", "--output=base.yaml": "base.yaml cannot hold the results: "}
    assert said[option] in refused(capfd, option)


def test_callbacks_that_need_a_logger_or_checkpoints_have_them(write: Write) -> None:
    def common(*names: str) -> tuple[Any, Any]:
        cells = write(grid={"trainer.callbacks": [[], [{"class_path": name} for name in names]]})
        return cells.common["trainer.logger"], cells.common["trainer.enable_checkpointing"]

    assert common("LearningRateMonitor") == (True, False)
    assert common("ModelCheckpoint") == (False, True)
    assert common("EarlyStopping") == (False, False)
    text = yaml.safe_load(Path("base.yaml").read_text())
    text["trainer"]["callbacks"] = ["LearningRateMonitor", "ModelCheckpoint"]
    Path("base.yaml").write_text(yaml.safe_dump(text))
    cells = write()
    assert (cells.common["trainer.logger"], cells.common["trainer.enable_checkpointing"]) == (True, True)
    assert write(set={"trainer.logger": False}).common["trainer.logger"] is False


def test_infinite_and_missing_numbers_lose_no_grid(write: Write) -> None:
    assert math.isnan(Spread.of([math.inf, -math.inf]).mean)
    cells = write(baseline={"aggregator": "Mean"})
    _, other = summarized(cells, logged(cells, math.inf, 1.0, 1.0, math.inf))
    assert other.difference is not None
    assert math.isnan(other.difference.mean)
    cells = write(tune={"model.hidden": [8, 16]}, tune_seeds=[9])
    row = summarized(cells, logged(cells, math.nan))[0]
    assert row.failures == ["nothing to tune by: val_accuracy is NaN or was not logged"]
    assert summarized(cells, {})[0].failures == []  # not finished is no failure


def test_figures_print_names_as_they_are(write: Write) -> None:
    """Also names that matplotlib would take for formulae, or leave out of its legend."""
    names = {"_own": {}, "$x_{$": {"model.hidden": 3}}
    cells = write(grid={"rule": names, "$\\frac{$ attack": {"a": {}, "b": {"model.learning_rate": 0.1}}}, seeds=[1])
    records = logged(cells, 0.5)
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text as text
        drawn = draw(cells, summarized(cells, records), records)
    assert all(f">{word}<" in drawn["steps"][1].decode() for word in ("optimizer steps", " _own", "$x_{$"))
    assert set(drawn) == {"steps", "heatmap", "worst"}
    alone = write(grid={"rule": {"_own": {}}}, seeds=[1])
    assert "steps" in draw(alone, summarized(alone, logged(alone, 0.5)), logged(alone, 0.5))


KEEPING = """
import torch
torch.set_default_dtype(torch.float64)
drawn = []
"""


def test_a_run_leaves_nothing_in_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own file is a new one for each run: what it does when it is imported, and what it has kept, are a part of a run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("keeping_own.py").write_text(KEEPING)
    interrupt = signal.getsignal(signal.SIGINT)
    for _ in range(2):
        with untouched(1), warnings.catch_warnings():
            kept = importlib.import_module("keeping_own")
            assert kept.drawn == []
            assert torch.get_default_dtype() is torch.float64
            kept.drawn.append(1)
            torch.set_grad_enabled(False)
            torch.set_default_device("meta")
            np.seterr(all="raise")
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert "keeping_own" not in sys.modules
        assert torch.is_grad_enabled()
        assert torch.zeros(1).device.type == "cpu"
        assert np.geterr()["over"] == "warn"
        assert signal.getsignal(signal.SIGINT) is interrupt
    assert importlib.import_module("lightning_byz.compare") is sys.modules["lightning_byz.compare"]


def test_an_exit_is_a_failure_and_ctrl_c_is_none(
    write: Write, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Lightning makes an exit of Ctrl-C; a run in the command's own process must stop the grid then."""
    write()

    def ended(*_: Any, **__: Any) -> None:
        raise SystemExit(0)

    def stopped(*_: Any, **__: Any) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    monkeypatch.setattr(fit, "_Fit", ended)
    assert perform(Job("one", [], "out")).failure == "SystemExit: 0"
    monkeypatch.setattr(fit, "_Fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        perform(Job("two", [], "out"))
    assert list(Folder(Path("out")).records()) == ["one"]
