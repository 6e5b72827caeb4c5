"""The command line: configs, bare names, overrides, mistakes, a fit."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from lightning_byz import cli
from lightning_byz.census import Arrival

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
SHORT = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.enable_progress_bar=false"]

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, in an empty directory; return what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-byz"])
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: str, status: int | None = None) -> str:
        capfd.readouterr()
        if status is None:
            cli.main(arguments)
            return capfd.readouterr().out
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        code = stopped.value.code
        captured = capfd.readouterr()
        if isinstance(code, str):  # the interpreter prints it and exits with 1
            assert status == 1
            return captured.out + captured.err + code
        assert code == status, captured.err
        return captured.out + captured.err * bool(status)

    return run


def strategy_of(printed: str) -> dict:
    return yaml.safe_load(printed)["trainer"]["strategy"]["init_args"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_configs_parse_and_print(run: Run, config: Path) -> None:
    printed = run("fit", "--config", str(config), "--print_config", status=0)
    given, whole = yaml.safe_load(config.read_text()), yaml.safe_load(printed)
    assert whole["seed_everything"] == given["seed_everything"]
    assert whole["trainer"]["strategy"]["class_path"].endswith(given["trainer"]["strategy"]["class_path"])
    assert whole["trainer"]["max_epochs"] == given["trainer"]["max_epochs"]


def test_bare_names_nest(run: Run) -> None:
    strategy = strategy_of(run("fit", "--config", QUICKSTART, "--print_config", status=0))
    assert strategy["aggregator"]["class_path"] == "lightning_byz.aggregators.CTMA"
    assert strategy["aggregator"]["init_args"]["base"]["class_path"] == "lightning_byz.aggregators.CoordinateMedian"
    assert [stage["class_path"] for stage in strategy["preaggregators"]] == ["lightning_byz.preaggregators.NNM"]
    assert strategy["attack"] == {"class_path": "lightning_byz.attacks.ReverseGradient", "init_args": {"factor": 10.0}}


@pytest.mark.parametrize(
    ("given", "read"),
    [("samples", "samples"), ("[1, 2.5, 1, 1, 1, 1, 1, 1]", [1, 2.5, 1, 1, 1, 1, 1, 1]), ("null", None)],
)
def test_weights_in_the_file(run: Run, tmp_path: Path, given: str, read: object) -> None:
    text = Path(QUICKSTART).read_text().replace("f: 2\n", f"f: 2\n      weights: {given}\n      trust_heavy: true\n")
    (tmp_path / "weighted.yaml").write_text(text)
    assert strategy_of(run("fit", "--config", "weighted.yaml", "--print_config", status=0))["weights"] == read
    assert "Workers over 2 steps" in run("fit", "--config", "weighted.yaml", *SHORT)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("SortedShards", "SortedShards"),
        ("{class_path: Dirichlet, init_args: {alpha: 0.5, labels: where.labels_of}}", "Dirichlet"),
        ("{class_path: Sizes, init_args: {sizes: [1, 1, 1, 1, 1, 1, 2, 2.5]}}", "Sizes"),
    ],
)
def test_partitions_in_the_file(run: Run, tmp_path: Path, given: str, name: str) -> None:
    (tmp_path / "where.py").write_text(
        "def labels_of(dataset):\n    print('asked for labels')\n    return dataset.tensors[1]\n"
    )
    text = Path(QUICKSTART).read_text().replace("f: 2\n", f"f: 2\n      partition: {given}\n")
    (tmp_path / "parted.yaml").write_text(text)
    assert (
        strategy_of(run("fit", "--config", "parted.yaml", "--print_config", status=0))["partition"]["class_path"]
        == f"lightning_byz.data.{name}"
    )
    printed = run("fit", "--config", "parted.yaml", *SHORT)
    assert "Workers over 2 steps" in printed
    assert ("asked for labels" in printed) == ("where" in given)


@pytest.mark.parametrize("key", ["trainer.strategy.init_args", "trainer.strategy"])
def test_overrides_replace_class_and_arguments(run: Run, key: str) -> None:
    overrides = [
        f"--{key}.aggregator=Mean",
        f"--{key}.preaggregators=[]",
        f"--{key}.attack=IPM",
        f"--{key}.attack.epsilon=0.5",
    ]
    strategy = strategy_of(run("fit", "--config", QUICKSTART, *overrides, "--print_config", status=0))
    assert strategy["aggregator"] == {"class_path": "lightning_byz.aggregators.Mean"}  # nothing is left of CTMA's base
    assert strategy["preaggregators"] == []
    assert strategy["attack"] == {"class_path": "lightning_byz.attacks.IPM", "init_args": {"epsilon": 0.5}}
    assert strategy["workers"] == 8  # what was not overridden stays


def test_strategy_can_be_built_on_the_command_line(run: Run) -> None:
    arguments = [
        "--model=DigitsClassifier",
        "--trainer.strategy=RobustStrategy",
        "--trainer.strategy.f=1",
        "--trainer.strategy.aggregator=Krum",
    ]
    strategy = strategy_of(run("fit", *arguments, "--print_config", status=0))
    assert strategy["f"] == 1
    assert strategy["aggregator"]["class_path"] == "lightning_byz.aggregators.Krum"


@pytest.mark.parametrize("exchange", ["Local", "AllToAll", "AllGather"])
def test_any_exchange_can_be_named(run: Run, exchange: str) -> None:
    arguments = ["fit", "--config", QUICKSTART, f"--trainer.strategy.exchange={exchange}"]
    named = strategy_of(run(*arguments, "--print_config", status=0))["exchange"]
    assert named == {"class_path": f"lightning_byz.exchange.{exchange}"}
    assert "Workers over 2 steps" in run(*arguments, *SHORT)


def test_help_of_the_strategy(run: Run) -> None:
    printed = run("fit", "--trainer.strategy.help=RobustStrategy", status=0)
    for argument in (
        "f",
        "aggregator",
        "preaggregators",
        "estimator",
        "workers",
        "partition",
        "attackers",
        "attack",
        "exchange",
        "weights",
        "buffers",
    ):
        assert f"--trainer.strategy.{argument} " in printed
    assert "How many workers may be Byzantine" in printed  # docstrings are shown
    assert "static_graph" not in printed  # nothing of DDPStrategy that would be ignored


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ("--trainer.strategy.ff=2", "RobustStrategy has no argument 'ff'"),
        ("--trainer.strategy.aggregator.bse=Mean", "CTMA has no argument 'bse'"),
        ("--trainer.strategy.attack.factr=2", "ReverseGradient has no argument 'factr'"),
        (
            "--trainer.strategy.aggregator=CoordinateMedain",
            "there is no class 'CoordinateMedain': did you mean CoordinateMedian?",
        ),
        ("--trainer.strategy.aggregator=nowhere.Rule", "there is no class Rule: No module named 'nowhere'."),
        ("--trainer.strategy.aggregator=lightning_byz.attacks.IPM", "lightning_byz.attacks.IPM is no Aggregator."),
        ("--trainer.strategy.f=many", "many"),
        ("--model.hidden=2.5", "hidden=2.5: give one of type int."),
        ("--model.x=3", "DigitsClassifier has no argument 'x'"),
        ("--trainer.max_epoch=3", "--trainer.max_epoch=3"),
        ("--trainer.strategy.workers=many", "many"),
    ],
)
def test_mistakes_on_the_command_line(run: Run, mistake: str, sentence: str) -> None:
    assert sentence in run("fit", "--config", QUICKSTART, mistake, status=2)


@pytest.mark.parametrize(
    ("right", "wrong", "sentence"),
    [
        ("f: 2", "ff: 2", "RobustStrategy has no argument 'ff'"),
        ("f: 2", "", "RobustStrategy needs a value for: f."),
        ("factor: 10", "factr: 10", "ReverseGradient has no argument 'factr'"),
        ("max_epochs:", "max_epoch:", "trainer.max_epoch"),
        ("[NNM]", "[MNN]", "there is no class 'MNN': did you mean MoNNA or NNM?"),
    ],
)
def test_mistakes_in_the_file(run: Run, tmp_path: Path, right: str, wrong: str, sentence: str) -> None:
    text = Path(QUICKSTART).read_text()
    assert right in text
    (tmp_path / "wrong.yaml").write_text(text.replace(right, wrong))
    assert sentence in run("fit", "--config", "wrong.yaml", status=2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--trainer.strategy.f=4"], "f = 4"),
        (["--trainer.strategy.f=-1"], "f=-1"),
        (["--trainer.strategy.attackers=[8]"], "the 8 workers are 0 to 7"),
        (["--trainer.strategy.attackers=[6, 6]"], "attackers=[6, 6]"),
        (["--trainer.strategy.weights=[1, 1, 1]"], "3 numbers for 8 workers"),
        (
            ["--trainer.strategy.attackers=[]", "--trainer.strategy.weights=[1, 1, 1, 1, 1, 1, 1, 3]"],
            "worker 7 alone has 0.3.",
        ),
        (["--trainer.strategy=auto"], "WorkerMonitor shows what RobustStrategy does"),
    ],
)
def test_refusals_are_one_sentence(run: Run, arguments: list[str], sentence: str) -> None:
    printed = run("fit", "--config", QUICKSTART, *SHORT, *arguments, status=1)
    assert sentence in printed
    assert "Traceback" not in printed


def test_faults_in_other_code_keep_their_traceback(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken_rule.py").write_text(
        "from lightning_byz.aggregators import Aggregator\n\n\nclass Broken(Aggregator):\n"
        "    def __call__(self, stack, *, generator=None):\n        raise ValueError('a fault of mine')\n"
    )
    with pytest.raises(ValueError, match="a fault of mine"):
        run("fit", "--config", QUICKSTART, *SHORT, "--trainer.strategy.aggregator=broken_rule.Broken")


FAULTY = """
from lightning_byz.attacks import Attack
from lightning_byz.demos import DigitsClassifier


class Faulty(DigitsClassifier):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return -10 * loss if self.trainer.strategy.worker in (2, 5) else loss


class Shout(Attack):
    def replace(self, sight):
        return -100 * sight.own
"""


@pytest.mark.parametrize(
    ("arguments", "guilty"),
    [
        (["--trainer.strategy.attackers=[1, 4]"], ["1 (attacks)", "4 (attacks)"]),
        (["--trainer.strategy.attack=faulty.Shout"], ["6 (attacks)", "7 (attacks)"]),
        (["--trainer.strategy.attackers=[]", "--model=faulty.Faulty"], ["2", "5"]),
    ],
    ids=["other ids", "an attack of one's own", "a fault in the module"],
)
def test_the_table_shows_who_was_left_out(run: Run, tmp_path: Path, arguments: list[str], guilty: list[str]) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    printed = run("fit", "--config", QUICKSTART, *SHORT, "--trainer.limit_train_batches=6", *arguments)
    table = printed.split("Workers over")[1]
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in table.splitlines() if line.startswith("│")]
    assert {name for name, share, times in rows if (share, times) == ("0.0000", "6")} == set(guilty)
    assert sum(int(times) for _, _, times in rows) == 12


@pytest.mark.filterwarnings(
    "ignore:.*exists and is not empty"
)  # the logger's and the checkpoint's word on a fixed version
def test_fit_twice_in_one_directory(run: Run, tmp_path: Path) -> None:
    """A fit writes config, log and checkpoint, and ends with the metrics and the table; a second one does not trip over the first."""
    fixed = ["--trainer.logger.version=fixed", "--trainer.default_root_dir=."]
    printed = run("fit", "--config", QUICKSTART, *SHORT, *fixed)
    folder = tmp_path / "runs" / "quickstart" / "fixed"
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["trainer"]["strategy"]["init_args"]["aggregator"]["class_path"] == "lightning_byz.aggregators.CTMA"
    header = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"attackers/share", "train_loss", "val_accuracy"} <= set(header)
    assert "Workers over 2 steps" in printed
    accuracy = float(printed.split("last epoch:")[1].split("val_accuracy ")[1].split(",")[0])
    checkpoint = next((folder / "checkpoints").glob("*.ckpt"))
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 2
    again = run("fit", "--config", QUICKSTART, *SHORT, *fixed, "--trainer.max_epochs=2", "--ckpt_path", str(checkpoint))
    assert "Workers over 4 steps" in again  # the table goes on from the checkpoint
    assert accuracy > 0


def test_same_command_same_result(run: Run) -> None:
    """Nothing in a config is needed for a run to be repeatable."""
    quiet = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    arguments = ["fit", "--model=DigitsClassifier", "--data=DigitsData", *quiet, *SHORT]
    assert run(*arguments).splitlines()[-1] == run(*arguments).splitlines()[-1]


def test_commands_of_the_shell(tmp_path: Path) -> None:
    """The console script and ``python -m`` are one command; both find rules in the current directory."""
    (tmp_path / "my_rules.py").write_text(
        "from lightning_byz.aggregators import Aggregator\n\n\nclass First(Aggregator):\n"
        "    def __call__(self, stack, *, generator=None):\n        return stack.vectors[0]\n"
    )
    arguments = ["fit", "--config", QUICKSTART, "--trainer.strategy.aggregator=my_rules.First", "--print_config"]
    module, function = re.search(
        r'^lightning-byz = "(.*):(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    ).groups()
    script = f"import sys; sys.path.remove(''); from {module} import {function}; {function}()"  # a console script has no '' on its path
    for command in ([sys.executable, "-m", "lightning_byz"], [sys.executable, "-c", script]):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
        assert strategy_of(done.stdout)["aggregator"]["class_path"] == "my_rules.First"


def test_own_command_line_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user's LightningCLI that never heard of this package takes the strategy by its class path."""
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    strategy = {
        "class_path": "lightning_byz.RobustStrategy",
        "init_args": {"f": 1, "workers": 4, "aggregator": "lightning_byz.aggregators.Krum"},
    }
    trainer = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 2,
        "limit_val_batches": 0,
        "enable_progress_bar": False,
        "logger": False,
    }
    given = {"seed_everything": 1, "trainer": trainer | {"strategy": strategy}}
    done = LightningCLI(BoringModel, BoringDataModule, args={"subcommand": "fit", "fit": given})
    assert done.trainer.global_step == 2
    assert done.trainer.strategy.report.census.arrival == [Arrival.ARRIVED] * 4
