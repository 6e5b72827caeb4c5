"""Runs in warm processes, several at a time."""

import json
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from queue import SimpleQueue
from typing import TextIO

from lightning_byz.compare.answer import FULL, answer
from lightning_byz.compare.fit import Job
from lightning_byz.compare.nursery import FORKS, Nursery


class FullDisk(Exception):
    """There is no room for what a run has left."""


class _Process:
    """A worker in a process group of its own, started when it is first needed, and again if it has died."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery, self._over = nursery, False
        self._running: tuple[int, socket.socket, TextIO] | None = None

    def answer(self, job: Job) -> str:
        """Make a run there; return what the worker says of it, or how it died."""
        if self._running is None:
            worker, channel = self._nursery.worker()
            self._running = worker, channel, channel.makefile()
        if self._over:  # between the last two lines
            self.kill()
        worker, channel, answers = self._running
        line = ""
        with suppress(ConnectionError):
            channel.sendall(f"{json.dumps(job.told())}\n".encode())
            line = answers.readline()
        if line:
            return json.loads(line)
        status = self._ended(worker, channel)
        return (
            f"the process died of {signal.Signals(-status).name}"
            if status < 0
            else f"the process ended with status {status}"
        )

    def kill(self) -> None:
        """End it for good, and what it has started."""
        self._over = True
        if (running := self._running) is not None:
            with suppress(ProcessLookupError):
                os.killpg(running[0], signal.SIGKILL)

    def gone(self) -> None:
        """Wait until it has ended."""
        if (running := self._running) is not None:
            self._ended(*running[:2])

    def _ended(self, worker: int, channel: socket.socket) -> int:
        status, self._running = self._nursery.ended(worker), None
        channel.close()
        return status


class Processes:
    """Makes runs, in as many processes as asked; they stay warm from one call to the next, and import what they need once.

    Args:
        count: How many; 0 for this process.
        threads: Of torch, in each.
    """

    def __init__(self, count: int, threads: int) -> None:
        self._nurseries = [Nursery(threads) for _ in range(min(count, 1) if FORKS else count)]
        self._all = [_Process(self._nurseries[place % len(self._nurseries)]) for place in range(count)]
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        for one in self._all:
            self._idle.put(one)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._all:
            one.kill()
        for one in self._all:
            one.gone()
        for nursery in self._nurseries:
            nursery.close()

    def warm(self) -> None:
        """Have the processes import what they need meanwhile."""
        for nursery in self._nurseries:
            nursery.warm()

    def finish(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, str]]:
        """Yield each job when it is done, and "" where its record is kept, else why there is none.

        Raises:
            FullDisk: If there is no room for a record. Runs under way are ended; those kept are whole.
        """
        yield from self._elsewhere(jobs) if self._all else _here(jobs)

    def _elsewhere(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, str]]:
        with ThreadPoolExecutor(len(self._all)) as threads:
            futures: dict[Future[str], Job] = {threads.submit(self._one, job): job for job in jobs}
            try:
                for future in as_completed(futures):
                    told = future.result()
                    if told == FULL:
                        raise FullDisk
                    yield futures[future], told
            finally:
                for future in futures:
                    future.cancel()
                if not all(future.done() for future in futures):
                    self.__exit__()

    def _one(self, job: Job) -> str:
        process = self._idle.get()
        try:
            return process.answer(job)
        finally:
            self._idle.put(process)


def _here(jobs: Sequence[Job]) -> Iterator[tuple[Job, str]]:
    for job in jobs:
        if (said := answer(job)) == FULL:
            raise FullDisk
        yield job, said
