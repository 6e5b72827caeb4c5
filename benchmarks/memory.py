"""The memory that a rank needs beside parameters and optimizer while it trains, in copies of the gradient.

    python benchmarks/memory.py
    python benchmarks/memory.py --ranks=4 --workers='[1]' --aggregator=Krum
    python benchmarks/memory.py --estimator=Storm

The work has linear layers alone and batches of one sample, so that activations weigh nothing; nobody attacks, gradients are not accumulated, and
workers send them as they are. A rank with m of n workers on R ranks has its own m gradients, its slice of every worker's, n d / R coordinates, and
the aggregate, which makes the floor m + n / R + 1 times d.

The exact figure is the C library's own account: every block of 64 KiB or more, whichever thread or library asked for it and temporaries included, is
mapped by itself, and the largest sum of them alive at one time is kept. Beside it the peak of resident memory, which counts pages when they
are touched, and everything small. Both are less what was there before, parameters and the optimizer's state, and are the largest among the ranks.
Each line is measured in processes of its own.
"""

import ctypes
import gc
import os
import re
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from fits import forget_peak, quiet, resident, trainer
from jsonargparse import auto_cli
from launch import hand_in, is_rank, launch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, Strategy
from tables import console, table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_byz import RobustStrategy
from lightning_byz.aggregators import Aggregator, CoordinateMedian
from lightning_byz.estimators import Estimator, Gradient

STEPS, LAYERS, ITEM, WORKERS = 4, 4, 4, "BENCHMARK_WORKERS"


class Work(LightningModule):
    """Linear layers of one width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS)))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        return self.layers(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Account:
    """The C library's account of blocks that are mapped by themselves, in bytes."""

    class _Fields(ctypes.Structure):
        names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
        _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

    def __init__(self, least: int = 2**16) -> None:
        self._library: Any = ctypes.CDLL(None)
        self._library.mallinfo2.restype = Account._Fields
        threshold = -3  # M_MMAP_THRESHOLD of malloc.h
        if not self._library.mallopt(threshold, least):
            raise RuntimeError(
                "the C library does not let its threshold for mapping be set: this benchmark needs glibc."
            )

    def present(self) -> int:
        """Return the bytes alive now."""
        return self._library.mallinfo2().hblkhd

    def peak(self) -> int:
        """Return the most bytes that were ever alive at one time, which the library only prints."""
        with tempfile.TemporaryFile() as file:
            kept = os.dup(2)
            try:
                os.dup2(file.fileno(), 2)
                self._library.malloc_stats()
            finally:
                os.dup2(kept, 2)
                os.close(kept)
            file.seek(0)
            found = re.search(rb"max mmap bytes\s*=\s*(\d+)", file.read())
        assert found is not None
        return int(found[1])


def measure(strategy: Strategy, width: int, *, ranks: int, workers: int) -> dict[str, float]:
    """Train for a few steps; return the peaks in bytes, beyond what was there before, parameters and optimizer."""
    account = Account()
    gc.collect()
    forget_peak()
    mapped, touched = account.present(), resident("VmRSS")
    work, data = Work(width), TensorDataset(torch.randn(workers * STEPS, width))
    trainer(strategy, [], ranks=ranks).fit(work, DataLoader(data, batch_size=1))
    optimizer: Any = work.optimizers(use_pl_optimizer=False)
    state = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
    own = sum(tensor.numel() * tensor.element_size() for tensor in [*work.parameters(), *state])
    return {"exact": account.peak() - mapped - own, "resident": (resident("VmHWM") - touched) * 2**20 - own}


def main(
    aggregator: Aggregator = CoordinateMedian(),  # noqa: B008 - frozen
    estimator: Estimator = Gradient(),  # noqa: B008 - frozen
    *,
    workers: list[int] = [1, 2, 4],  # noqa: B006
    ranks: int = 2,
    width: int = 2048,
    timeout: float = 300.0,
) -> None:
    """Measure and print the table.

    Args:
        aggregator: The rule, as a class name, a class path or a dict of class_path and init_args.
        estimator: What workers send, likewise; the floor is that of Gradient, which remembers nothing.
        workers: Numbers of workers per rank.
        ranks: Processes, each with one thread.
        width: Of the four layers; d is four times its square.
        timeout: Seconds after which the processes of a line are killed.
    """
    if is_rank():
        quiet(threads=1)
        local = int(os.environ[WORKERS])
        count = ranks * (local or 1)
        robust = RobustStrategy(workers=count, f=0, aggregator=aggregator, estimator=estimator)
        strategy = robust if local else DDPStrategy(process_group_backend="gloo")
        hand_in(measure(strategy, width, ranks=ranks, workers=count))
    length = LAYERS * width**2
    result = table(
        f"Memory of a rank beyond parameters and optimizer, {ranks} ranks, in multiples of d = {length:,} elements",
        *("strategy", "workers per rank", "floor", "exact peak", "resident peak"),
    )
    for local in (0, *workers):  # 0 is DDPStrategy
        by_rank = launch(ranks, timeout, **{WORKERS: str(local)})
        peaks = [max(one[kind] for one in by_rank) / (length * ITEM) for kind in ("exact", "resident")]
        floor = f"{2 * local + 1}.00" if local else ""
        result.add_row(
            repr(aggregator) if local else "DDPStrategy", str(local or 1), floor, *(f"{peak:.2f}" for peak in peaks)
        )
    console().print(result)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
