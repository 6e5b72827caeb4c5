"""Fixtures shared by the tests."""

from collections.abc import Callable, Iterator

import pytest

from tests.ranks import RankPool


@pytest.fixture(scope="module")
def ranks() -> Iterator[Callable[[int], RankPool]]:
    """Return the pool of a world size; pools are reused by the tests of a file and killed after them."""
    pools: dict[int, RankPool] = {}
    yield lambda world: pools.setdefault(world, RankPool(world))
    for pool in pools.values():
        pool.kill()
