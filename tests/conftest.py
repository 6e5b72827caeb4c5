"""Fixtures shared by the tests."""

import os
from collections.abc import Callable, Iterator

import pytest

# Test processes share the cores, and without this Lightning's launchers give torch all of them again.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist

from tests.ranks import RankPool

torch.set_num_threads(1)  # as on the ranks: bits are equal for equal numbers of threads


@pytest.fixture(scope="module")
def ranks() -> Iterator[Callable[[int], RankPool]]:
    """Return the pool of a world size; pools are reused by the tests of a file and killed after them."""
    pools: dict[int, RankPool] = {}
    yield lambda world: pools.setdefault(world, RankPool(world))
    for pool in pools.values():
        pool.kill()


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    """Take back what a fit in this process leaves behind: environment variables of ranks and seeds, and the process group."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
