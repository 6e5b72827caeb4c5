"""Pools of ranks: who goes with whom, and that nobody stays behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from tests.ranks import ROOT, RankFailure, told

KILLED = """
import os, signal, threading
from tests.ranks import Nursery, RankPool
from tests.test_ranks import mine, sleep

nursery = Nursery()
pools = [RankPool(world, nursery) for world in (1, 2)]
told = [one for pool in pools for rank in pool.run(mine) for one in rank]
print(*told, nursery._process.pid, flush=True)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
pools[1].run(sleep, 90)
"""


def mine() -> tuple[int, int]:
    """A rank and its leader."""
    return os.getpid(), os.getppid()


def asked(name: str) -> str | None:
    return os.environ.get(name)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def fails() -> None:
    raise ValueError(f"rank {os.environ['RANK']}")


def runs(process: int) -> bool:
    """Whether a process does; what nobody has waited for is a zombie, and runs no more."""
    try:
        with open(f"/proc/{process}/stat") as told:
            return told.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(processes: Sequence[int], within: float = 20.0) -> bool:
    end = time.monotonic() + within
    while any(map(runs, processes)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(runs, processes))


def test_a_process_that_is_killed_leaves_nobody():
    done = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=ROOT, env=told(), stdout=subprocess.PIPE, text=True, timeout=100
    )
    assert done.returncode == -signal.SIGKILL
    processes = [int(one) for one in done.stdout.split()]
    assert len(processes) == 7
    assert gone(processes)


def test_ranks_stay_for_all_calls_and_have_a_session_of_their_own(ranks):
    first, second = (ranks(2).run(mine) for _ in range(2))
    assert first == second
    (one, leader), (other, same) = first
    assert leader == same
    assert len({one, other, leader, os.getpid()}) == 4
    assert os.getpgid(one) == os.getpgid(other) == os.getsid(leader) == leader


def test_a_pool_is_killed_whole_when_time_is_up_and_starts_again(ranks):
    before = [one for rank in ranks(2).run(mine) for one in rank]
    with pytest.raises(TimeoutError, match="sleep on 2 ranks gave no answer within 1 s"):
        ranks(2).run(sleep, 60, timeout=1)
    assert gone(before)
    assert not {one for rank in ranks(2).run(mine) for one in rank} & set(before)


def test_a_failure_tells_of_all_ranks_and_ends_the_pool(ranks):
    before = [one for rank in ranks(2).run(mine) for one in rank]
    with pytest.raises(RankFailure, match=r"rank 0:(.|\n)*ValueError: rank 0(.|\n)*rank 1:(.|\n)*ValueError: rank 1"):
        ranks(2).run(fails)
    assert gone(before)


def test_a_pool_has_the_environment_of_when_it_starts(ranks, monkeypatch):
    monkeypatch.setenv("GIVEN_TO_RANKS", "now")
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert ranks(3).run(asked, "GIVEN_TO_RANKS") == ["now"] * 3
    assert ranks(3).run(asked, "PL_GLOBAL_SEED") == [None] * 3
    assert ranks(3).run(asked, "RANK") == ["0", "1", "2"]
