"""Workers that are children of the server, on its machine."""

import os
from collections.abc import Mapping
from multiprocessing import current_process, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from lightning_byz.serving.engine import Engine, Seat
from lightning_byz.serving.job import Job
from lightning_byz.serving.lifeline import end_with_parent
from lightning_byz.serving.worker import work


class Processes(Engine):
    """One process per worker, which ends with the server however that ends.

    Args:
        jobs: What each worker computes.
        method: How processes start, as in :mod:`multiprocessing`.
        threads: torch's threads in each.

    """

    def __init__(self, jobs: Mapping[int, Job], *, method: str, threads: int) -> None:
        self.workers = len(jobs)
        self._jobs = jobs
        self._context: Any = get_context(method)
        self._forks = method == "fork"
        self._threads = threads
        self._processes: dict[int, BaseProcess] = {}
        self._read, self._write = self._context.Pipe(duplex=False)

    @property
    def pids(self) -> dict[int, int]:
        """The ids of the processes, by worker."""
        return {worker: process.pid for worker, process in self._processes.items() if process.pid is not None}

    def start(self, seat: Seat) -> None:
        """Start a worker; what is left of it has ended before."""
        if seat.worker in self._processes:
            self._processes[seat.worker].join()
        write = self._write if self._forks else None
        given = (self._jobs[seat.worker], seat if self._forks else Seat(*seat[:-1], ()), self._read, write)
        process = self._context.Process(
            target=_begin, args=(*given, os.getpid(), self._threads), name=f"worker {seat.worker}", daemon=True
        )
        process.start()
        self._processes[seat.worker] = process

    def ended(self) -> Mapping[int, str]:
        """Return the workers whose processes have ended, with how."""
        codes = {worker: process.exitcode for worker, process in self._processes.items()}
        return {worker: _how(code) for worker, code in codes.items() if code is not None}

    def close(self) -> None:
        """Kill all workers, stopped ones too."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.join()
        self._read.close()
        self._write.close()


def _begin(job: Job, seat: Seat, read: Connection, write: Connection | None, parent: int, threads: int) -> None:
    """Be a worker."""
    current_process().daemon = False  # its loader may have processes of its own
    end_with_parent(read, write, parent)
    for descriptor in seat.held:
        os.close(descriptor)
    torch.set_num_threads(threads)
    code = 1
    try:
        code = work(job, seat)
    finally:
        os._exit(code)  # what the server has registered for its own end is none of a worker's business


def _how(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"has ended with code {code}"
