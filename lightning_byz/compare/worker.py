"""A warm process that makes one run after another; ``python -m lightning_byz.compare.worker``.

A line of its input is a job, a line of its output what became of it. It ends, with all that it has started, when its input does: also when
whoever started it was killed. With a job as its argument it makes that run only, on as many ranks as the run wants.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from lightning_byz.compare.answer import FULL, answer
from lightning_byz.compare.fit import Job, perform
from lightning_byz.compare.isolation import printing_to
from lightning_byz.compare.records import full_disk


def serve() -> None:
    """Answer jobs until the input ends."""
    jobs: SimpleQueue[str] = SimpleQueue()
    answers, lines = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(0))
    with open(os.devnull) as nothing:  # a module that asks for input must not be given the jobs
        os.dup2(nothing.fileno(), 0)
    threading.Thread(target=_listen, args=(lines, jobs), daemon=True).start()
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


def _listen(lines: IO[str], jobs: "SimpleQueue[str]") -> None:
    for line in lines:
        jobs.put(line)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    if sys.argv[1:]:
        perform(Job(**json.loads(sys.argv[1])))
    else:
        serve()
