"""Work on many coordinates shared among threads: one run of coordinates after another to whoever is free, and nobody waits for anybody in between.

A region of OpenMP ends when the last of its threads does. Where another process wants a core, each region waits for it, and kernels made of thousands
of short regions become a hundred times slower; a thread here waits once, at the end.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise

import torch

_RUNS = 4  # per thread: who is interrupted leaves the rest to the others


class _Pool:
    """Threads that run torch's operations alone, made when they are first needed, as many as torch may use."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Threads do not survive a fork, and a lock may have been held."""
        self._lock, self._count, self._threads = threading.Lock(), 0, None

    def of(self, count: int) -> ThreadPoolExecutor:
        """``count`` threads."""
        with self._lock:
            if self._threads is None or self._count != count:
                if self._threads is not None:
                    self._threads.shutdown(wait=False)
                self._count, self._threads = count, ThreadPoolExecutor(count, "lightning-byz", _alone)
                together = threading.Barrier(count)  # or the first thread would do it all, and others begin later
                wait([self._threads.submit(together.wait) for _ in range(count)])
                torch.set_num_threads(count)  # which each new thread has set to 1 for the threads to come, too
            return self._threads


def _alone() -> None:
    torch.get_num_threads()  # makes this thread take over the process's number, once and for all
    torch.set_num_threads(1)


_POOL = _Pool()
os.register_at_fork(after_in_child=_POOL.forget)


def spread(work: Callable[[int, int], object], length: int, grain: int) -> None:
    """Call ``work(low, high)`` for runs that make up ``length``, on as many threads as torch uses; each starts at a multiple of ``grain``.

    Short work is done at once, by one call. What ``work`` computes must not depend on where its run ends, and runs must not write to the same place.
    """
    threads, grains = torch.get_num_threads(), -(-length // grain)
    if threads == 1 or grains < 2:
        work(0, length)
        return
    count = min(_RUNS * threads, grains)
    ends = [min(run * grains // count * grain, length) for run in range(count + 1)]
    inference = torch.is_inference_mode_enabled()

    def run(low: int, high: int) -> None:
        with torch.inference_mode(inference):
            work(low, high)

    runs = [_POOL.of(threads).submit(run, low, high) for low, high in pairwise(ends)]
    wait(runs)
    for done in runs:
        done.result()
