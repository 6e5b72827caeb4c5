"""Double momentum against momentum through the Trainer: the synchronous study of Dahan & Levy (ICML 2024) on MNIST's 10 000 test images.

    python benchmarks/mu2.py --data=folder/with/mnist
    python benchmarks/mu2.py --seeds=2 --rounds=50 --attacks='[SignFlip]'

Of 17 workers with batches of 4 the last 8 are Byzantine, f = 8; the authors' network and learning rate; gradients shortened to length 2. Double
momentum is ``Storm`` with ``Anytime``, both with the schedules of the released code; momentum is ``WorkerMomentum(0.9)``. Both start from the same
parameters and see the same batches, so that their difference is taken seed by seed. Accuracy is that of the last round on the last fifth of the
images, which nobody trains on, unless ``--test`` takes another fifth; 472 rounds are four epochs. Without ``--data`` it runs on scikit-learn's
digits, and without the authors' figures.

The same procedure in plain loops, and what explains the distance from the authors' figures: ``benchmarks/mu2_restated.py``, docs/studies/mu2.md.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from fits import quiet
from jsonargparse import auto_cli
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import LightningModule, Trainer, seed_everything
from mu2_work import Data, data_of, network
from tables import markdown, shown
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_byz import RobustStrategy
from lightning_byz.aggregators import CTMA, Aggregator, CoordinateMedian
from lightning_byz.attacks import ALIE, Attack, SignFlip
from lightning_byz.estimators import Storm, WorkerMomentum
from lightning_byz.optimizers import Anytime

WORKERS, BYZANTINE, BATCH = 17, 8, 4
ATTACKS: Mapping[str, Attack] = {"SignFlip": SignFlip(), "ALIE": ALIE()}
RULES: Mapping[str, Aggregator] = {
    "CTMA(CoordinateMedian)": CTMA(CoordinateMedian()),
    "CoordinateMedian": CoordinateMedian(),
}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "mu2": {"estimator": Storm(beta="released", clip=2.0), "anytime": Anytime(gamma="released")},
    "momentum": {"estimator": WorkerMomentum(beta=0.9, clip=2.0)},
}
AUTHORS = {
    ("SignFlip", "CTMA(CoordinateMedian)"): ("94.3", "93.3"),
    ("SignFlip", "CoordinateMedian"): ("89.7", "86.3"),
    ("ALIE", "CTMA(CoordinateMedian)"): ("about 94", "about 94"),
    ("ALIE", "CoordinateMedian"): ("about 94", "about 94"),
}
"""Accuracies of the authors' code on this work, double momentum and momentum."""

Key = tuple[str, str, str, int]
"""Attack, rule, method, seed."""


class Classifier(LightningModule):
    """The authors' network."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Log the accuracy in percent."""
        right = self.layers(batch[0]).argmax(dim=1) == batch[1]
        self.log("accuracy", 100 * right.float().mean(), batch_size=len(right))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def accuracy(data: Data, attack: str, rule: str, method: str, seed: int, *, rounds: int) -> float:
    """Train once, and return the accuracy after the last round."""
    seed_everything(seed, verbose=False)
    module = Classifier()
    attackers = range(WORKERS - BYZANTINE, WORKERS)
    strategy = RobustStrategy(
        workers=WORKERS, f=BYZANTINE, aggregator=RULES[rule], attackers=attackers, attack=ATTACKS[attack], seed=seed,
        digest_every=None, **METHODS[method],
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=1, strategy=strategy, plugins=[LightningEnvironment()], max_steps=rounds, max_epochs=-1,
        check_val_every_n_epoch=None, val_check_interval=rounds, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    training = DataLoader(TensorDataset(data.images, data.labels), batch_size=BATCH, shuffle=True)
    trainer.fit(module, training, DataLoader(TensorDataset(data.test_images, data.test_labels), batch_size=250))
    return float(trainer.callback_metrics["accuracy"])


def lines(found: Mapping[Key, float], *, authors: bool) -> list[list[str]]:
    """Return the table's lines, of the seeds for which both methods have run."""
    table = []
    for attack in ATTACKS:
        for rule in RULES:
            runs: dict[str, dict[int, float]] = {
                name: {key[3]: value for key, value in found.items() if key[:3] == (attack, rule, name)}
                for name in METHODS
            }
            seeds = sorted(set(runs["mu2"]) & set(runs["momentum"]))
            if not seeds:
                continue
            double, single = ([runs[name][seed] for seed in seeds] for name in ("mu2", "momentum"))
            gains = [one - other for one, other in zip(double, single, strict=True)]
            theirs = AUTHORS[attack, rule] if authors else ("", "")
            cells = [shown(double), theirs[0], shown(single), theirs[1], shown(gains, sign="+"), str(len(seeds))]
            table.append([f"{attack}, {rule}", *cells])
    return table


def read_runs(file: Path | None, about: Mapping[str, Any]) -> dict[Key, float]:
    """Return what earlier calls have found."""
    if file is None or not file.exists():
        return {}
    known = [json.loads(line) for line in file.read_text().splitlines()]
    names = ("attack", "rule", "method", "seed")
    return {
        tuple(run[name] for name in names): run["accuracy"]  # pyright: ignore[reportReturnType]
        for run in known
        if about.items() <= run.items()
    }


def main(
    *,
    data: Path | None = None,
    seeds: int = 5,
    rounds: int = 472,
    test: Literal["last", "first", "drawn"] = "last",
    attacks: Sequence[str] = tuple(ATTACKS),
    rules: Sequence[str] = tuple(RULES),
    methods: Sequence[str] = tuple(METHODS),
    runs: Path | None = None,
) -> None:
    """Run what has not run yet, and print the table in Markdown.

    Args:
        data: Folder of MNIST's 10 000 test images in IDX; without it, scikit-learn's digits.
        seeds: Runs per cell, from seed 1.
        rounds: Steps per run.
        test: Which fifth of the images is for tests; of MNIST's the last is the easiest, see docs/studies/mu2.md.
        attacks: Of ``SignFlip`` and ``ALIE``.
        rules: Of ``CTMA(CoordinateMedian)`` and ``CoordinateMedian``.
        methods: Of ``mu2`` and ``momentum``.
        runs: A file with a line of JSON per run, which is added to; what it has is not run again.

    """
    about = {"data": "digits" if data is None else "MNIST", "test": test, "rounds": rounds}
    samples, found = data_of(data, test=test), read_runs(runs, about)
    wanted = [(a, r, m, seed) for seed in range(1, seeds + 1) for a in attacks for r in rules for m in methods]
    for key in wanted:
        if key in found:
            continue
        started = time.perf_counter()
        found[key] = accuracy(samples, *key, rounds=rounds)
        took = time.perf_counter() - started
        print(*key, f"{found[key]:.2f}", f"({took:.0f} s)", flush=True)
        if runs is not None:
            run = dict(zip(("attack", "rule", "method", "seed"), key, strict=True))
            with runs.open("a") as file:
                file.write(json.dumps({**run, **about, "accuracy": found[key]}) + "\n")
    header = ["attack, rule", "mu2", "authors' mu2", "momentum", "authors' momentum", "mu2 - momentum", "seeds"]
    print("\n" + markdown(header, lines(found, authors=data is not None)))


if __name__ == "__main__":
    quiet(1)
    auto_cli(main, as_positional=False)
