"""A plain loop under Lightning Fabric, in mixed precision, on any number of processes.

    python examples/fabric_loop.py
    python examples/fabric_loop.py --devices=2

Fabric launches, moves and casts; the module is not set up by it, for under several processes that would wrap it in DistributedDataParallel.
"""

import warnings
from functools import partial

import torch
from jsonargparse import auto_cli
from lightning.fabric import Fabric
from sklearn.datasets import load_digits
from torch import nn

from lightning_byz.aggregators import CTMA, CoordinateMedian
from lightning_byz.attacks import SignFlip
from lightning_byz.estimators import Storm
from lightning_byz.optimizers import Anytime, RobustOptimizer

WORKERS = 8


def main(*, devices: int = 1, steps: int = 300) -> None:
    """Train for a while, and print the accuracy.

    Args:
        devices: Number of processes.
        steps: Number of steps.
    """
    fabric = Fabric(accelerator="cpu", devices=devices, strategy="ddp", precision="bf16-mixed")
    fabric.launch()
    fabric.seed_everything(0, verbose=False)
    images, labels = (fabric.to_device(torch.tensor(array)) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(labels))
    images, labels = images[order].float() / 16, labels[order]
    shards = list(zip(images[360:].chunk(WORKERS), labels[360:].chunk(WORKERS), strict=True))

    module = fabric.to_device(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
    robust = RobustOptimizer(
        torch.optim.SGD(module.parameters(), lr=0.3), module, workers=WORKERS, f=2, aggregator=CTMA(CoordinateMedian()),
        estimator=Storm(0.25), anytime=Anytime(0.1), attackers=[6, 7], attack=SignFlip(),
    )  # fmt: skip

    def loss_of(batch: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        with fabric.autocast():
            return nn.functional.cross_entropy(module(batch), wanted)

    for step in range(steps):
        for worker in robust.local:
            inputs, targets = shards[worker]
            draws = torch.Generator().manual_seed(step * WORKERS + worker)
            chosen = torch.randint(len(targets), (16,), generator=draws)
            robust.backward(worker, partial(loss_of, inputs[chosen], targets[chosen]), backward=fabric.backward)
        robust.step()

    with robust.evaluation(), torch.no_grad():
        accuracy = (module(images[:360]).argmax(1) == labels[:360]).float().mean()
    fabric.print(f"accuracy {accuracy:.3f}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*GPU.*")
    auto_cli(main)
