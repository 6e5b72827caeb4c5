"""``lightning-byz compare`` with W&B: a grid is a group, its values are columns, and a sweep makes the same fits."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_byz import cli
from lightning_byz.compare.cells import Cells
from lightning_byz.compare.grid import read_grid
from lightning_byz.compare.records import Folder
from lightning_byz.compare.report import sweep_of
from lightning_byz.redteam.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
TO_WANDB = {"trainer.logger": "lightning.pytorch.loggers.WandbLogger"}
SHORT = {"trainer.max_epochs": 1, "trainer.limit_train_batches": 2, "trainer.callbacks": []}
ATTACK = {
    "none": {"trainer.strategy.attack": None, "trainer.strategy.attackers": []},
    "flip": {"trainer.strategy.attack": "SignFlip"},
}

Write = Callable[..., Cells]


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Write:
    """Write a grid beside the quickstart's config, in the current directory; return its runs."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text((ROOT / "configs" / "quickstart.yaml").read_text())

    def write(**given: Any) -> Cells:
        whole = {"base": "base.yaml", "grid": {"attack": ATTACK}, "seeds": [1], "processes": 0, "output": "runs/rules"}
        Path("grid.yaml").write_text(yaml.safe_dump({**whole, **given}, sort_keys=False))
        return Cells(read_grid(Path("grid.yaml")))

    return write


def logger_of(cells: Cells, place: int = 0) -> Any:
    cell = list(cells.possible().values())[place]
    options = cell.arguments(cells.grid.base, cells.grid.output)
    return json.loads(next(one for one in options if one.startswith("--trainer.logger=")).partition("=")[2])


def test_a_grid_is_a_group_and_its_values_are_columns(write: Write) -> None:
    cells = write(set=TO_WANDB, tune={"model.learning_rate": [0.1, 0.5]}, tune_seeds=[9])
    ids = list(cells.possible())
    assert logger_of(cells) == {
        "class_path": "lightning.pytorch.loggers.WandbLogger",
        "init_args": {"name": "none, seed 9", "save_dir": f"runs/rules/fits/{ids[0]}"},
        "dict_kwargs": {
            "group": "rules",
            "config": {
                "attack": "none",
                "trainer.strategy.attack": None,
                "trainer.strategy.attackers": [],
                "model.learning_rate": 0.1,
                "seed": 9,
                "purpose": "tune",
                "cell": ids[0],
            },
        },
    }
    tuned = {"tune": {"model.learning_rate": [0.1, 0.5]}, "tune_seeds": [9]}
    assert ids == list(write(set=TO_WANDB, output="elsewhere", **tuned).possible())


def test_what_the_user_says_of_the_logger_stays(write: Write) -> None:
    own = {
        "init_args": {"project": "digits", "name": "mine", "save_dir": "here", "group": "ours", "config": {"lab": 3}}
    }
    logger = logger_of(
        write(set={"trainer.logger": [{"class_path": "WandbLogger", **own}, {"class_path": "CSVLogger"}]})
    )
    assert logger[0]["init_args"] == {"project": "digits", "name": "mine", "save_dir": "here"}
    assert logger[0]["dict_kwargs"]["group"] == "ours"
    assert logger[0]["dict_kwargs"]["config"].items() >= {"lab": 3, "attack": "none"}.items()
    assert logger[1] == {"class_path": "CSVLogger"}


def test_of_the_loggers_of_the_base_only_that_of_wandb_is_kept(write: Write) -> None:
    write()
    assert write().loggers == [False]  # the quickstart's CSV
    cells = write(base=str(ROOT / "configs" / "wandb.yaml"))
    assert [one["init_args"]["project"] for one in cells.loggers] == ["lightning-byz"]
    assert yaml.safe_load(sweep_of(cells, Folder(Path("out"))))["project"] == "lightning-byz"
    assert write(base=str(ROOT / "configs" / "wandb.yaml"), set={"trainer.logger": False}).loggers == [False]
    plan = Plan(ROOT / "configs" / "wandb.yaml", 1, Path("out"), "val_accuracy", "max", (1,), 0)
    assert plan.cells({"none": (None, 0)}).loggers == cells.loggers  # the trials of a red team too


def test_a_sweep_has_the_config_of_every_run(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    """Each is the config of a fit as the grid has it; nothing is run, and W&B need not be installed."""
    cells = write(set={**SHORT, **TO_WANDB}, mode="min", metric="val_loss", threads=2)
    cli.main(["compare", "--config", "grid.yaml", "--sweep"])
    assert "runs/rules/sweep.yaml: 2 fits; wandb sweep runs/rules/sweep.yaml" in capfd.readouterr().out
    sweep = yaml.safe_load(Path("runs/rules/sweep.yaml").read_text())
    configs = [Path(one) for one in sweep.pop("parameters")["config"]["values"]]
    assert sweep == {
        "name": "rules",
        "program": "lightning-byz",
        "command": ["${env}", "OMP_NUM_THREADS=2", "${program}", "fit", "${args}"],
        "method": "grid",
        "metric": {"name": "val_loss", "goal": "minimize"},
    }
    assert [path.stem for path in configs] == list(cells.possible())
    told = [yaml.safe_load(path.read_text()) for path in configs]
    attacks = [one["trainer"]["strategy"]["init_args"]["attack"] for one in told]
    assert (attacks[0], attacks[1]["class_path"]) == (None, "lightning_byz.attacks.SignFlip")
    assert [one["trainer"]["max_epochs"] for one in told] == [1, 1]
    assert all("WandbLogger" in one["trainer"]["logger"]["class_path"] for one in told)
    assert not list(Path("runs/rules/records").iterdir())


def test_what_is_missing_for_wandb_is_said_at_once(
    write: Write, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    for given, option, said in (
        ({"set": TO_WANDB}, [], "trainer.logger is WandbLogger, and wandb is not installed: pip install"),
        ({}, ["--sweep"], "sweep: runs of this grid do not log to W&B: give set: {trainer.logger: lightning.pytorch.l"),
    ):
        write(**given)
        with pytest.raises(SystemExit, match="2"):
            cli.main(["compare", "--config", "grid.yaml", *option])
        assert said in capfd.readouterr().err
    assert not Path("runs").exists()


def test_each_run_of_a_process_is_one_of_wandb(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is an extra: pip install lightning-byz[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    cells = write(set={**SHORT, **TO_WANDB})
    cli.main(["compare", "--config", "grid.yaml"])
    assert wandb.run is None
    assert [record.failure for record in Folder(Path("runs/rules")).records().values()] == ["", ""]
    for cell in cells.possible().values():
        (log,) = Path(f"runs/rules/fits/{cell.id}").rglob("*.wandb")
        written = log.read_bytes()
        assert all(word.encode() in written for word in (f"{cell.variant.title}, seed 1", "rules", cell.id))
    assert len(yaml.safe_load(Path("runs/rules/sweep.yaml").read_text())["parameters"]["config"]["values"]) == 2
