"""The README and docs/own.md tell the truth: their commands exist, their code runs, their numbers are those of the quickstart."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from lightning_byz import (
    aggregators,
    attacks,
    cli,
    codes,
    compressors,
    data,
    estimators,
    exchange,
    links,
    preaggregators,
)

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
OWN = (ROOT / "docs" / "own.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README + OWN, re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.strip().splitlines()]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
INSTALL = "python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e "


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty directory with the configs and the README's own file of rules."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for text in PYTHON:
        if name := re.match(r"# (\w+\.py)\n", text):
            (tmp_path / name[1]).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-byz"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_ci_runs_the_command_for_tests() -> None:
    command = next(command for command in COMMANDS if "pytest" in command)
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == command
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_installing_and_running_is_one_command() -> None:
    first = COMMANDS[0]
    assert first.startswith(INSTALL)
    assert first.endswith("&& lightning-byz fit --config configs/quickstart.yaml")
    project = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"\.\[(\w+)\]", " ".join(COMMANDS)):
        assert f"\n{extra} = [" in project


@pytest.mark.parametrize(
    "command",
    [part.strip() for line in COMMANDS for part in line.split("&&") if re.search("lightning-byz (?!compare)", part)],
)
def test_commands_parse(home: Path, capfd: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*shlex.split(command)[1:], "--print_config"])
    assert stopped.value.code == 0
    printed = yaml.safe_load(capfd.readouterr().out)
    strategy = printed["trainer"]["strategy"]["init_args"]
    if "my_rules" in command:
        assert strategy["aggregator"]["class_path"] == "my_rules.NearHalf"
        assert strategy["attack"]["class_path"] == "my_rules.Shout"


def test_the_grid_is_read(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``compare`` prints no configuration; it gets as far as seeing that a folder holds another grid's runs."""
    command = next(command for command in COMMANDS if "lightning-byz compare" in command)
    (home / "taken" / "records").mkdir(parents=True)
    (home / "taken" / "records" / "0123456789.json").write_text("{}")
    with pytest.raises(SystemExit) as stopped:
        cli.main([*shlex.split(command)[1:], "--output=taken"])
    assert stopped.value.code == 2
    assert "axes and seeds may only grow" in capsys.readouterr().err


def test_scripts_and_files_exist() -> None:
    for script in re.findall(r"python ([\w/]+\.py)", README + OWN):
        assert (ROOT / script).is_file()
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists()
    assert set(re.findall(r"configs/\w+\.yaml", README)) == {
        f"configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")
    }


@pytest.mark.parametrize(
    "code", [text for text in PYTHON if not text.startswith("# ")], ids=lambda text: text.split("\n")[0]
)
@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
def test_code_runs(home: Path, capsys: pytest.CaptureFixture[str], code: str) -> None:
    """Each block runs as it stands, and prints what the comment at its ``print`` says."""
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    for promised in re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE):
        assert promised in printed
    assert "Trainer" not in code or "Workers over" in printed


def test_own_rule_and_attack_train(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = next(command for command in COMMANDS if "my_rules" in command)
    quick = ["--trainer.max_epochs=3", "--trainer.enable_progress_bar=false"]
    cli.main([*shlex.split(command)[1:], *quick])
    printed = capsys.readouterr().out
    assert "Workers over 36 steps" in printed
    assert float(re.search(r"val_accuracy ([\d.]+)", printed)[1]) > 0.5


def test_names_are_the_packages_names() -> None:
    """The table lists every rule there is, and nothing else."""
    table = {
        cells[1].strip(): cells[2]
        for cells in (line.split("|") for line in README.splitlines() if line.startswith("| "))
        if len(cells) == 4
    }
    families = {
        "aggregators": aggregators,
        "pre-aggregators": preaggregators,
        "estimators": estimators,
        "attacks": attacks,
        "partitions": data,
        "exchanges": exchange,
        "links": links,
        "compressors": compressors,
        "codes": codes,
    }
    interfaces = {
        "Aggregator",
        "CoordinateRule",
        "RowAverage",
        "PreAggregator",
        "Estimator",
        "Attack",
        "Sight",
        "Partition",
        "Exchange",
        "Delivered",
        "Placement",
        "Wire",
        "Link",
        "Received",
        "Downlink",
        "Compressor",
        "Coordinates",
        "Entries",
        "Dense",
        "Packed",
        "Sparse",
        "Code",
        "LinearCode",
        "Interleaved",
        "Polynomials",
    }
    for family, package in families.items():
        assert set(re.findall(r"`(\w+)", table[family])) == set(package.__all__) - interfaces


@pytest.mark.filterwarnings("ignore:Mean tolerates no Byzantine worker", "ignore:The dirpath has changed")
@pytest.mark.timeout(400)
def test_quickstart_ends_as_printed(
    home: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The robust run ends within a point of the README's accuracy and of the run without attackers; the mean does not.

    What it says at its start is what the README shows, up to what depends on the machine; what was fitted predicts.
    """
    caplog.set_level("INFO")
    nobody = "--trainer.strategy.attackers=[] --trainer.strategy.attack=null"
    assert f"(`{nobody}`)" in README
    (started,) = re.findall(r"^(lightning_byz: 8 workers .*); \d+ torch thread", README, re.MULTILINE)
    quickstart = README[: README.index("## Your own module")]
    promised = [float(value) for value in re.findall(r"^last epoch:.*val_accuracy ([\d.]+)", quickstart, re.MULTILINE)]
    commands = [command.split("&&")[-1] for command in COMMANDS if "lightning-byz fit" in command][:2]
    ends = []
    for command in [
        commands[0],
        commands[1] + " --trainer.max_epochs=5",
        f"{commands[0]} {nobody}",
    ]:
        cli.main([*shlex.split(command)[1:], "--trainer.enable_progress_bar=false"])
        ends.append(float(re.search(r"val_accuracy ([\d.]+)", capsys.readouterr().out)[1]))
        assert command != commands[0] or started in caplog.text
    robust, mean, honest = ends
    assert robust == pytest.approx(promised[0], abs=0.01)
    assert robust == pytest.approx(honest, abs=0.01)
    assert mean == pytest.approx(promised[1], abs=0.05)
    assert mean < robust - 0.5
    for command in [line for line in COMMANDS if "--ckpt_path" in line]:
        cli.main([*shlex.split(command)[1:], "--trainer.enable_progress_bar=false"])
    (promise,) = re.findall(r"`(predictions: .*), saved to [^`]+`", README)
    assert promise in capsys.readouterr().out


def test_double_momentum_ends_as_printed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = next(command for command in COMMANDS if "mu2.yaml" in command)
    after = README[README.index(command) :]
    promised = float(re.search(r"^last epoch:.*val_accuracy ([\d.]+)", after, re.MULTILINE)[1])
    cli.main([*shlex.split(command)[1:], "--trainer.enable_progress_bar=false"])
    accuracy = float(re.search(r"val_accuracy ([\d.]+)", capsys.readouterr().out)[1])
    assert accuracy == pytest.approx(promised, abs=0.02)


def test_weights_and_f_as_printed(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Unequal shards: the start-up line says what any two workers weigh."""
    caplog.set_level("INFO")
    command = next(command for command in COMMANDS if "max_share" in command)
    cli.main([*shlex.split(command)[1:], "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"])
    assert re.search(r"It prints `(weights [^`]+)`", README)[1] in caplog.text
