"""Double momentum through the Trainer is what plain loops make of the same batches."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_byz import RobustStrategy

ROUNDS, SAMPLES = 6, 300
BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    pytest.importorskip("jsonargparse")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import mu2
    import mu2_loops

    return mu2, mu2_loops


@pytest.mark.parametrize("attack", ["SignFlip", "ALIE"])
@pytest.mark.parametrize("rule", ["CTMA(CoordinateMedian)", "CoordinateMedian"])
@pytest.mark.parametrize("method", ["mu2", "momentum"])
def test_trainer_and_loops_agree(
    study: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch, method: str, rule: str, attack: str
) -> None:
    mu2, loops = study
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(SAMPLES, 1, 28, 28, generator=draws, dtype=torch.float64)
    labels = torch.randint(10, (SAMPLES,), generator=draws)
    seen: list[Tensor] = []

    class Recorded(mu2.Classifier):
        def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
            seen.append(batch[2])
            return super().training_step(batch[:2], batch_idx)

    seed_everything(1, verbose=False)
    module = Recorded()
    start = nn.utils.parameters_to_vector(module.parameters()).detach().double()
    strategy = RobustStrategy(
        workers=17, f=8, aggregator=mu2.RULES[rule], attackers=range(9, 17), attack=mu2.ATTACKS[attack], seed=1,
        **mu2.METHODS[method],
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=1, strategy=strategy, precision="64-true", max_steps=ROUNDS, max_epochs=-1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = TensorDataset(images, labels, torch.arange(SAMPLES))
    trainer.fit(module, DataLoader(data, batch_size=4, shuffle=True))

    visible = seen if method == "momentum" else seen[1::2]  # a worker's hidden pass goes before its visible one
    rounds = [visible[first : first + 17] for first in range(0, len(visible), 17)]
    assert len(rounds) == ROUNDS
    setting = loops.Setting(sampling="dealt", passes="next", start="zero", ties="some", rounds=ROUNDS)
    run = loops.Run(
        loops.Data(images, labels, images[:1], labels[:1]),
        setting,
        {"SignFlip": "flip", "ALIE": "alie"}[attack],
        seed=1,
    )
    run.move(start)

    def stream() -> Iterator[Sequence[Tensor]]:
        return iter(rounds)

    monkeypatch.setattr(run, "stream", stream)
    for _ in getattr(loops, method)(run, "ctma" if rule.startswith("CTMA") else "median"):
        pass
    end = nn.utils.parameters_to_vector(module.parameters()).detach()
    assert float((end - start).norm()) > 0.01
    torch.testing.assert_close(end, run.point(), rtol=0, atol=1e-10)
    kept = torch.cat(
        [layer.get_buffer(name) for layer in module.layers for name, _ in layer.named_buffers() if "running" in name]
    )
    torch.testing.assert_close(kept, loops.median(run.own), rtol=0, atol=1e-10)


def script(name: str, attack: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), f"--attacks=[{attack}]", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_runs_are_kept_and_shown(tmp_path: Path) -> None:
    """Both scripts run on the digits; the table is of pairs, and what has run is not run again."""
    file, small = tmp_path / "runs.jsonl", ("ALIE", "--rules=[CoordinateMedian]", "--rounds=2", "--seeds=1")
    alone = script("mu2", *small, "--methods=[momentum]", f"--runs={file}")
    assert alone.startswith("ALIE CoordinateMedian momentum 1 ")
    assert "| `" not in alone
    first = script("mu2", *small, f"--runs={file}")
    assert first.startswith("ALIE CoordinateMedian mu2 1 ")
    again = script("mu2", *small, f"--runs={file}")
    assert again == first[first.index("\n") + 1 :]
    accuracies = [json.loads(line)["accuracy"] for line in file.read_text().splitlines()]
    single, double = (f"{accuracy:.1f} ± nan" for accuracy in accuracies)
    assert [double, "", single, ""] == [cell.strip() for cell in again.splitlines()[-2].split("|")[2:6]]


@pytest.mark.parametrize("sampling", ["rounds", "dealt", "replacement"])
def test_loops_run(tmp_path: Path, sampling: str) -> None:
    file = tmp_path / "runs.jsonl"
    options = ("flip", "--rules=[ctma]", "--seeds=[1]", "--setting.rounds=2", f"--setting.sampling={sampling}")
    assert len(script("mu2_restated", *options, f"--output={file}").splitlines()) == 2
    runs = [json.loads(line) for line in file.read_text().splitlines()]
    assert [run["optimizer"] for run in runs] == ["mu2", "momentum"]
    assert all(0 <= run["found"][kind]["2"] <= 100 for run in runs for kind in ("shared", "own", "exact"))
