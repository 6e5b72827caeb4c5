"""What becomes of a job, in a word that fits on a line."""

import json
import subprocess
import sys
from dataclasses import replace

from lightning_byz.compare.fit import Job, SeveralRanks, perform
from lightning_byz.compare.isolation import without_ranks
from lightning_byz.compare.records import full_disk

WORKER = "lightning_byz.compare.worker"
FULL = "full"


def answer(job: Job) -> str:
    """Make a run; return "" once it is kept, or why nothing can be kept."""
    try:
        try:
            perform(job)
        except SeveralRanks:
            told = json.dumps(replace(job, alone=True).told())
            done = subprocess.run([sys.executable, "-m", WORKER, told], env=without_ranks(), check=False)
            return "" if done.returncode == 0 else f"the process of run {job.id} ended with status {done.returncode}"
    except OSError as error:
        if not full_disk(error):
            raise
        return FULL
    return ""
