"""The workers of a plain loop spread over processes: each process serves its part of them, and all train the same parameters.

Alone, and then in two processes; both print the same accuracy and the same digest of the parameters:

    python examples/torchrun_loop.py
    torchrun --nproc-per-node=2 examples/torchrun_loop.py
"""

import os
from functools import partial

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn

from lightning_byz.aggregators import CTMA, CoordinateMedian
from lightning_byz.attacks import LabelFlip
from lightning_byz.estimators import WorkerMomentum
from lightning_byz.optimizers import RobustOptimizer

WORKERS, STEPS = 8, 150


def main() -> None:
    torch.set_num_threads(1)  # equal numbers of threads, equal bits
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = images.float() / 16
    shards = list(zip(images[360:].chunk(WORKERS), labels[360:].chunk(WORKERS), strict=True))

    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    robust = RobustOptimizer(
        optimizer, module, workers=WORKERS, f=2, aggregator=CTMA(CoordinateMedian()), estimator=WorkerMomentum(0.9),
        attackers=[6, 7], attack=LabelFlip(classes=10),
    )  # fmt: skip
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(robust, STEPS)

    def loss_of(batch: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(module(batch), wanted)

    for step in range(STEPS):
        for worker in robust.local:
            inputs, targets = shards[worker]
            draws = torch.Generator().manual_seed(step * WORKERS + worker)  # by worker, not by process
            chosen = torch.randint(len(targets), (16,), generator=draws)
            batch = robust.poisoned(worker, (inputs[chosen], targets[chosen]))
            robust.backward(worker, partial(loss_of, *batch))
        robust.aggregate()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        robust.step()
        scheduler.step()

    with robust.evaluation(), torch.no_grad():
        accuracy = (module.eval()(images[:360]).argmax(1) == labels[:360]).float().mean()
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(
            f"accuracy {accuracy:.3f}, digest {sum(parameter.double().sum().item() for parameter in module.parameters())!r}"
        )


if __name__ == "__main__":
    torch.manual_seed(0)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        dist.init_process_group("gloo")
    main()
    if dist.is_initialized():
        dist.destroy_process_group()
