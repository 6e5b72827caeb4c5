"""The benchmark of the price: every rule has a line, refusals are shown, the reader of IDX files reads."""

import gzip
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_byz import aggregators, preaggregators

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def price(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import price

    return price


def lines_of(page: str) -> dict[str, dict[str, list[str]]]:
    sections = re.split(r"^## (.*)$", page, flags=re.MULTILINE)[1:]
    return {
        title: {
            cells[1].strip(" `"): [cell.strip() for cell in cells[2:-1]]
            for line in text.splitlines()
            if (cells := line.split("|"))[1:] and "`" in line
        }
        for title, text in zip(sections[::2], sections[1::2], strict=True)
    }


def test_every_exported_rule_is_measured(price):
    measured = {type(rule).__name__ for chain in price.chains() for rule in (*chain.preaggregators, chain.aggregator)}
    exported = [getattr(family, name) for family in (aggregators, preaggregators) for name in family.__all__]
    assert measured == {rule.__name__ for rule in exported if not inspect.isabstract(rule)}
    names = [chain.name for chain in price.chains()]
    assert names[0] == "Mean"
    assert len(set(names)) == len(names)
    assert {"CTMA(CoordinateMedian)", "CTMA(GeometricMedian)", "NNM -> CoordinateMedian"} <= set(names)


def test_a_small_run_prints_and_writes_every_cell(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "price.py"),
        "--seeds=2",
        "--steps=40",
        "--only=[Bulyan, Krum]",
        f"--output={tmp_path}/page.md",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.md").read_text()
    assert "python benchmarks/price.py --seeds=2 --steps=40 --only='[Bulyan, Krum]'\n" in page
    assert str(tmp_path) not in page
    tables = lines_of(page)
    assert list(tables) == ["IID", "Dirichlet(0.1)", "sizes 2, 3, 4", "Refusals"]
    for title in ("IID", "Dirichlet(0.1)", "sizes 2, 3, 4"):
        assert next(iter(tables[title])) == "Mean"
        assert set(tables[title]) == {"Mean", "Bulyan", "Krum"}
        losses = [
            -float(cells[1].split(" ±")[0]) for cells in list(tables[title].values())[1:] if "ref" not in cells[1]
        ]
        assert losses == sorted(losses)
        overall, worst = (float(cell.split(" ±")[0]) for cell in tables[title]["Mean"][:2])
        assert 60 < overall <= 100
        assert worst <= overall
        assert all(cell in done.stdout for line in tables[title].values() for cell in line)
    assert all(
        re.fullmatch(r"[+-]\d+\.\d ± \d+\.\d", cell)
        for title in ("IID", "Dirichlet(0.1)")
        for cell in tables[title]["Krum"]
    )
    assert tables["IID"]["Bulyan"][2:] == ["refuses f = 4"] * 2
    assert tables["sizes 2, 3, 4"]["Bulyan"] == ["refuses weights"] * 4
    assert list(tables["sizes 2, 3, 4"]) == ["Mean", "Krum", "Bulyan"], "who refuses comes last"
    assert re.search(
        r"^With f = 2, \d of 2 rules cost the worst-served worker less than 1 point: least `Bulyan`", page, re.MULTILINE
    )
    assert re.search(r"most `Krum` \(-\d+\.\d\); 1 refuse\.$", page, re.MULTILINE)
    assert "- `Bulyan`, IID, f = 4: Bulyan cannot tolerate f = 4" in page
    assert float(tables["Dirichlet(0.1)"]["Krum"][1].split(" ±")[0]) < -20, (
        "one worker's gradient does not serve the others"
    )


def test_mnists_files_are_read(price, tmp_path: Path) -> None:
    images, labels = np.arange(10 * 2 * 3, dtype=np.uint8).reshape(10, 2, 3), np.arange(10, dtype=np.uint8)
    for name, values in (("t10k-images-idx3-ubyte.gz", images), ("t10k-labels-idx1-ubyte.gz", labels)):
        header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
        (tmp_path / name).write_bytes(gzip.compress(header + values.tobytes()))
    train, test = price.read(tmp_path)
    assert [len(train), len(test)] == [8, 2]
    assert test.tensors[1].tolist() == [8, 9]
    assert (train.tensors[0][1] * 255).round().tolist() == list(range(6, 12))


def test_the_worst_worker_is_weighed_by_its_labels(price) -> None:
    """A network that always says 0 serves a worker without zeros not at all."""
    import torch
    from torch.utils.data import TensorDataset

    from lightning_byz.data import Sizes, SortedShards

    class Zero(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 12).float()

    data = TensorDataset(torch.zeros(120, 1), torch.arange(120) % 12)
    test = TensorDataset(torch.zeros(24, 1), torch.arange(24) % 12)
    assert price.accuracies(Zero(), data, test, SortedShards(), seed=0) == (pytest.approx(100 / 12), 0.0)
    uniform = price.accuracies(Zero(), data, test, Sizes([1] * 12), seed=0)
    assert 0 <= uniform[1] < uniform[0]
