"""A warm process that makes one run after another; ``python -m lightning_byz.compare.worker``.

A line of its input is a job, a line of its output what became of it. It ends, with all that it has started, when its input does: also when
whoever started it was killed. With a job as its argument it makes that run only, on as many ranks as the run wants.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from lightning_byz.compare.fit import Job, SeveralRanks, perform
from lightning_byz.compare.isolation import printing_to
from lightning_byz.compare.records import full_disk


def answer(job: Job) -> str:
    """Make a run; return "" once it is kept, or why nothing can be kept."""
    try:
        try:
            perform(job)
        except SeveralRanks:
            told = json.dumps(replace(job, alone=True).told())
            done = subprocess.run([sys.executable, "-m", __spec__.name if __spec__ else "", told], check=False)
            return "" if done.returncode == 0 else f"the process of run {job.id} ended with status {done.returncode}"
    except OSError as error:
        if not full_disk(error):
            raise
        return "full"
    return ""


def serve() -> None:
    """Answer jobs until the input ends."""
    jobs: SimpleQueue[str] = SimpleQueue()
    answers = os.fdopen(os.dup(1), "w")
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    while True:
        job = Job(**json.loads(jobs.get()))
        with printing_to(Path(job.output) / "logs" / f"{job.id}.txt"):
            told = answer(job)
        print(json.dumps(told), file=answers, flush=True)


def _listen(jobs: "SimpleQueue[str]") -> None:
    for line in sys.stdin:
        jobs.put(line)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    if sys.argv[1:]:
        perform(Job(**json.loads(sys.argv[1])))
    else:
        serve()
