"""The examples run, and show what they say they show."""

import contextlib
import io
import re
import runpy
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def losses(printed: str) -> tuple[float, float]:
    before, after = re.search(r"loss before ([\d.]+), after ([\d.]+|nan|inf)", printed).groups()
    return float(before), float(after)


def test_every_example_is_tested_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"sites", "unchanged_module"}


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
