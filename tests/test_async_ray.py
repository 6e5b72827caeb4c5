"""Workers that are actors of Ray: they train, die, stop, lose their node, and end with the run."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lightning_byz.aggregators import CTMA, CoordinateMedian
from lightning_byz.attacks import ReverseGradient
from lightning_byz.demos import DigitsClassifier, DigitsData
from lightning_byz.estimators import WorkerMomentum
from lightning_byz.serving import Ray
from lightning_byz.strategies import AsyncRobustStrategy

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra [ray]"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ROOT = Path(__file__).resolve().parent.parent
QUICK = {"initial_delay": 0, "period": 500, "timeout": 500, "failure_threshold": 2}
CHECKS = {f"health_check_{name}{'' if name == 'failure_threshold' else '_ms'}": value for name, value in QUICK.items()}
SMALL = {"object_store_memory": 100 * 2**20}
OWN = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token_hex(32)}
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
PROGRAM = """
import json, sys, warnings
import lightning.pytorch as pl
from lightning_byz.aggregators import Mean
from lightning_byz.demos import DigitsClassifier, DigitsData
from lightning_byz.strategies import AsyncRobustStrategy
warnings.simplefilter("ignore")

class Tell(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 20:
            print(json.dumps(list(trainer.strategy.served.engine.pids.values())), flush=True)

used = AsyncRobustStrategy(workers=2, f=0, aggregator=Mean(), engine="ray", deadline=5, delays=[0.01, 1.0])
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer = pl.Trainer(accelerator="cpu", devices=1, strategy=used, max_epochs=1000, limit_val_batches=0, callbacks=[Tell()], **quiet)
trainer.fit(DigitsClassifier(), datamodule=DigitsData(batch_size=16))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of one node, which the tests have started themselves."""
    before = {name: os.environ.get(name) for name in OWN}
    os.environ.update(OWN)  # what Ray reads when it is imported, and its processes inherit
    ray, cluster_utils = import_module("ray"), import_module("ray.cluster_utils")
    started = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 4, "_system_config": CHECKS, **SMALL}
    )
    try:
        ray.init(address=started.address, log_to_driver=False)
        yield started
    finally:
        ray.shutdown()
        started.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


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


def when(used: AsyncRobustStrategy, worker: int, *words: str) -> float:
    events = used.served.service.events
    return next(moment for moment, event in events if event.worker == worker and event.word in words)


def test_a_fit_with_a_slow_and_a_lying_worker_and_its_resume(cluster, tmp_path) -> None:
    path = str(tmp_path / "half.ckpt")
    attack = {"attackers": [3], "attack": ReverseGradient(factor=10.0), "estimator": WorkerMomentum(beta=0.9)}
    pace = {"delays": [0.01, 0.01, 0.1, 0.01], "engine": Ray(num_cpus=0.5)}
    used = strategy(4, **attack, **pace)
    keep = At((200, lambda used: used.lightning_module.trainer.save_checkpoint(path)))
    assert fit(used, 250, keep) > 0.5  # 0.1 is chance, and the mean of the same messages
    assert import_module("ray").is_initialized()  # who has started it ends it
    nobody(used.served.engine.pids.values(), 5.0)
    assert used.served.delivered[2] < used.served.delivered[0]
    memories = torch.load(path, weights_only=True)["lightning_byz"]["optimizers"][0]["memories"]
    assert sorted(memories) == [0, 1, 2, 3]
    assert all(float(own["estimator"]["momentum"].abs().sum()) > 0 for own in memories.values())
    again = strategy(4, **attack, **pace)
    fit(again, 230, ckpt_path=path)
    assert all(again.served._remembered[one].adopted > memories[one]["adopted"]["count"] for one in (0, 1))


def test_killed_stopped_and_lost_workers(cluster) -> None:
    """All keep the weight that they have earned; who has died is started again, who was stopped comes back, and training goes on."""
    moments: dict[str, Any] = {}
    node = cluster.add_node(num_cpus=2, **SMALL)
    cluster.wait_for_nodes()
    used = strategy(delays=[0.02] * 4, deadline=1.0, restarts=1, f=0)

    def stop(used: AsyncRobustStrategy) -> None:
        pids, raylet = dict(used.served.engine.pids), node.all_processes["raylet"][0].process.pid
        moments["there"] = [one for one, pid in pids.items() if parent(pid) == raylet]
        moments["killed"], moments["stopped"] = (one for one in pids if one not in moments["there"])
        moments["kill"] = time.monotonic()
        os.kill(pids[moments["killed"]], signal.SIGKILL)
        os.kill(pids[moments["stopped"]], signal.SIGSTOP)

    def lose(used: AsyncRobustStrategy) -> None:
        moments["away"], moments["had"] = used.served.service.away, dict(used.served.delivered)
        os.kill(used.served.engine.pids[moments["stopped"]], signal.SIGCONT)
        moments["loss"] = time.monotonic()
        cluster.remove_node(node, allow_graceful=False)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert fit(used, 650, At((60, stop), (200, lose))) > 0.9
    texts = " ".join(str(one.message) for one in said)
    killed, stopped, there = moments["killed"], moments["stopped"], moments["there"]
    assert len(there) == 2
    assert f"Worker {killed} is gone: its process has ended" in texts
    assert f"Worker {killed} is started again, with an empty memory." in texts
    assert f"Worker {stopped} has sent nothing for 1 s and is left out" in texts
    assert f"Worker {stopped} is back." in texts
    assert when(used, killed, "ended") - moments["kill"] < 5.0
    assert stopped in moments["away"]
    assert used.served.delivered[stopped] > moments["had"][stopped] + 10
    for worker in there:
        assert when(used, worker, "unreachable", "ended") - moments["loss"] < 5.0
        assert f"Worker {worker} is gone: its process has ended with its node." in texts
    for worker in (killed, *there):
        assert [event.word for _, event in used.served.service.events if event.worker == worker].count("ready") == 2
    nobody(used.served.engine.pids.values(), 5.0)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def below(pid: int) -> list[int]:
    """All processes that a process has started, and those that they have."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            parents[int(entry.name)] = parent(int(entry.name))
    found = [pid]
    for one in found:
        found += [child for child, its in parents.items() if its == one]
    return found[1:]


def test_nobody_is_left_of_a_killed_run(tmp_path) -> None:
    """Neither the actors nor the Ray that the run has started, but for two agents of Ray's, which look for it for a minute."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    environment = {**os.environ, **OWN}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    run = subprocess.Popen([sys.executable, str(file)], start_new_session=True, cwd=tmp_path, env=environment, **pipes)
    all_of_them: list[int] = []
    try:
        pids = json.loads(run.stdout.readline())
        all_of_them = below(run.pid)
        assert set(pids) <= set(all_of_them)
        agents = [
            pid
            for pid in all_of_them
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::") and pid not in pids
        ]
        os.kill(run.pid, signal.SIGKILL)
        run.wait(30)
        assert nobody(pids, 5.0) < 5.0
        nobody([pid for pid in all_of_them if pid not in agents], 5.0)
    finally:
        for pid in living([*all_of_them, run.pid]):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run.wait()
        run.stdout.close()
