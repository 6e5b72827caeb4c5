"""Eight workers of which two attack, in a plain PyTorch loop on scikit-learn's digits.

python examples/plain_loop.py
"""

from functools import partial

import torch
from sklearn.datasets import load_digits
from torch import nn

from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian
from lightning_byz.attacks import ReverseGradient
from lightning_byz.estimators import Storm
from lightning_byz.optimizers import Anytime, RobustOptimizer


def main(aggregator: Aggregator = CTMA(CoordinateMedian()), *, steps: int = 300) -> None:  # noqa: B008 - frozen
    torch.manual_seed(0)
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(labels))
    images, labels = images[order].float() / 16, labels[order]
    shards = list(zip(images[360:].chunk(8), labels[360:].chunk(8), strict=True))

    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    robust = RobustOptimizer(
        optimizer, module, workers=8, f=2, aggregator=aggregator, estimator=Storm(0.25), anytime=Anytime(0.1),
        attackers=[6, 7], attack=ReverseGradient(10),
    )  # fmt: skip

    def loss_of(batch: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(module(batch), wanted)

    for _ in range(steps):
        for worker in robust.local:
            inputs, targets = shards[worker]
            chosen = torch.randint(len(targets), (16,))
            robust.backward(worker, partial(loss_of, inputs[chosen], targets[chosen]))
        robust.step()

    with robust.evaluation(), torch.no_grad():
        accuracy = (module(images[:360]).argmax(1) == labels[:360]).float().mean()
    print(f"accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
