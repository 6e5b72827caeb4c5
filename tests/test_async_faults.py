"""Runs of workers at their own pace that end as no run should: no process is left of them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import json, os, signal, sys, warnings
signal.signal(signal.SIGINT, signal.default_int_handler)  # as at a terminal: a shell has it ignored by what it runs in the background
import lightning.pytorch as pl
from lightning_byz.aggregators import CTMA, CoordinateMedian
from lightning_byz.demos import DigitsClassifier, DigitsData
from lightning_byz.strategies import AsyncRobustStrategy
warnings.simplefilter("ignore")

class Tell(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 20:
            print(json.dumps(list(trainer.strategy.served.engine.pids.values())), flush=True)

if __name__ == "__main__":
    used = AsyncRobustStrategy(workers=3, f=0, aggregator=CTMA(CoordinateMedian()), start_method=sys.argv[1], deadline=5, delays=[0.01, 0.01, 1.0])
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = pl.Trainer(accelerator="cpu", devices=1, strategy=used, max_epochs=1000, limit_val_batches=0, callbacks=[Tell()], **quiet)
    trainer.fit(DigitsClassifier(), datamodule=DigitsData(batch_size=16))
"""


@contextmanager
def running(path: Path, method: str, program: str = PROGRAM) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """A run in a process group of its own, which is killed whole, and the ids of its workers."""
    file = path / "program.py"
    file.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    run = subprocess.Popen(
        [sys.executable, str(file), method], start_new_session=True, cwd=path, env=environment, **pipes
    )
    try:
        yield run, json.loads(run.stdout.readline())
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        run.stdout.close()


def alive(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                found.append(pid)
    return found


def group(leader: int) -> list[int]:
    """All living processes of a process group."""
    members = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[2]) == leader and fields[0] != "Z":
                members.append(int(entry.name))
    return members


def nobody(leader: int, seconds: float) -> float:
    """Return after how many seconds nobody is left of a group."""
    began = time.monotonic()
    while group(leader) and time.monotonic() - began < seconds:
        time.sleep(0.02)
    assert not group(leader), group(leader)
    return time.monotonic() - began


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_end_with_a_killed_server(tmp_path, method) -> None:
    with running(tmp_path, method) as (run, pids):
        assert len(alive(pids)) == 3
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        assert nobody(run.pid, 5.0) < 5.0


def test_a_stopped_worker_ends_with_a_killed_server(tmp_path) -> None:
    with running(tmp_path, "fork") as (run, pids):
        os.kill(pids[0], signal.SIGSTOP)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        nobody(run.pid, 5.0)


def test_the_lifeline_alone_ends_a_worker(tmp_path) -> None:
    """Where the kernel does not tell of a parent's death."""
    program = (
        "import os, time, types\nfrom multiprocessing import Pipe\nimport lightning_byz.serving.lifeline as lifeline\n"
        "lifeline.sys = types.SimpleNamespace(platform='other')\nread, write = Pipe(duplex=False)\nparent, pid = os.getpid(), os.fork()\n"
        "if pid == 0:\n    lifeline.end_with_parent(read, write, parent)\nelse:\n    print([pid], flush=True)\ntime.sleep(60)\n"
    )
    with running(tmp_path, "", program) as (run, pids):
        assert alive(pids) == pids
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        nobody(run.pid, 5.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_everybody(tmp_path, number) -> None:
    """A terminal sends it to all processes of the group."""
    with running(tmp_path, "fork") as (run, _):
        if number == signal.SIGINT:
            os.killpg(run.pid, number)
        else:
            os.kill(run.pid, number)
        run.wait(30)
        nobody(run.pid, 5.0)
        assert (run.returncode != 0) == (number == signal.SIGINT)  # Lightning ends a run in order at the other
