"""Fixtures shared by the tests."""

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import pytest

# Test processes share the cores, and without this Lightning's launchers give torch all of them again.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.distributed as dist

from lightning_byz.kernels import paths
from tests.ranks import Nursery, RankPool

torch.set_num_threads(1)  # as on the ranks: bits are equal for equal numbers of threads


RANKS = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
"""What a launcher of ranks leaves behind: a process started with it would wait for ranks that nobody starts."""

KERNELS = pytest.mark.parametrize("kernels_path", ["torch", "compiled"], indirect=True, scope="module")
"""For files whose tests run on both paths of the kernels."""


@pytest.fixture(scope="module", autouse=True)
def kernels_path(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Have this process and the ranks that it starts take the kernels of a path, if one is named."""
    wanted = getattr(request, "param", None)
    if wanted is None:
        yield None
        return
    if wanted == "compiled" and find_spec("numba") is None:
        pytest.skip("numba is not installed (the extra fast), so that there are no compiled kernels")
    before, told = paths.own(), os.environ.get("LIGHTNING_BYZ_KERNELS")
    os.environ["LIGHTNING_BYZ_KERNELS"] = wanted
    paths.choose(wanted == "compiled")
    yield wanted
    os.environ.pop("LIGHTNING_BYZ_KERNELS")
    os.environ.update({} if told is None else {"LIGHTNING_BYZ_KERNELS": told})
    paths.choose(before)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where all pools of this process come from."""
    one = Nursery()
    yield one
    one.close()


@pytest.fixture(scope="module")
def ranks(kernels_path: str | None, nursery: Nursery) -> Iterator[Callable[[int], RankPool]]:
    """Return the pool of a world size; pools are reused by the tests of a file and killed after them."""
    pools: dict[int, RankPool] = {}
    yield lambda world: pools.setdefault(world, RankPool(world, nursery))
    for pool in pools.values():
        pool.kill()


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    """Take back what a fit in this process leaves behind: environment variables of ranks and seeds, and the process group."""
    for name in RANKS:  # a fixture of a whole file may have trained
        os.environ.pop(name, None)
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
