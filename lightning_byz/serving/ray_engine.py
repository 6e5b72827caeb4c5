"""Workers that are actors of Ray, on one machine or on the nodes of a cluster."""

import math
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from threading import current_thread, main_thread
from typing import Any, ClassVar

from lightning_byz.serving.common import Common
from lightning_byz.serving.engine import Engine, Seat
from lightning_byz.serving.job import Job
from lightning_byz.serving.line import Line
from lightning_byz.serving.ray_actor import Actor
from lightning_byz.serving.ray_line import RayLine

MISSING = "engine='ray' starts workers with Ray, which is not installed: pip install 'lightning-byz[ray]'."
STORE = 256 * 2**20
"""Bytes of the object store of a Ray of the run's own, at least."""


@dataclass(frozen=True)
class Ray:
    """Workers are actors of Ray.

    Args:
        address: Of a running cluster, as ``ray.init`` takes it, such as ``"auto"``; ``None`` for one of the run's own, on this machine. Where
            the script has called ``ray.init`` itself, that is used.
        num_cpus: What each worker asks for.
        num_gpus: Likewise.
        resources: Further resources that each worker asks for, by name.
        spread: Whether workers go to as many nodes as there are, or to as few as hold them.

    Example:
        >>> Ray(num_cpus=0.5, resources={"hospital": 1})
        Ray(address=None, num_cpus=0.5, num_gpus=0.0, resources={'hospital': 1}, spread=True)

    """

    address: str | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    spread: bool = True

    def __post_init__(self) -> None:
        """Refuse what Ray cannot do."""
        named = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, **self.resources}
        for name, amount in named.items():
            number = isinstance(amount, int | float) and not isinstance(amount, bool) and math.isfinite(amount)
            if not number or amount < 0:
                raise ValueError(f"{name}={amount!r}: give how much of it each worker asks for, a number of 0 or more.")
        if self.address is not None and self.address.startswith("ray://"):
            raise ValueError(
                f"address={self.address!r} is of Ray's client, which is outside the cluster: run the script on a node of it, with address='auto'."
            )


def refuse_without_ray() -> None:
    """Refuse a run where Ray is not installed.

    Raises:
        ModuleNotFoundError: Saying what to install.

    """
    if find_spec("ray") is None:
        raise ModuleNotFoundError(MISSING)


class RayEngine(Engine):
    """One actor per worker, which ends with the server however that ends.

    Args:
        jobs: What each worker computes.
        options: Where they run.
        threads: torch's threads in each.

    """

    knocks: ClassVar[bool] = False

    def __init__(self, jobs: Mapping[int, Job], options: Ray, *, threads: int) -> None:
        refuse_without_ray()
        self.workers = len(jobs)
        self.pids: dict[int, int] = {}
        """The ids of the actors' processes, each on its node."""
        self._jobs = jobs
        self._options = options
        self._threads = threads
        self._ray: Any = None
        self._own = False
        self._shared: Any = None
        self._actors: dict[int, Any] = {}
        self._lines: list[RayLine] = []
        self._ended: dict[int, str] = {}

    def start(self, seat: Seat) -> None:
        """Start a worker, wherever its resources are free."""
        if self._ray is None:
            self._ray = self._connected(seat)
            self._shared = self._ray.put(self._jobs)
        about = self._options
        asked = {"num_cpus": about.num_cpus, "num_gpus": about.num_gpus, "resources": dict(about.resources)}
        placed = {"scheduling_strategy": "SPREAD" if about.spread else "DEFAULT"}
        fixed = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": 1}
        actor = self._ray.remote(Actor).options(**asked, **placed, **fixed)
        self._actors[seat.worker] = actor.remote(self._threads)
        self._ended.pop(seat.worker, None)

    def line(self, seat: Seat, common: Common) -> Line:
        """Return the server's end of a worker that has been started."""
        actor, worker = self._actors.pop(seat.worker), seat.worker
        told: Any = {
            "known": lambda pid: self.pids.__setitem__(worker, pid),
            "ended": lambda how: self._ended.__setitem__(worker, how),
        }
        self._lines.append(RayLine(self._ray, actor, self._shared, seat, common, **told))
        return self._lines[-1]

    def ended(self) -> Mapping[int, str]:
        """Return the workers whose actors have ended, with how."""
        return dict(self._ended)

    def close(self) -> None:
        """Kill all actors, and Ray where it is the run's own."""
        for line in self._lines:
            line.end()
        for line in self._lines:
            line.close()
        self._shared = None
        if self._own and self._ray is not None:
            self._ray.shutdown()

    def _connected(self, seat: Seat) -> Any:
        """Return Ray, after one that runs was found, or one was started."""
        ray: Any = import_module("ray")
        if not ray.is_initialized():
            self._own, before = True, signal.getsignal(signal.SIGTERM)
            ray.init(**self._found(seat), log_to_driver=False, logging_level="WARNING")
            if current_thread() is main_thread():
                signal.signal(signal.SIGTERM, before)  # which Ray has taken
        return ray

    def _found(self, seat: Seat) -> dict[str, Any]:
        """Return where Ray is, or how large one of the run's own is."""
        about = self._options
        if about.address is not None:
            return {"address": about.address}
        total = {name: amount * self.workers for name, amount in about.resources.items()}
        cpus = max(math.ceil(about.num_cpus * self.workers), os.cpu_count() or 1)
        store = max(STORE, 4 * self.workers * seat.sizes.vector)
        known = {"num_cpus": cpus, "resources": total, "object_store_memory": store}
        return {"address": "local", "include_dashboard": False, **known}
