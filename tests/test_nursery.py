"""Where the workers of ``lightning-byz compare`` come from, and what is known of them when they or it are gone."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_byz.compare.nursery import Nursery
from tests.test_compare import children


@pytest.fixture(scope="module")
def forking() -> Iterator[Nursery]:
    nursery = Nursery(1, forks=True)
    yield nursery
    nursery.close()


def nursery_of(worker: int) -> int:
    return int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])


def test_it_has_one_thread_when_it_forks(forking: Nursery) -> None:
    """So that no lock is held, and no computation half done, in its children."""
    worker, channel = forking.worker()
    assert len(os.listdir(f"/proc/{nursery_of(worker)}/task")) == 1
    assert os.getpgid(worker) == worker
    channel.close()
    assert forking.ended(worker) == -signal.SIGKILL  # a worker ends itself, and its group, with its socket


def test_each_worker_ends_for_itself_and_is_told_apart(forking: Nursery) -> None:
    (first, one), (second, two) = forking.worker(), forking.worker()
    os.kill(first, signal.SIGTERM)
    assert forking.ended(first) == -signal.SIGTERM
    assert forking.ended(first) == -signal.SIGKILL  # nobody can tell any more
    assert second in children(nursery_of(second))
    one.close()
    two.close()
    assert forking.ended(second) == -signal.SIGKILL


def test_another_takes_its_place_when_it_is_killed(forking: Nursery) -> None:
    worker, channel = forking.worker()
    os.kill(before := nursery_of(worker), signal.SIGKILL)
    again, other = forking.worker()
    assert nursery_of(again) != before
    channel.close()  # the first worker ends, and nobody asks how
    other.close()
    assert forking.ended(again) == -signal.SIGKILL


def test_without_forks_it_becomes_the_worker() -> None:
    nursery = Nursery(1, forks=False)
    worker, channel = nursery.worker()
    assert nursery_of(worker) == os.getpid()
    channel.close()
    assert nursery.ended(worker) == -signal.SIGKILL
    nursery.close()
    with pytest.raises(ConnectionError):
        nursery.worker()


def test_nothing_asks_for_an_accelerator_before_the_fork() -> None:
    """A CUDA driver that has been spoken to is of no use in a child."""
    code = (
        "import importlib, torch\n"
        "def asked(*_): raise SystemExit('asked')\n"
        "for name in ('is_available', 'device_count', 'current_device', '_lazy_init', 'init'): setattr(torch.cuda, name, asked)\n"
        "worker = importlib.import_module('lightning_byz.compare.worker')\n"
        "importlib.import_module(worker.KERNELS)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
