"""A run in a process that has run others, and will: nothing of one reaches the next."""

import logging
import os
import random
import signal
import sys
import sysconfig
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

PYTHON = Path(sysconfig.get_path("stdlib")).resolve()
"""Where Python's own modules are."""

RANKS = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
"""What launchers of ranks leave in the environment of a process that has trained."""


def without_ranks() -> dict[str, str]:
    """Return the environment for a process that starts ranks of its own, whatever this one has trained before."""
    return {name: value for name, value in os.environ.items() if name not in RANKS}


@contextmanager
def untouched(threads: int) -> Iterator[None]:
    """Run the block with that many threads of torch, and put back what a run may leave behind in its process.

    That is: environment, arguments and import paths, working directory, answer to Ctrl-C, filters of warnings, levels of loggers, random streams,
    numpy's answers to overflow, and torch's threads, default dtype and device, gradients, precision of products and switches of determinism. The
    user's own files are imported anew by the next run, as what they do when they are imported, and keep between calls, is a part of a run.
    """
    environment, arguments, paths, place = dict(os.environ), list(sys.argv), list(sys.path), Path.cwd()
    levels = {name: logging.getLogger(name).level for name in (None, "lightning.pytorch", "lightning.fabric")}
    streams = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 - a run seeds this stream
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision()
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    anomalies, device, gradients = torch.is_anomaly_enabled(), torch.get_default_device(), torch.is_grad_enabled()
    interrupt, errors, modules = signal.getsignal(signal.SIGINT), np.geterr(), set(sys.modules)
    torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.argv[:], sys.path[:] = arguments, paths
        os.chdir(place)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        torch.set_rng_state(streams[0])
        np.random.set_state(streams[1])  # noqa: NPY002
        random.setstate(streams[2])
        torch.set_num_threads(before[0])
        torch.set_default_dtype(before[1])
        torch.set_float32_matmul_precision(before[2])
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        torch.autograd.set_detect_anomaly(anomalies)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        torch.set_grad_enabled(gradients)
        np.seterr(**errors)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)
        for name in set(sys.modules) - modules:
            if _own(sys.modules[name]):
                del sys.modules[name]


def _own(module: ModuleType | None) -> bool:
    """Whether a module is a file of the user's: neither installed, nor Python's, nor this package's."""
    file = getattr(module, "__file__", None) or ""
    if not file.endswith(".py") or getattr(module, "__name__", "").split(".")[0] == "lightning_byz":
        return False
    path = Path(file).resolve()
    return not {"site-packages", "dist-packages"} & set(path.parts) and not path.is_relative_to(PYTHON)


@contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """Send what the block prints, and what its libraries and children do, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for kept, number in zip(before, (1, 2), strict=True):
            os.dup2(kept, number)
            os.close(kept)
