"""Runs the calling script again, once per rank, and collects what the ranks hand in."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

FOLDER = "BENCHMARK_RESULTS"


def is_rank() -> bool:
    """Whether this process is one that :func:`launch` has started."""
    return FOLDER in os.environ


def hand_in(result: object) -> NoReturn:
    """Leave this rank's result, anything that JSON holds, to the process that has started it, and end this one.

    At once, since gloo's threads may abort a process that ends in the usual way, under DDP as well.
    """
    (Path(os.environ[FOLDER]) / f"{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(result))
    os._exit(0)


def launch(ranks: int, timeout: float, **environment: str) -> list[Any]:
    """Start this script once per rank; kill every rank's process group when one fails or time is up; return the ranks' results."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "NODE_RANK": "0",
            "OMP_NUM_THREADS": "1",
            FOLDER: folder,
            **environment,
        }
        started = [
            subprocess.Popen(
                [sys.executable, *sys.argv], env=os.environ | shared | {"LOCAL_RANK": str(rank)}, start_new_session=True
            )
            for rank in range(ranks)
        ]
        try:
            deadline = time.monotonic() + timeout
            while any(process.poll() is None for process in started) and not any(process.poll() for process in started):
                if time.monotonic() > deadline:
                    sys.exit(f"error: the benchmark took longer than --timeout={timeout:g} seconds.")
                time.sleep(0.2)
        finally:
            for process in started:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        if any(process.wait() for process in started):
            sys.exit("error: a rank failed.")
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]
