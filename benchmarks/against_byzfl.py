"""How long a round of 17 workers takes, and how long in ByzFL's own training loop, on the same network and the same batches.

    pip install --no-deps byzfl==0.0.11
    python benchmarks/against_byzfl.py
    python benchmarks/against_byzfl.py --networks='[cnn_mnist]' --f=4 --pairs=3 --steps=5

Networks are ByzFL's own, on random images of 28 by 28. All 17 workers are honest, so that both sides compute 17 gradients per round, with worker
momentum 0.9, NNM and the coordinate-wise median (f is what they tolerate), and plain SGD. ByzFL's side is the loop of its ``start_training``
(algorithm DSGD), word for word, on its own ``Client`` and ``Server``; what surrounds the loop (downloads, evaluation, files) is left out. Both sides
draw batches from equal loaders, and must end with the same parameters to 1e-4. A third side computes the 17 gradients and does nothing else: no
library can be faster on one core without computing something else. Windows take turns; their first steps are not counted.

ByzFL imports torchvision, seaborn and matplotlib for its downloads and plots; where they are missing, empty modules stand in for the import.
"""

import gc
import importlib
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal
from unittest.mock import MagicMock

import torch
from fits import UNCOUNTED, Clock, quiet, trainer
from jsonargparse import auto_cli
from lightning.pytorch import LightningModule
from rich.table import Table
from tables import console, spread, table
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_byz import RobustStrategy
from lightning_byz.aggregators import CoordinateMedian
from lightning_byz.estimators import WorkerMomentum
from lightning_byz.preaggregators import NNM

Network = Literal["fc_mnist", "cnn_mnist", "logreg_mnist"]
Windows = dict[str, list[dict[str, float]]]
RATE, MOMENTUM = 0.05, 0.9
THEIRS, OURS, BARE = "ByzFL's loop", "Trainer.fit with RobustStrategy", "the gradients alone"
BESIDE = ("torchvision", "seaborn", "matplotlib", "matplotlib.pyplot")


@contextmanager
def stand_ins() -> Iterator[None]:
    """Let what is not installed be imported, for the length of the block."""
    absent = [
        name for name in BESIDE if name.partition(".")[0] not in sys.modules and not find_spec(name.partition(".")[0])
    ]
    sys.modules.update({name: MagicMock() for name in absent})
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def byzfl() -> Any:
    """Return the package, or end with a sentence."""
    try:
        with stand_ins():
            return importlib.import_module("byzfl")
    except ImportError as error:
        sys.exit(f"skipped: ByzFL is not installed ({error}): pip install --no-deps byzfl==0.0.11")


class Work(LightningModule):
    """One of ByzFL's networks as a module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        return nn.functional.nll_loss(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=RATE)


@dataclass(frozen=True)
class Setting:
    """What all sides are given."""

    rival: Any
    network: Network
    workers: int
    f: int
    batch: int
    steps: int

    def work(self) -> Work:
        """Return the network, with the same parameters each time."""
        torch.manual_seed(0)
        return Work(getattr(self.rival.fed_framework.models, self.network)())

    def data(self) -> TensorDataset:
        """Return samples for one epoch of as many steps as a window has."""
        count, draws = self.workers * self.batch * (self.steps + UNCOUNTED), torch.Generator().manual_seed(0)
        return TensorDataset(
            torch.randn(count, 1, 28, 28, generator=draws), torch.randint(10, (count,), generator=draws)
        )

    def loaders(self) -> list[DataLoader]:
        """Return one loader per worker, over the shards that the strategy deals out."""
        data = self.data()
        samplers = [DistributedSampler(data, self.workers, worker) for worker in range(self.workers)]
        return [DataLoader(data, batch_size=self.batch, sampler=sampler) for sampler in samplers]


def ours(setting: Setting) -> tuple[nn.Module, Clock]:
    """Train as a user of this package does."""
    work, clock = setting.work(), Clock()
    strategy = RobustStrategy(
        workers=setting.workers, f=setting.f, aggregator=CoordinateMedian(), preaggregators=[NNM()],
        estimator=WorkerMomentum(beta=MOMENTUM),
    )  # fmt: skip
    trainer(strategy, [clock]).fit(work, DataLoader(setting.data(), batch_size=setting.batch))
    return work.network, clock


def theirs(setting: Setting) -> tuple[nn.Module, Clock]:
    """Train as ByzFL's ``start_training`` does."""
    work, clock, rival = setting.work(), Clock(), setting.rival
    shared = {
        "model_name": setting.network, "device": "cpu", "optimizer_name": "SGD", "learning_rate": RATE, "weight_decay": 0.0,
        "milestones": [], "learning_rate_decay": 1.0,
    }  # fmt: skip
    alike = {"loss_name": "NLLLoss", "LabelFlipping": False, "momentum": MOMENTUM, "nb_labels": 10}
    honest_clients = [
        rival.Client({**shared, **alike, "training_dataloader": loader, "store_per_client_metrics": False})
        for loader in setting.loaders()
    ]
    rules = {
        "aggregator_info": {"name": "Median", "parameters": {}},
        "pre_agg_list": [{"name": "NNM", "parameters": {"f": setting.f}}],
    }
    byz_client = rival.ByzantineClient({"name": "NoAttack", "f": 0, "parameters": {}})
    server = rival.Server({**shared, **rules, "validation_loader": None, "test_loader": DataLoader(setting.data())})
    server.set_model_state(work.network.state_dict())
    new_model = server.get_dict_parameters()
    for client in honest_clients:
        client.set_model_state(new_model)
    for _ in range(setting.steps + UNCOUNTED):
        for client in honest_clients:
            client.compute_gradients()
        honest_gradients = [client.get_flat_gradients_with_momentum() for client in honest_clients]
        gradients = honest_gradients + byz_client.apply_attack(honest_gradients)
        server.update_model_with_gradients(gradients)
        new_model = server.get_dict_parameters()
        for client in honest_clients:
            client.set_model_state(new_model)
        clock.note()
    return server.model, clock


def bare(setting: Setting) -> tuple[nn.Module, Clock]:
    """Fetch the batches and compute the gradients; train nothing."""
    work, clock = setting.work(), Clock()
    for batches in zip(*setting.loaders(), strict=True):
        for batch in batches:
            work.zero_grad()
            work.training_step(batch, 0).backward()
        clock.note()
    return work.network, clock


def measure(setting: Setting, pairs: int) -> Windows:
    """Time windows of all sides in turns, and compare what the first two end with.

    Raises:
        AssertionError: If they end with different parameters.
    """
    sides = {THEIRS: theirs, OURS: ours, BARE: bare}
    windows: Windows = {name: [] for name in sides}
    for turn in range(pairs):
        ends = {}
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            gc.collect()
            network, clock = sides[name](setting)
            windows[name].append(clock.per_step())
            ends[name] = nn.utils.parameters_to_vector(network.parameters()).detach()
        torch.testing.assert_close(ends[THEIRS], ends[OURS], rtol=1e-4, atol=1e-4)
    return windows


def rows(windows: Windows, setting: Setting) -> Table:
    """Lay out medians, how many times as fast as ByzFL, and their spread."""
    length = sum(parameter.numel() for parameter in setting.work().parameters())
    title = f"One round of {setting.workers} workers, {setting.network}, {length:,} parameters, f = {setting.f}"
    names = "ms", "times as fast", "from - to", "processor ms", "times as fast", "from - to"
    result = table(f"{title}, {len(windows[THEIRS])} interleaved windows", "", *names)
    for name, mine in windows.items():
        cells = []
        for kind in ("wall", "processor"):
            seconds = [window[kind] for window in mine]
            cells += [f"{1000 * statistics.median(seconds):.1f}", *spread([w[kind] for w in windows[THEIRS]], seconds)]
        result.add_row(name, *cells)
    return result


def main(
    *,
    networks: list[Network] = ["fc_mnist", "cnn_mnist"],  # noqa: B006
    workers: int = 17,
    f: int = 8,
    batch: int = 25,
    pairs: int = 7,
    steps: int = 20,
    threads: int = 1,
) -> None:
    """Measure, and print one table per network.

    Args:
        networks: Of ByzFL's.
        workers: All of them honest.
        f: How many workers the rules tolerate.
        batch: Samples per worker and round; 25 in ByzFL's example.
        pairs: Windows per side.
        steps: Counted rounds per window.
        threads: Threads of torch.
    """
    quiet(threads)
    rival = byzfl()
    for network in networks:
        setting = Setting(rival, network, workers, f, batch, steps)
        console().print(rows(measure(setting, pairs), setting))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
