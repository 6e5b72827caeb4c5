"""What the name "robust" stands for: the table that chooses it, and what the start-up line says of its cost."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import StrategyRegistry

import lightning_byz.strategies  # noqa: F401 - registers the name
from lightning_byz import Stack
from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian, GeometricMedian
from lightning_byz.exchange import Local
from lightning_byz.kernels import paths
from lightning_byz.preaggregators import NNM
from lightning_byz.rounds import Defence
from lightning_byz.rounds.start_up import start_up_line
from tests.test_price import lines_of

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def default_page(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import default_page

    return default_page


def test_a_small_run_prints_and_writes_every_cell(tmp_path: Path) -> None:
    arguments = ["--seeds=2", "--steps=10", "--only=[TrimmedMean]", f"--output={tmp_path}/page.md"]
    command = [sys.executable, str(ROOT / "benchmarks" / "default.py"), *arguments, "--processes=1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.md").read_text()
    assert "python benchmarks/default.py --seeds=2 --steps=10 --only='[TrimmedMean]'\n" in page
    assert str(tmp_path) not in page
    sections = lines_of(page)
    assert list(sections)[1:] == ["The largest f", "f = 2", "f = 2, worker momentum", "f = 1, nobody attacks"]
    for title, lines in sections.items():
        assert set(lines) == {"Mean", "TrimmedMean"}, title
        assert all(cell in done.stdout for cells in lines.values() for cell in cells) or title.startswith("Largest")
    assert sections["The largest f"]["TrimmedMean"][0] == "4"  # of the last table, where sizes are unequal
    assert sections["The largest f"]["Mean"][0] == "0"
    losses = [float(cells[-1].split(" ±")[0]) for cells in sections["f = 2"].values()]
    assert losses == sorted(losses)
    reversed_ = float(sections["f = 2"]["Mean"][5].split(" ±")[0])
    assert reversed_ < 40 < float(sections["f = 2"]["TrimmedMean"][1].split(" ±")[0])


def test_the_largest_loss_is_against_the_mean_without_attack_seed_by_seed(default_page) -> None:
    setting = default_page.Setting("here", 2, attacks=("no attack", "SignFlip"))
    accuracies = {
        ("Mean", "A", "no attack"): (90.0, 80.0),
        ("Mean", "A", "SignFlip"): (50.0, 40.0),
        ("Mean", "B", "no attack"): (70.0, 70.0),
        ("Mean", "B", "SignFlip"): (70.0, 70.0),
        ("Rule", "A", "no attack"): (88.0, 80.0),
        ("Rule", "A", "SignFlip"): (80.0, 76.0),
        ("Rule", "B", "no attack"): (69.0, 69.0),
        ("Rule", "B", "SignFlip"): (68.0, 68.0),
    }
    cells = {("here", *key): default_page.Cell(values) for key, values in accuracies.items()}
    order = default_page.ranked(cells, ["Mean", "Rule"], setting, ["A", "B"])
    assert list(order) == ["Rule", "Mean"]
    assert order["Rule"] == (pytest.approx(7.0), pytest.approx(3.0), "A, SignFlip")
    assert order["Mean"] == (pytest.approx(40.0), pytest.approx(0.0), "A, SignFlip")


def test_the_default_costs_little_without_attack_and_then_loses_least(default_page) -> None:
    """Neither the cheapest nor the most robust: the most robust of the cheap."""
    accuracies = {"Mean": (90.0, 10.0), "Dear": (84.0, 84.0), "Cheap": (89.0, 30.0), "Chosen": (86.0, 60.0)}
    cells = {
        ("The largest f", name, "A", attack): default_page.Cell((values[attack != "no attack"],))
        for name, values in accuracies.items()
        for attack in default_page.ATTACKS
    }
    words = default_page.choice(cells, list(accuracies), ["A"])
    assert "2 of 3 rules cost less than 5 points" in words
    assert "and the others 6.0 to 6.0" in words
    assert "`Chosen` (4.0 points) loses least in its worst cell. That cell is A, SignFlip, with 30.0 points." in words
    assert "By worst cells alone it would be `Dear`, with 6.0 points, of which 6.0 are lost" in words


def test_the_default_is_the_one_that_the_page_names() -> None:
    words = re.search(
        r"`([^`]*)` \([\d.]+ points\) loses least in its worst cell", (ROOT / "docs" / "default.md").read_text()
    )
    assert words
    strategy = StrategyRegistry.get("robust")
    assert [type(strategy.aggregator).__name__, strategy.f, strategy.preaggregators] == [words[1], "max", ()]


@pytest.mark.parametrize("workers", [1, 2])
def test_where_nobody_can_be_tolerated_the_default_is_the_mean(workers: int) -> None:
    rows = torch.randn(workers, 100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(GeometricMedian()(Stack(rows)), rows.mean(0))


def test_the_start_up_line_says_what_the_rules_cost() -> None:
    def said(defence: Defence) -> str:
        return start_up_line(defence, Local(), Local().place(defence.workers))

    path = 0 if paths.chosen() else 1
    own, mixing = GeometricMedian.copies, NNM.copies
    assert own is not None
    assert mixing is not None
    assert f" the rules take as long as {own[path]:.2g} copies of all messages;" in said(
        Defence(5, 2, GeometricMedian())
    )
    chain = Defence(5, 2, GeometricMedian(), (NNM(),))
    assert f" as long as {own[path] + mixing[path]:.2g} copies of all messages;" in said(chain)

    @dataclass(frozen=True)
    class Own(Aggregator):
        def __call__(self, stack, *, generator=None):
            return stack.vectors.mean(0)

    assert "copies" not in said(Defence(5, 0, Own()))
    assert "copies" not in said(Defence(5, 0, CTMA(Own())))
    assert "as long as 2.4 copies" in said(Defence(5, 1, CTMA(CoordinateMedian()))) or not paths.chosen()


def test_the_tables_of_the_rules_times_have_what_classes_say() -> None:
    page = (ROOT / "docs" / "costs.md").read_text()
    for rule in (CoordinateMedian, GeometricMedian):
        line = re.search(rf"^\| `{rule.__name__}` \| ([\d.]+) \| ([\d.]+) \|", page, re.MULTILINE)
        assert line
        assert tuple(map(float, line.groups())) == rule.copies
