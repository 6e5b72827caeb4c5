"""Warm processes that make one run after another; ``python -m lightning_byz.compare.worker``.

With a socket and the word ``fork`` as its arguments the process imports what runs need, and does nothing but fork: it has one thread and has computed
nothing, so that no lock is held and no computation half done in its children. A file that comes with a zero is the socket of a new worker, and the
answer its number; such a number is the question how that worker ended. With ``own`` it becomes the first worker itself.

A line that a worker reads is a job, a line that it writes what became of it. It ends, with all that it has started, when its socket does: also when
whoever started it was killed. With a job as its argument the process makes that run only, on as many ranks as the run wants.
"""

import gc
import importlib
import json
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import NoReturn

from lightning_byz.compare.answer import FULL, answer
from lightning_byz.compare.fit import Job, perform
from lightning_byz.compare.isolation import printing_to
from lightning_byz.compare.nursery import SIZE
from lightning_byz.compare.records import full_disk

KERNELS = "lightning_byz.kernels.compiled.tensors"


def raise_workers(orders: socket.socket, *, forks: bool) -> None:
    """Start workers, and tell how they ended, until the orders end."""
    with suppress(Exception):  # an extra; whoever runs kernels says what is wrong with it
        importlib.import_module(KERNELS)
    gc.freeze()  # collecting would write to memory that is shared
    while True:
        told, files, *_ = socket.recv_fds(orders, SIZE, 1)
        if not told:
            return
        if not files:
            orders.send(_number(_ended(int.from_bytes(told, "little"))))
            continue
        worker = os.fork() if forks else 0
        if worker == 0:
            if forks:
                os.setpgid(0, 0)
            else:
                orders.send(_number(os.getpid()))
            orders.close()
            serve(socket.socket(fileno=files[0]))
        os.close(files[0])
        with suppress(OSError):  # it has done so itself, or has ended
            os.setpgid(worker, worker)
        orders.send(_number(worker))


def serve(channel: socket.socket) -> NoReturn:
    """Answer jobs until they end."""
    jobs: SimpleQueue[str] = SimpleQueue()
    answers = channel.makefile("w")
    threading.Thread(target=_listen, args=(channel, jobs), daemon=True).start()
    while True:
        job = Job(**json.loads(jobs.get()))
        try:
            with printing_to(Path(job.output) / "logs" / f"{job.id}.txt"):
                told = answer(job)
        except OSError as error:
            if not full_disk(error):
                raise
            told = FULL
        print(json.dumps(told), file=answers, flush=True)


def _listen(channel: socket.socket, jobs: "SimpleQueue[str]") -> None:
    for line in channel.makefile():
        jobs.put(line)
    os.killpg(0, signal.SIGKILL)


def _ended(worker: int) -> int:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    except ChildProcessError:  # told before
        return -signal.SIGKILL


def _number(value: int) -> bytes:
    return value.to_bytes(SIZE, "little", signed=True)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        perform(Job(**json.loads(sys.argv[1])))
    else:
        raise_workers(socket.socket(fileno=int(sys.argv[1])), forks=sys.argv[2] == "fork")
