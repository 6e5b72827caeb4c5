"""Real gloo ranks for tests: one pool per world size, in a process group of its own that is killed whole.

A pool is a leader process, which imports everything once, with one forked child per rank. The children stay for all calls, so a test pays for its
work only. ``pool.run(function, *args)`` calls a module-level function on every rank and returns the results by rank.
"""

import contextlib
import importlib
import multiprocessing
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class RankFailure(RuntimeError):
    """A rank raised; carries the ranks' tracebacks."""

    def __init__(self, failures: dict[int, str]) -> None:
        super().__init__("\n".join(f"rank {rank}:\n{text}" for rank, text in failures.items()))
        self.failures = failures


class RankPool:
    """Processes that serve as the ranks of one world."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._leader: subprocess.Popen | None = None

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 100.0) -> list[Any]:
        """Call ``function(*args)`` on every rank; kill the whole pool when it takes longer than ``timeout`` seconds, or when a rank raises."""
        leader = self._start()
        assert leader.stdin is not None
        assert leader.stdout is not None
        pickle.dump((function.__module__, function.__qualname__, args), leader.stdin)
        leader.stdin.flush()
        deadline = time.monotonic() + timeout
        while leader.poll() is None and not select.select([leader.stdout], [], [], 0.2)[0]:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"{function.__qualname__} on {self.world} ranks gave no answer within {timeout} s")
        results = pickle.load(leader.stdout)
        failures = {rank: text for rank, (done, text) in enumerate(results) if not done}
        if failures:
            self.kill()
            raise RankFailure(failures)
        return [result for _, result in results]

    def kill(self) -> None:
        """Kill leader and ranks."""
        if self._leader is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._leader.pid, signal.SIGKILL)
            self._leader.wait()
            for stream in (self._leader.stdin, self._leader.stdout):
                if stream is not None:
                    stream.close()
            self._leader = None

    def _start(self) -> subprocess.Popen:
        if self._leader is None:
            environment = {key: value for key, value in os.environ.items() if not key.startswith(("PL_", "PYTEST_"))}
            paths = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
            environment |= {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            self._leader = subprocess.Popen(
                [sys.executable, "-m", "tests.ranks", str(self.world)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )
        return self._leader


def _rank(rank: int, world: int, port: int, connection: Connection) -> None:
    """Serve calls as one rank."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    os.environ |= {"NODE_RANK": "0", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    sys.stdout = sys.stderr
    import warnings

    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    while True:
        module, name, args = connection.recv()
        try:
            function = __import__(module, fromlist=["_"])
            for part in name.split("."):
                function = getattr(function, part)
            answer = (True, function(*args))
        except BaseException:
            answer = (False, traceback.format_exc())
        connection.send(answer)


def _lead(world: int) -> None:
    """Start the ranks, hand them calls, collect their answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for module in ("torch", "lightning.pytorch", "tests.scenarios"):
        importlib.import_module(module)  # once, for all ranks
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(world)]
    children = [context.Process(target=_rank, args=(rank, world, port, pipe[1])) for rank, pipe in enumerate(pipes)]
    for child in children:
        child.start()
    while True:
        try:
            call = pickle.load(source)
        except EOFError:
            os.killpg(os.getpgid(0), signal.SIGKILL)
        for pipe, _ in pipes:
            pipe.send(call)
        answers: dict[int, Any] = {}
        grace: float | None = None
        while len(answers) < world and (grace is None or time.monotonic() < grace):
            for rank, (pipe, _) in enumerate(pipes):
                if rank not in answers and pipe.poll(0.01):
                    answers[rank] = pipe.recv()
                    if not answers[rank][0] and grace is None:
                        grace = time.monotonic() + 10.0
        pickle.dump(
            [answers.get(rank, (False, "no answer within 10 s of another rank's failure")) for rank in range(world)],
            target,
        )
        target.flush()


if __name__ == "__main__":
    _lead(int(sys.argv[1]))
