"""Stale workers in a plain loop: at each step one of eight delivers, two attack, and each weighs what it has delivered (asynchronous mu^2-SGD).

Alone, and then in two processes; both print the same accuracy and the same digest of the parameters:

    python examples/arrivals_loop.py
    torchrun --nproc-per-node=2 examples/arrivals_loop.py
"""

import os
from functools import partial

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn

from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian
from lightning_byz.arrivals import RandomArrivals
from lightning_byz.attacks import SignFlip
from lightning_byz.estimators import Storm
from lightning_byz.optimizers import Anytime, RobustOptimizer

WORKERS = 8


def main(aggregator: Aggregator = CTMA(CoordinateMedian()), *, steps: int = 500) -> None:  # noqa: B008 - frozen
    torch.set_num_threads(1)  # equal numbers of threads, equal bits
    torch.manual_seed(0)
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(labels))
    images, labels = images[order].float() / 16, labels[order]
    shards = list(zip(images[360:].chunk(WORKERS), labels[360:].chunk(WORKERS), strict=True))

    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    robust = RobustOptimizer(
        optimizer, module, workers=WORKERS, f=2, aggregator=aggregator, estimator=Storm(0.25), anytime=Anytime(0.1),
        attackers=[6, 7], attack=SignFlip(), arrivals=RandomArrivals("squared", byzantine_share=0.35), weights="counts",
    )  # fmt: skip

    def loss_of(batch: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(module(batch), wanted)

    delivered = [0] * WORKERS
    for step in range(steps):
        for worker in robust.computing:  # who delivered at the step before, of this process; nobody else draws a batch
            inputs, targets = shards[worker]
            draws = torch.Generator().manual_seed(step * WORKERS + worker)  # by worker, not by process
            chosen = torch.randint(len(targets), (16,), generator=draws)
            robust.backward(worker, partial(loss_of, inputs[chosen], targets[chosen]))
        report = robust.step()
        delivered = [count + (word != "not due") for count, word in zip(delivered, report.status, strict=True)]

    with robust.evaluation(), torch.no_grad():
        accuracy = (module(images[:360]).argmax(1) == labels[:360]).float().mean()
    if not dist.is_initialized() or dist.get_rank() == 0:
        digest = sum(parameter.double().sum().item() for parameter in module.parameters())
        print(f"deliveries {delivered}, accuracy {accuracy:.3f}, digest {digest!r}")


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:
        dist.init_process_group("gloo")
    main()
    if dist.is_initialized():
        dist.destroy_process_group()
