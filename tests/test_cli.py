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

from lightning_byz import attacks, cli
from lightning_byz.attacks import Attack
from lightning_byz.census import Arrival
from lightning_byz.kinds import names_of
from lightning_byz.mistakes import COMMANDS, explain

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.name != "compare.yaml")
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
S = "--trainer.strategy"
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
    text = Path(QUICKSTART).read_text().replace("f: 2\n", f"f: 2\n      weights: {given}\n")
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


@pytest.mark.parametrize(
    ("given", "gamma"),
    [
        ("Anytime", None),
        ("{class_path: Anytime, init_args: {gamma: 0.1}}", 0.1),
        ("{class_path: Anytime, init_args: {gamma: released}}", "'released'"),
    ],
)
def test_averaging_in_the_file(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, given: str, gamma: object
) -> None:
    text = Path(QUICKSTART).read_text().replace("f: 2\n", f"f: 2\n      anytime: {given}\n")
    (tmp_path / "averaged.yaml").write_text(text)
    (tmp_path / "printed.yaml").write_text(run("fit", "--config", "averaged.yaml", "--print_config", status=0))
    for config in ("averaged.yaml", "printed.yaml"):
        caplog.clear()
        run("fit", "--config", config, *SHORT)
        assert f"-> Anytime(gamma={gamma}, alpha=None);" in caplog.text


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
    assert "bucket_cap_mb" not in printed  # nothing of DDPStrategy that would be ignored


def rows_of(section: str) -> list[list[str]]:
    """Return the cells of a table of docs/mistakes.md, without their backquotes."""
    text = (ROOT / "docs" / "mistakes.md").read_text().split(f"## {section}")[1].split("##")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    return [[*("" if cell == "(nothing)" else cell.strip("`") for cell in cells), said] for *cells, said in rows]


@pytest.fixture
def answer(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in a directory with the quickstart's config and half a checkpoint; return the sentence it ends with."""
    (tmp_path / "configs").mkdir()
    for name in ("quickstart.yaml", "compare.yaml"):
        (tmp_path / "configs" / name).write_text((ROOT / "configs" / name).read_text())
    (tmp_path / "configs" / "plain.yaml").write_text("model: DigitsClassifier\ndata: DigitsData\n")
    torch.save({"state_dict": {"weight": torch.zeros(1000)}}, tmp_path / "half.ckpt")
    os.truncate(tmp_path / "half.ckpt", 1000)

    def answer(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        code = stopped.value.code
        said = code if isinstance(code, str) else capfd.readouterr().err
        assert said.startswith("error: ")
        assert isinstance(code, str) or code == 2
        assert "Traceback" not in said
        return said.removeprefix("error: ").strip().replace(f"{tmp_path}{os.sep}", "")

    return answer


@pytest.mark.parametrize(("option", "sentence"), rows_of("Options"))
def test_mistaken_options_get_the_sentence_of_the_docs(answer: Run, option: str, sentence: str) -> None:
    short = [] if "trainr" in option or "max_epoch" in option else [*SHORT, "--trainer.logger=false"]
    assert answer("fit", "--config", "configs/quickstart.yaml", *short, option) == sentence


@pytest.mark.parametrize(("arguments", "sentence"), rows_of("Commands"))
def test_mistaken_commands_get_the_sentence_of_the_docs(answer: Run, arguments: str, sentence: str) -> None:
    assert answer(*arguments.split()) == sentence


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_checkpoint_that_is_damaged_or_not_there(
    answer: Run, tmp_path: Path, command: str
) -> None:
    arguments, path = [command, "--config", "configs/quickstart.yaml"], tmp_path / "flipped.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(1000)}}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    damaged = "is damaged in state_dict['weight']: its bytes are not those that were saved. Resume from another one."
    assert answer(*arguments, "--ckpt_path=flipped.ckpt") == f"The checkpoint flipped.ckpt {damaged}"
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "resumes.yaml").write_text(f"{Path(QUICKSTART).read_text()}\nckpt_path: empty.ckpt\n")
    assert answer(command, "--config=resumes.yaml") == "The checkpoint empty.ckpt is empty: resume from another one."
    assert answer(*arguments, f"--ckpt_path={tmp_path}/no.ckpt") == "ckpt_path=no.ckpt: there is no such file."


def test_what_lightning_looks_up_itself_is_left_to_it(tmp_path: Path) -> None:
    for path in (None, "best", "last", "hpc", "registry", "registry:mine:version:2", "s3://bucket/a.ckpt", tmp_path):
        cli.refuse_missing_or_damaged(path)


@pytest.mark.parametrize(("right", "wrong", "sentence"), rows_of("Files"))
def test_mistakes_in_the_file_get_the_sentence_of_the_docs(
    answer: Run, tmp_path: Path, right: str, wrong: str, sentence: str
) -> None:
    text = Path(QUICKSTART).read_text()
    assert right in text
    (tmp_path / "wrong.yaml").write_text(text.replace(right, wrong.replace("⇥", "\t").replace("↵", "\n      "), 1))
    assert answer("fit", "--config", "wrong.yaml") == sentence


@pytest.mark.parametrize(("right", "wrong", "sentence"), rows_of("Grids"))
def test_mistakes_in_a_grid_get_the_sentence_of_the_docs(
    answer: Run, tmp_path: Path, right: str, wrong: str, sentence: str
) -> None:
    path = tmp_path / "configs" / "compare.yaml"
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong, 1))
    assert answer("compare", "--config", "configs/compare.yaml") == sentence
    assert not (tmp_path / "runs").exists()


def test_no_answer_is_a_wall_of_text() -> None:
    for section in ("Options", "Commands", "Files", "Grids"):
        for *_, sentence in rows_of(section):
            assert len(sentence) < 250
            assert not re.search(r"Parser key|subtypes|Namespace|<class|\n", sentence)


def test_what_a_suggestion_is_drawn_from() -> None:
    """Of its own family, never of another one, and never the word that was given."""
    given = 'Parser key "model":\n  Expected a dot import path string: {}'
    assert (
        explain(given.format("DigitClassifier"))
        == "there is no class 'DigitClassifier': did you mean DigitsClassifier?"
    )
    attack = "Problem with given class_path 'lightning_byz.RobustStrategy':\n  Parser key \"attack\":\n    "
    assert "did you mean" not in explain(f"{attack}Expected a dot import path string: Krum")
    assert "Krum" not in explain(f"{attack}Expected a dot import path string: MultiKrm").split("of this package")[1]
    assert names_of([Attack]) == sorted(set(attacks.__all__) - {"Attack", "Sight"})


def test_what_nobody_foresaw_is_kept_on_one_line() -> None:
    assert explain("something\n  else") == "something else"
    assert explain('Parser key "timeout":\n  Not of type timedelta: 3') == "timeout: Not of type timedelta: 3"


def test_help_offers_what_can_be_used(run: Run) -> None:
    printed = run("fit", "--help", status=0)
    assert "lightning_byz.RobustStrategy" in printed
    assert "WorkerStrategy" not in printed


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # ModelCheckpoint's, under each new version of the log
@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_checkpoint_is_evaluated(run: Run, tmp_path: Path, command: str) -> None:
    run("fit", "--config", QUICKSTART, *SHORT, "--trainer.logger.version=fitted")
    checkpoint = next((tmp_path / "runs" / "quickstart" / "fitted" / "checkpoints").glob("*.ckpt"))
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.logger.version=used"]
    printed = run(command, "--config", QUICKSTART, "--ckpt_path", str(checkpoint), *quiet)
    if command != "predict":
        assert {"validate": "val_accuracy", "test": "test_accuracy"}[command] in printed
        return
    assert "predictions: 360 rows in 23 batches, saved to runs/quickstart/used/predictions.pt" in printed
    saved = torch.load(tmp_path / "runs" / "quickstart" / "used" / "predictions.pt", weights_only=True)
    assert sum(map(len, saved)) == 360


WRITER = """
from lightning.pytorch.callbacks import BasePredictionWriter


class Writer(BasePredictionWriter):
    def __init__(self):
        super().__init__("epoch")

    def write_on_epoch_end(self, *given):
        pass
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trainer.callbacks=[writer.Writer]"], "predictions: left to Writer"),
        (["--return_predictions=false"], "predictions: none;"),
        (["--trainer.limit_predict_batches=1"], "predictions: 32 rows in 1 batch, saved to "),
    ],
)
def test_predict_says_what_it_made(run: Run, tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "writer.py").write_text(WRITER)
    quiet = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    printed = run("predict", "--model=DigitsClassifier", "--data=DigitsData", *quiet, *arguments)
    assert said in printed
    assert bool(list(tmp_path.glob("*.pt"))) == ("saved" in said)


def test_a_fit_without_a_logger_leaves_no_config(run: Run, tmp_path: Path) -> None:
    run("fit", "--config", QUICKSTART, *SHORT, "--trainer.logger=false", "--trainer.enable_checkpointing=false")
    assert not list(tmp_path.iterdir())


def test_an_attack_that_nobody_makes_is_pointed_out(run: Run) -> None:
    with pytest.warns(UserWarning, match=r"attack=ReverseGradient\(factor=10.0\) is never used, as nobody attacks"):
        printed = run("fit", "--config", QUICKSTART, *SHORT, "--trainer.strategy.attackers=[]")
    assert "(attacks)" not in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--trainer.strategy.attackers=[6, 6]"], "attackers=[6, 6]"),
        (["--trainer.strategy.weights=[1, 1, 1]"], "3 numbers for 8 workers"),
        (
            [f"{S}.attackers=[]", f"{S}.attack=null", f"{S}.weights=[1, 1, 1, 1, 1, 1, 1, 9]"],
            "the heaviest, of [0, 7], have 10 of the weight 16",
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
        ([f"{S}.attackers=[]", f"{S}.attack=null", "--model=faulty.Faulty"], ["2", "5"]),
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
