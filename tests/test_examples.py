"""The examples and the benchmark run, and show what they say they show."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def losses(printed: str) -> tuple[float, float]:
    before, after = re.search(r"loss before ([\d.]+), after ([\d.]+|nan|inf)", printed).groups()
    return float(before), float(after)


def test_every_example_is_tested_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"unchanged_module"}


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


def test_benchmark_of_the_step(tmp_path: Path) -> None:
    """A small run of the benchmark prints a row and a ratio for DDP and each rule, and leaves no process behind."""
    rules = "[Mean, {class_path: CTMA, init_args: {base: CoordinateMedian}}, own_average.OwnAverage]"
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "step.py"),
        "--ranks=2",
        "--pairs=1",
        "--steps=1",
        "--timeout=120",
        f"--aggregators={rules}",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    rows = {
        cells[1].strip(): cells[2:]
        for cells in (line.split("│") for line in done.stdout.splitlines())
        if len(cells) > 5
    }
    assert list(rows) == ["DDPStrategy", "Mean()", "CTMA(base=CoordinateMedian())", "OwnAverage"]
    assert float(rows["DDPStrategy"][1]) == 1.0
    assert all(0.1 < float(cells[1]) < 100 and float(cells[3]) > 100 for cells in rows.values())


def test_benchmark_ends_with_its_time(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "step.py"), "--ranks=2", "--pairs=50", "--timeout=0.5"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "--timeout=0.5" in done.stderr
