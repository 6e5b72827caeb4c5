"""The examples run, and show what they say they show."""

import re
import runpy
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
