"""The examples run, and show what they say they show."""

import contextlib
import io
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def losses(printed: str) -> tuple[float, float]:
    before, after = re.search(r"loss before ([\d.]+), after ([\d.]+|nan|inf)", printed).groups()
    return float(before), float(after)


def test_every_example_is_tested_here() -> None:
    files = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.py")}
    assert files == {
        "arrivals_loop.py",
        "fabric_loop.py",
        "forecasting.py",
        "own_cli/train.py",
        "plain_loop.py",
        "sites.py",
        "torchrun_loop.py",
        "transformers_classifier.py",
        "unchanged_module.py",
    }


@pytest.mark.filterwarnings("ignore:Mean tolerates no Byzantine worker")
def test_unchanged_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(EXAMPLES / "unchanged_module.py"))
    example["main"]()
    before, after = losses(capsys.readouterr().out)
    assert after < before / 4
    from lightning_byz.aggregators import Mean

    example["main"](aggregator=Mean())
    before, after = losses(capsys.readouterr().out)
    assert not after < 2 * before  # the attacker has won


EXTRA = "{} is not installed: pip install 'lightning-byz[modules]'"
OTHERS_WARNINGS = pytest.mark.filterwarnings("default")  # what other people's modules warn of is theirs


def before_and_after(name: str, capsys: pytest.CaptureFixture[str], **arguments) -> tuple[float, float]:
    """Run an example's main, and return the two numbers that it prints."""
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](**arguments)
    before, after = re.search(r"before ([\d.]+), after ([\d.]+|nan|inf)", capsys.readouterr().out).groups()
    return float(before), float(after)


@OTHERS_WARNINGS
def test_transformers_classifier(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    pytest.importorskip("transformers", reason=EXTRA.format("transformers"))
    from lightning_byz.aggregators import Mean

    monkeypatch.chdir(tmp_path)
    before, after = before_and_after("transformers_classifier", capsys)
    assert before < 0.4
    assert after > 0.9
    assert before_and_after("transformers_classifier", capsys, aggregator=Mean())[1] < 0.5


@OTHERS_WARNINGS
def test_forecasting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    pytest.importorskip("pytorch_forecasting", reason=EXTRA.format("pytorch-forecasting"))
    from lightning_byz.aggregators import Mean

    monkeypatch.chdir(tmp_path)
    before, after = before_and_after("forecasting", capsys)
    assert after < before / 3
    before, after = before_and_after("forecasting", capsys, aggregator=Mean(), epochs=1)
    assert not after < before


def own_cli(*arguments: str) -> list[float]:
    """Run the user's script as a user does, and return the error after each epoch."""
    command = [sys.executable, "train.py", "fit", "--config", "config.yaml", *arguments]
    done = subprocess.run(command, cwd=EXAMPLES / "own_cli", capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [float(error) for error in re.findall(r"^error (\S+)", done.stdout, flags=re.MULTILINE)]


def test_own_cli() -> None:
    assert "lightning_byz" not in (EXAMPLES / "own_cli" / "train.py").read_text().replace(
        "lightning_byz.aggregators.Mean", ""
    )
    robust = own_cli()
    assert len(robust) == 4
    assert robust[-1] < 0.1
    assert not own_cli("--trainer.strategy.aggregator=lightning_byz.aggregators.Mean")[-1] < 1
    assert own_cli("--trainer.strategy=ddp")[-1] < 0.1


def on_ranks(name: str, arguments: dict) -> str:
    """Run an example's main on every rank, and return what it prints there."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](**arguments)
    return printed.getvalue()


def accuracies(printed: str) -> dict[str, float]:
    found = re.findall(r"(\d)( \(attacks\))? [^\d]+ (\d+) [^\d]+ (\d\.\d{4}) ", printed)
    return {site + attacks: float(value) for site, attacks, _, value in found}


def test_sites(ranks) -> None:
    from lightning_byz.aggregators import Mean

    for liar in (0, 4):
        printed, *others = ranks(5).run(on_ranks, "sites", {"liar": liar})
        served = accuracies(printed)
        assert "".join(others) == "", "rank 0 prints the table"
        assert sorted(served) == [f"{site}{' (attacks)' * (site == liar)}" for site in range(5)]
        assert list(served.values()) == sorted(served.values()), "the worst served first"
        assert min(served.values()) > 0.9
    lost = accuracies(ranks(5).run(on_ranks, "sites", {"aggregator": Mean()})[0])
    assert len(lost) == 5
    assert max(lost.values()) < 0.4


def accuracy_of(printed: str) -> float:
    return float(re.search(r"accuracy (\d\.\d{3})", printed)[1])


@pytest.mark.filterwarnings("ignore:Mean tolerates no Byzantine worker")
def test_plain_loop(capsys: pytest.CaptureFixture[str]) -> None:
    from lightning_byz import TooManyFaults
    from lightning_byz.aggregators import Mean

    example = runpy.run_path(str(EXAMPLES / "plain_loop.py"))
    example["main"]()
    assert accuracy_of(capsys.readouterr().out) > 0.93
    with pytest.raises(TooManyFaults, match="values that are not finite"):
        example["main"](aggregator=Mean())  # the attackers have won


def launched(*command: str) -> str:
    """Run an example as a user does, and return what it prints."""
    done = subprocess.run(
        [sys.executable, *command], cwd=EXAMPLES, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torchrun_loop() -> None:
    alone = launched("torchrun_loop.py")
    assert accuracy_of(alone) > 0.85
    assert launched("-m", "torch.distributed.run", "--nproc-per-node=2", "torchrun_loop.py") == alone


@pytest.mark.filterwarnings("ignore:Mean tolerates no Byzantine worker")
def test_arrivals_loop(capsys: pytest.CaptureFixture[str]) -> None:
    from lightning_byz.aggregators import Mean

    alone = launched("arrivals_loop.py")
    assert accuracy_of(alone) > 0.8
    assert launched("-m", "torch.distributed.run", "--nproc-per-node=2", "arrivals_loop.py") == alone
    runpy.run_path(str(EXAMPLES / "arrivals_loop.py"))["main"](aggregator=Mean())
    assert accuracy_of(capsys.readouterr().out) < 0.6  # the attackers have the better of it


def test_fabric_loop() -> None:
    accuracies = [accuracy_of(launched("fabric_loop.py", f"--devices={devices}")) for devices in (1, 2)]
    assert accuracies[0] == accuracies[1] > 0.93
