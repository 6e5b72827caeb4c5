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


class _Pools:
    """Threads that run torch's operations alone: for each number of threads as many, made when they are first needed."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Threads do not survive a fork, and a lock may have been held."""
        self._lock, self._pools = threading.Lock(), dict[int, ThreadPoolExecutor]()

    def of(self, count: int) -> ThreadPoolExecutor:
        """``count`` threads."""
        with self._lock:
            if count not in self._pools:
                # in a thread of its own, which knows the process's number of threads: the caller may have another
                with ThreadPoolExecutor(1) as maker:
                    self._pools[count] = maker.submit(_pool, count).result()
            return self._pools[count]


def _pool(count: int) -> ThreadPoolExecutor:
    usual, threads = torch.get_num_threads(), ThreadPoolExecutor(count, "lightning-byz", _alone)
    together = threading.Barrier(count)  # or the first thread would do it all, and others begin later
    wait([threads.submit(together.wait) for _ in range(count)])
    torch.set_num_threads(usual)  # of threads to come, which each of these has set to 1
    return threads


def _alone() -> None:
    torch.get_num_threads()  # makes this thread take over the process's number, once and for all
    torch.set_num_threads(1)


_POOLS = _Pools()
os.register_at_fork(after_in_child=_POOLS.forget)


def spread(work: Callable[[int, int], object], length: int, grain: int, *, alone: bool = False) -> None:
    """Call ``work(low, high)`` for runs that make up ``length``, on as many threads as torch uses; each starts at a multiple of ``grain``.

    What ``work`` computes must not depend on where its run ends, and runs must not write to the same place. The first of its errors is raised, after
    the last run has ended.

    Args:
        work: Called under the caller's modes of inference and of gradients.
        length: How much there is to do.
        grain: How much is worth a thread: work of fewer than two grains is done at once, by one call.
        alone: Whether torch's operations must run on one thread even then, since on several their bits would be others.
    """
    threads, grains = torch.get_num_threads(), -(-length // grain)
    if threads == 1 or (grains < 2 and not alone):
        work(0, length)
        return
    count = min(_RUNS * threads, max(grains, 1))
    ends = [min(run * grains // count * grain, length) for run in range(count + 1)]
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def run(low: int, high: int) -> None:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            work(low, high)

    try:
        pool = _POOLS.of(threads)
        runs = [pool.submit(run, low, high) for low, high in pairwise(ends)]
    except RuntimeError:  # the interpreter is about to end, and starts no threads any more
        work(0, length)
        return
    wait(runs)
    for done in runs:
        done.result()
