"""Real gloo ranks for tests: one pool per world size, in a process group of its own that is killed whole.

A nursery, one for each process of pytest, imports everything once. It forks the leaders of pools, in sessions of their own, and these fork one child
per rank; the children stay for all calls, so a test pays for its work only. ``pool.run(function, *args)`` calls a module-level function on every rank
and returns the results by rank. Where pytest ends, however it does, nursery and leaders read the end of a file, and go with all their ranks.
"""

import contextlib
import gc
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
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(__file__).resolve().parent.parent
SHARED = ("torch", "lightning.pytorch", "pytest", "hypothesis", "tests.scenarios")
"""What ranks have imported when they start, besides the compiled kernels where there are any."""


class RankFailure(RuntimeError):
    """A rank raised; carries the ranks' tracebacks."""

    def __init__(self, failures: dict[int, str]) -> None:
        super().__init__("\n".join(f"rank {rank}:\n{text}" for rank, text in failures.items()))
        self.failures = failures


class RankPool:
    """Processes that serve as the ranks of one world."""

    def __init__(self, world: int, nursery: "Nursery") -> None:
        self.world = world
        self._nursery = nursery
        self._leader: Leader | None = None

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 100.0) -> list[Any]:
        """Call ``function(*args)`` on every rank; kill the whole pool when it takes longer than ``timeout`` seconds, or when a rank raises."""
        if self._leader is None:
            self._leader = self._nursery.born(self.world)
        leader = self._leader
        pickle.dump((function.__module__, function.__qualname__, args), leader.calls)
        leader.calls.flush()
        if not select.select([leader.answers], [], [], timeout)[0]:
            self.kill()
            raise TimeoutError(f"{function.__qualname__} on {self.world} ranks gave no answer within {timeout} s")
        results = pickle.load(leader.answers)
        failures = {rank: text for rank, (done, text) in enumerate(results) if not done}
        if failures:
            self.kill()
            raise RankFailure(failures)
        return [result for _, result in results]

    def kill(self) -> None:
        """Kill leader and ranks."""
        if self._leader is not None:
            leader, self._leader = self._leader, None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(leader.process, signal.SIGKILL)
            self._nursery.buried(leader.process)
            with contextlib.suppress(BrokenPipeError):
                leader.calls.close()
            leader.answers.close()


@dataclass(frozen=True)
class Leader:
    """The process that hands calls to the ranks, and its pipes."""

    process: int
    calls: BinaryIO
    answers: BinaryIO


class Nursery:
    """The process that leaders are forked from."""

    def __init__(self) -> None:
        self._wire, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.ranks", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=told(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def born(self, world: int) -> Leader:
        """Fork a leader, which has the environment and the standard error of this moment."""
        (read, calls), (answers, write) = os.pipe(), os.pipe()
        socket.send_fds(self._wire, [pickle.dumps((world, told()))], [read, write, 2])
        os.close(read)
        os.close(write)
        return Leader(self._answer(), os.fdopen(calls, "wb"), os.fdopen(answers, "rb"))

    def buried(self, leader: int) -> None:
        """Wait for the end of a leader that was killed."""
        self._wire.send(pickle.dumps(leader))
        self._answer()

    def close(self) -> None:
        """Let it end."""
        self._wire.close()
        self._process.wait(timeout=10)

    def _answer(self) -> int:
        return pickle.loads(self._wire.recv(1024))


def told() -> dict[str, str]:
    """The environment of ranks: pytest's own, with one thread each."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("PL_", "PYTEST_"))}
    paths = os.pathsep.join([str(ROOT), *filter(None, [own.get("PYTHONPATH")])])
    return own | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _nurse(wire: socket.socket) -> None:
    """Fork leaders and wait for their ends, as told."""
    for module in SHARED:
        importlib.import_module(module)
    importlib.import_module("lightning_byz.kernels.paths").available()  # which imports numba
    gc.freeze()  # or each rank looks through all that was imported whenever it collects garbage
    while True:
        message, descriptors, *_ = socket.recv_fds(wire, 2**18, 3)
        if not message:
            return
        order = pickle.loads(message)
        if isinstance(order, int):
            os.kill(order, signal.SIGKILL)
            os.waitpid(order, 0)
            wire.send(pickle.dumps(order))
            continue
        leader = os.fork()
        if leader == 0:
            wire.close()
            _lead(*order, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        wire.send(pickle.dumps(leader))


def _lead(world: int, environment: dict[str, str], read: int, write: int, errors: int) -> None:
    """Start the ranks when there is a call, hand them all calls, collect their answers."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    source, target = os.fdopen(read, "rb"), os.fdopen(write, "wb")
    pipes: list[Connection] = []
    try:
        while True:
            call = pickle.load(source)
            pipes = pipes or _ranks(world, call[0], [source, target])
            for pipe in pipes:
                pipe.send(call)
            pickle.dump(_collected(pipes, source), target)
            target.flush()
    except (EOFError, BrokenPipeError):
        pass  # nobody calls any more
    except BaseException:
        traceback.print_exc()
    finally:
        os.killpg(0, signal.SIGKILL)


def _ranks(world: int, module: str, leaders: list[BinaryIO]) -> list[Connection]:
    """Fork the ranks, when what they are to call is imported; the pipes to them."""
    with contextlib.suppress(Exception):  # a rank says so when it tries
        importlib.import_module(module)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(world)]
    for rank, (_, theirs) in enumerate(pipes):
        context.Process(target=_rank, args=(rank, world, port, theirs, leaders)).start()
    return [ours for ours, _ in pipes]


def _collected(pipes: list[Connection], source: BinaryIO) -> list[tuple[bool, Any]]:
    """Each rank's answer; after another one's failure a rank has 10 seconds, and nobody has any once pytest is gone."""
    answers: dict[int, Any] = {}
    grace: float | None = None
    while len(answers) < len(pipes) and (grace is None or time.monotonic() < grace):
        for pipe in wait([source, *(pipe for rank, pipe in enumerate(pipes) if rank not in answers)], 0.2):
            if pipe is source:
                raise EOFError
            answers[pipes.index(pipe)] = done, _ = pipe.recv()
            if not done and grace is None:
                grace = time.monotonic() + 10.0
    return [answers.get(rank, (False, "no answer within 10 s of another rank's failure")) for rank in range(len(pipes))]


def _rank(rank: int, world: int, port: int, connection: Connection, leaders: list[BinaryIO]) -> None:
    """Serve calls as one rank."""
    for pipe in leaders:
        pipe.close()
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


if __name__ == "__main__":
    _nurse(socket.socket(fileno=int(sys.argv[1])))
