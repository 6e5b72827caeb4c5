"""A run in a process that has run others, and will: nothing of one reaches the next."""

import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch


@contextmanager
def untouched(threads: int) -> Iterator[None]:
    """Run the block with that many threads of torch, and put back what a run may leave behind in its process.

    That is: environment, arguments and import paths, working directory, filters of warnings, levels of loggers, random streams, and torch's threads,
    default dtype, precision of products and switches of determinism.
    """
    environment, arguments, paths, place = dict(os.environ), list(sys.argv), list(sys.path), Path.cwd()
    levels = {name: logging.getLogger(name).level for name in (None, "lightning.pytorch", "lightning.fabric")}
    streams = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 - a run seeds this stream
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision()
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    anomalies = torch.is_anomaly_enabled()
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
