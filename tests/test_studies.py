"""The grids of configs/studies/ are grids, and the scripts that read their results say what these hold."""

import csv
import re
import sys
from pathlib import Path

import pytest
import torch

from lightning_byz.compare.cells import Cells
from lightning_byz.compare.command import check_paths, settings
from lightning_byz.compare.grid import read_grid
from lightning_byz.compare.yaml_file import GridMistake
from lightning_byz.demos import AsynchronousMnistClassifier, MnistClassifier, MnistData

from .test_benchmarks import ROOT, rows_of, run

STUDIES = ROOT / "configs" / "studies"
GRIDS = sorted(path.stem for path in STUDIES.glob("*.yaml") if "grid:" in path.read_text())
COUNTS = {
    "async": 216,
    "async_momenta": 36,
    "async_rules": 160,
    "async_third": 36,
    "async_weights": 60,
    "codes": 144,
    "compression": 189,
    "ctma": 108,
    "ctma_nightly": 2310,
    "window": 54,
}


def test_there_is_a_count_for_each_grid() -> None:
    assert list(COUNTS) == GRIDS


@pytest.mark.parametrize("name", GRIDS)
def test_every_value_of_a_study_is_understood(name: str) -> None:
    text = (STUDIES / f"{name}.yaml").read_text()
    cells = Cells(read_grid(STUDIES / f"{name}.yaml"))
    check_paths(cells)
    assert cells.count == COUNTS[name]
    assert f"{cells.count:,} fits" in text or name == "ctma"
    assert f"configs/studies/{name}.yaml" in text


def test_bucketing_gets_no_more_attackers_than_it_tolerates() -> None:
    grid = read_grid(STUDIES / "ctma_nightly.yaml")
    rules = grid.axes[0].variants
    assert sum("Bucketing" in name for name in rules) == 2
    for name, values in rules.items():
        few = "f = 4" in name
        assert (values.get("trainer.strategy.f", 8), len(values.get("trainer.strategy.attackers", range(8)))) == (
            (4, 4) if few else (8, 8)
        )
        assert ("Bucketing" in name) == (values.get("trainer.strategy.preaggregators") == ["Bucketing"])


def test_set_goes_over_the_grid() -> None:
    grid = read_grid(STUDIES / "window.yaml", settings(["trainer.max_epochs=1", "data.batch_size=8"]))
    assert (grid.set["trainer.max_epochs"], grid.set["data.batch_size"]) == (1, 8)
    assert grid.set["trainer.callbacks"] == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("trainer.max_epochs", "--set trainer.max_epochs: give a dotted path"),
        ("=5", "--set =5: give a dotted path"),
        ("data.folder=[", r"'\[' is no value"),
        ("model.learning_rate=1", "axis learning_rate and set both set model.learning_rate"),
    ],
)
def test_set_is_refused(given: str, said: str) -> None:
    with pytest.raises(GridMistake, match=said):
        read_grid(STUDIES / "window.yaml", settings([given]))


def test_the_demo_has_the_authors_network_and_splits_in_the_order_of_the_file(tmp_path: Path) -> None:
    networks = (MnistClassifier(), AsynchronousMnistClassifier())
    assert [sum(one.numel() for one in module.layers.parameters()) for module in networks] == [29_034, 66_230]
    assert networks[1](torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    data = MnistData()
    data.setup("fit")
    assert (len(data.train), len(data.validation)) == (1437, 360)
    assert data.train.tensors[0].shape[1:] == (1, 28, 28)
    with pytest.raises(FileNotFoundError, match=r"has 0 files \*images-idx3-ubyte.gz"):
        MnistData(str(tmp_path)).setup("fit")


def test_mnist_is_read(tmp_path: Path) -> None:
    import gzip

    pixels = bytes(range(10)) * 784  # ten images
    (tmp_path / "t-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (10, 28, 28)) + pixels)
    )
    (tmp_path / "t-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(b"\0\0\x08\x01" + (10).to_bytes(4, "big") + bytes(range(10)))
    )
    data = MnistData(str(tmp_path))
    data.setup("fit")
    assert data.train.tensors[1].tolist() == list(range(8))
    assert data.validation.tensors[1].tolist() == [8, 9]
    assert torch.allclose(data.train.tensors[0][0, 0, 0, 5], torch.tensor((5 / 255 - 0.1307) / 0.3081))


def results(folder: Path, header: list[str], lines: list[list[object]]) -> Path:
    path = folder / "results.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([[*header, "seed", "purpose", "stage", "val_accuracy"], *lines])
    return path


def test_window(tmp_path: Path) -> None:
    """The last evaluation counts; a gap ends the window; runs that tune and failures do not count."""
    lines = [["mu2", rate, 1, "compare", "fit", one / 100] for rate, one in
             [(0.1, 5), (0.1, 91), (0.3, 92), (1.0, 92.5), (3.0, 50), (10.0, 92)]]  # fmt: skip
    lines += [["SGD", rate, 1, "compare", "fit", one / 100] for rate, one in
              [(0.1, 80), (0.3, 85), (1.0, 70), (3.0, 10), (10.0, 10)]]  # fmt: skip
    lines += [["SGD", 0.1, 1, "tune", "fit", 0.99], ["SGD", 0.1, 1, "compare", "failed", ""]]
    path = results(tmp_path, ["method", "learning_rate"], lines)
    pytest.importorskip("matplotlib")
    done = run("window", str(path), "--figure", str(tmp_path / "bars.svg"), folder=tmp_path)
    assert "| `mu2` | 0.1 - 1 | >= 10 | 1 | 92.5 | >= 10 |" in done.stdout, done.stderr
    assert "| `SGD` | 0.3 - 0.3 | 1 | 0.3 | 85.0 | 1 |" in done.stdout
    assert "learning rate" in (tmp_path / "bars.svg").read_text()


def test_study(tmp_path: Path) -> None:
    """Means, and differences taken seed by seed where both have run."""
    lines = [
        [rule, "ALIE", method, seed, "compare", "fit", one / 100]
        for rule, method, seed, one in [
            ("median", "mu2", 1, 80), ("median", "mu2", 2, 90), ("median", "momentum", 1, 70), ("median + CTMA", "mu2", 2, 95),
        ]
    ]  # fmt: skip
    done = run("study", str(results(tmp_path, ["rule", "attack", "method"], lines)), folder=tmp_path)
    assert "| `median` | 85.0 ± 5.0 | 70.0 ± nan |" in done.stdout, done.stderr
    assert "| `median + CTMA - (median)` | +5.0 ± nan | - |" in done.stdout
    assert "| `median` | +10.0 ± nan |" in done.stdout


def test_added(tmp_path: Path) -> None:
    small = ("--workers=[5]", "--coordinates=300", "--rounds=3")
    rows = {name: cells for name, *cells in rows_of("added", *small, folder=tmp_path)}
    assert list(rows) == ["5, median", "5, median + CTMA", "5, NNM + median"]
    assert rows["5, median"][2] == "1.00"


def test_convex(tmp_path: Path) -> None:
    """With the corrected momentum the loss falls under attack; by as much as it should."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import convex
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    losses = [convex.run("mu2", convex.ATTACKS["ALIE"], length, 1, rate=1.0, noise=1.0) for length in (20, 320)]
    assert losses[1] < losses[0] / 2 < convex.excess(torch.zeros(convex.DIMENSION, dtype=torch.float64)) / 2
    assert convex.slope({10: [1.0, 2.0], 1000: [0.01, 0.02]}).startswith("-1.000 ± ")


def test_convex_prints_a_line_for_each(tmp_path: Path) -> None:
    done = run("convex", "--lengths=[8, 16]", "--seeds=2", "--methods=[mu2]", "--attacks=[ALIE]", folder=tmp_path)
    assert re.search(r"\n\| `mu2, ALIE` \| [\d.]+ \| [\d.]+ \| -?[\d.]+ ± [\d.]+ \|", done.stdout), done.stderr
