"""Workers that are actors of Ray: they train, die, stop, lose their node, and end with the run."""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from lightning_byz.aggregators import CTMA, CoordinateMedian
from lightning_byz.attacks import ReverseGradient
from lightning_byz.demos import DigitsClassifier, DigitsData
from lightning_byz.estimators import WorkerMomentum
from lightning_byz.serving import Ray
from lightning_byz.strategies import AsyncRobustStrategy

ray = pytest.importorskip("ray", reason="needs the extra [ray]")
cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs the extra [ray]")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ROOT = Path(__file__).resolve().parent.parent
SMALL = {"object_store_memory": 100 * 2**20}
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
TOLD = "import os; os.environ.update(PYTHONPATH={root!r}, OMP_NUM_THREADS='1')\n"


@pytest.fixture(scope="module", autouse=True)
def told() -> Iterator[None]:
    """What the processes of Ray inherit."""
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "OMP_NUM_THREADS", "RAY_AUTH_MODE")}
    os.environ.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", RAY_AUTH_MODE="disabled")
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture
def local() -> Iterator[None]:
    """A Ray that the test has started itself."""
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, **SMALL)
    yield
    ray.shutdown()


class At(pl.Callback):
    """Does something after so many updates."""

    def __init__(self, *deeds) -> None:
        self.deeds = dict(deeds)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step in self.deeds:
            self.deeds[trainer.global_step](trainer.strategy)


def strategy(workers: int = 4, f: float = 1, **options) -> AsyncRobustStrategy:
    pace = {"deadline": 10.0, "engine": "ray", "seed": 1, "aggregator": CTMA(CoordinateMedian())}
    return AsyncRobustStrategy(workers=workers, f=f, **{**pace, **options})


def fit(used: AsyncRobustStrategy, updates: int, *callbacks: pl.Callback, ckpt_path: str | None = None) -> float:
    """Return the accuracy on digits."""
    pl.seed_everything(1, verbose=False)
    module, data = DigitsClassifier(learning_rate=0.1), DigitsData(batch_size=16)
    about = {"limit_val_batches": 0, "num_sanity_val_steps": 0, "max_epochs": -1, "callbacks": list(callbacks), **QUIET}
    trainer = pl.Trainer(accelerator="cpu", devices=1, strategy=used, max_steps=updates, **about)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    images, labels = data.validation.tensors
    return float((module(images).argmax(1) == labels).float().mean())


def living(pids) -> list[int]:
    found = []
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                found.append(pid)
    return found


def nobody(pids, seconds: float) -> float:
    """Return after how many seconds none of these processes is left."""
    began = time.monotonic()
    while living(pids) and time.monotonic() - began < seconds:
        time.sleep(0.02)
    assert not living(pids)
    return time.monotonic() - began


def when(used: AsyncRobustStrategy, worker: int, word: str) -> float:
    return next(moment for moment, event in used.served.service.events if event[:2] == (worker, word))


def test_a_fit_with_a_slow_and_a_lying_worker_and_its_resume(local, tmp_path) -> None:
    path = str(tmp_path / "half.ckpt")
    attack = {"attackers": [4], "attack": ReverseGradient(factor=10.0), "estimator": WorkerMomentum(beta=0.9)}
    pace = {"delays": [0.01, 0.01, 0.01, 0.1, 0.01], "engine": Ray(num_cpus=0.5)}
    used = strategy(5, **attack, **pace)
    keep = At((500, lambda used: used.lightning_module.trainer.save_checkpoint(path)))
    assert fit(used, 700, keep) > 0.9
    assert ray.is_initialized()  # who has started it ends it
    nobody(used.served.engine.pids.values(), 5.0)
    assert used.served.delivered[3] < used.served.delivered[0]
    memories = torch.load(path, weights_only=True)["lightning_byz"]["optimizers"][0]["memories"]
    assert sorted(memories) == [0, 1, 2, 3, 4]
    assert all(float(own["estimator"]["momentum"].abs().sum()) > 0 for own in memories.values())
    again = strategy(5, **attack, **pace)
    fit(again, 520, ckpt_path=path)
    assert all(again.served._remembered[one].adopted > memories[one]["adopted"]["count"] for one in (0, 1, 2))


def test_killed_and_stopped_workers(local) -> None:
    """Both keep the weight that they have earned; the one is started again, the other comes back."""
    moments = {}

    def kill(used: AsyncRobustStrategy) -> None:
        moments["killed"] = time.monotonic()
        os.kill(used.served.engine.pids[1], signal.SIGKILL)
        os.kill(used.served.engine.pids[2], signal.SIGSTOP)

    def resume(used: AsyncRobustStrategy) -> None:
        moments["away"] = used.served.service.away, used.served.delivered[2]
        os.kill(used.served.engine.pids[2], signal.SIGCONT)

    used = strategy(delays=[0.02] * 4, deadline=1.0, restarts=1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(used, 900, At((60, kill), (500, resume)))
    texts = " ".join(str(one.message) for one in said)
    assert "Worker 1 is gone: its process has ended" in texts
    assert "Worker 1 is started again, with an empty memory." in texts
    assert "Worker 2 has sent nothing for 1 s and is left out" in texts
    assert "Worker 2 is back." in texts
    assert when(used, 1, "ended") - moments["killed"] < 5.0
    assert 2 in moments["away"][0]
    assert used.served.delivered[2] > moments["away"][1] + 10
    assert [event.word for _, event in used.served.service.events if event.worker == 1].count("ready") == 2
    nobody(used.served.engine.pids.values(), 5.0)
