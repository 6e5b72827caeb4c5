"""Runs in warm processes, several at a time."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from queue import SimpleQueue

from lightning_byz.compare.answer import FULL, WORKER, answer
from lightning_byz.compare.fit import Job


class FullDisk(Exception):
    """There is no room for what a run has left."""


class _Process:
    """A worker in a process group of its own, started when it is first needed, and again if it has died."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._running: subprocess.Popen[str] | None = None

    def answer(self, job: Job) -> str:
        """Make a run there; return what the worker says of it, or how it died."""
        running = self._started()
        assert running.stdin is not None
        assert running.stdout is not None
        line = ""
        with suppress(BrokenPipeError):
            running.stdin.write(json.dumps(job.told()) + "\n")
            running.stdin.flush()
            line = running.stdout.readline()
        if line:
            return json.loads(line)
        status = running.wait()
        return (
            f"the process died of {signal.Signals(-status).name}"
            if status < 0
            else f"the process ended with status {status}"
        )

    def kill(self) -> None:
        """End it, and what it has started."""
        if self._running is not None and self._running.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._running.pid, signal.SIGKILL)
            self._running.wait()

    def _started(self) -> "subprocess.Popen[str]":
        if self._running is None or self._running.poll() is not None:
            self._running = subprocess.Popen(
                [sys.executable, "-m", WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": str(self._threads)},
            )
        return self._running


class Processes:
    """Makes runs, in as many processes as asked; they stay warm from one call to the next.

    Args:
        count: How many; 0 for this process.
        threads: Of torch, in each.
    """

    def __init__(self, count: int, threads: int) -> None:
        self._all = [_Process(threads) for _ in range(count)]
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        for one in self._all:
            self._idle.put(one)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._all:
            one.kill()

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
