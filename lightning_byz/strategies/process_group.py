"""The process group of a run: how long it waits for other ranks, and that its threads end before the process does."""

import atexit
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

from lightning_byz.inside_torch import wait_at_most


def patience(timeout: timedelta | None) -> timedelta:
    """Return how long ranks wait until all have taken a step: start-up loads, compiles and downloads, on each rank in its own time."""
    return max(timeout or default_pg_timeout, default_pg_timeout)


def be_patient(timeout: timedelta | None) -> None:
    """Wait for ranks that are late, also where a run before this one has settled."""
    if patience(timeout) != (timeout or default_pg_timeout):
        wait_at_most(patience(timeout))


def settle(timeout: timedelta | None) -> None:
    """Let ``timeout`` count from now on."""
    if patience(timeout) != (timeout or default_pg_timeout) and dist.is_initialized():
        wait_at_most(timeout or default_pg_timeout)


def close_at_exit() -> None:
    """Close the groups when the process ends, so that gloo's threads do not abort it; until then whoever comes after a run may use them."""
    leave_open()
    atexit.register(_close)


def leave_open() -> None:
    """Close nothing: after an error work may be under way that no rank will finish, and closing waits for it."""
    atexit.unregister(_close)


def _close() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
