"""Statements in processes of their own, forked from one that has imported what is slow to import and has nothing to do with them."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FORKS = """
import json, os, sys
exec(sys.argv[1], {})
for line in sys.stdin:
    if os.fork() == 0:
        exec(json.loads(line), {"__name__": "__main__"})
        sys.exit()
    status = os.wait()[1]
    if status:
        print("failed with", os.waitstatus_to_exitcode(status))
    sys.stdout.flush()
"""


@contextmanager
def forks(warm: str) -> Iterator[Callable[[str], str]]:
    """A function that runs a program after ``warm``, and returns the line that it prints."""
    command = [sys.executable, "-W", "ignore", "-c", FORKS, warm]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def answer(program: str) -> str:
            process.stdin.write(f"{json.dumps(program)}\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        yield answer
        process.stdin.close()
