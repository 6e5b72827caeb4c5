"""Double momentum and momentum as their authors released them, said again in plain loops, with a switch for everything in which ours differs.

    python benchmarks/mu2_restated.py --data=mnist --output=runs/released.jsonl
    python benchmarks/mu2_restated.py --data=mnist --setting.sampling=dealt --setting.start=zero --optimizers='[momentum]' --attacks='[flip]'

A second statement of what ``benchmarks/mu2.py`` does through the package: it imports nothing of it, and shares no rule, attack, estimator or sampler.
The network is convolution 1-16, batch norm, ReLU, pooling, convolution 16-32, batch norm, ReLU, pooling, linear: 29 034 parameters. Of 17 workers
the last 8 are Byzantine. The test set is classified with several statistics for batch norm, which no gradient depends on, so that one run has a
figure for each of them: ``shared``, as released, one running average fed by every pass of every worker in turn; ``own``, an average per worker, of
which the coordinate-wise median is taken; ``exact``, of 2 000 training images at once.
"""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from jsonargparse import auto_cli
from mu2_loops import Run, Setting, momentum, mu2
from mu2_work import Data, data_of

TRAINED = {"mu2": mu2, "momentum": momentum}


def measure(
    data: Data, setting: Setting, optimizer: str, rule: str, attack: str, seed: int
) -> dict[str, dict[int, float]]:
    """Return the accuracies by what batch norm used, and by round."""
    run, found = Run(data, setting, attack, seed), {}
    for t in TRAINED[optimizer](run, rule):
        if (setting.rounds - t) % setting.every == 0:
            for name, accuracy in run.accuracies().items():
                found.setdefault(name, {})[t] = accuracy
    return found


def cell(values: Sequence[float]) -> str:
    """Return the mean and its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):.2f} ± {error:.2f}"


def main(
    *,
    data: Path | None = None,
    setting: Setting = Setting(),  # noqa: B008 - frozen
    optimizers: Sequence[str] = tuple(TRAINED),
    rules: Sequence[str] = ("ctma", "median"),
    attacks: Sequence[str] = ("flip", "alie"),
    seeds: Sequence[int] = (1, 2, 3, 4, 5),
    output: Path | None = None,
) -> None:
    """Train, and print a line per cell: the last accuracy for each kind of statistics, then the best one with shared statistics.

    Args:
        data: Folder of MNIST's 10 000 test images in IDX; without it, scikit-learn's digits.
        setting: Where the procedure differs from the released one.
        optimizers: Of ``mu2`` and ``momentum``.
        rules: Of ``ctma`` and ``median``.
        attacks: Of ``flip`` and ``alie``.
        seeds: Of the first parameters and of the order of the samples.
        output: A file to which a line of JSON per run is added.

    """
    samples = data_of(data, dtype=getattr(torch, setting.dtype), test=setting.test, normalised=setting.normalised)
    for attack in attacks:
        for rule in rules:
            for optimizer in optimizers:
                started, runs = time.perf_counter(), []
                for seed in seeds:
                    runs.append(measure(samples, setting, optimizer, rule, attack, seed))
                    about = {"optimizer": optimizer, "rule": rule, "attack": attack, "seed": seed, **asdict(setting)}
                    if output is not None:
                        with output.open("a") as file:
                            file.write(json.dumps({**about, "found": runs[-1]}) + "\n")
                lasts = {name: cell([run[name][setting.rounds] for run in runs]) for name in runs[0]}
                best = cell([max(run["shared"].values()) for run in runs])
                took = (time.perf_counter() - started) / len(seeds)
                shown = "  ".join(f"{name} {value}" for name, value in lasts.items())
                print(f"{attack:5}{rule:7}{optimizer:9} last: {shown}  best: {best}  ({took:.0f} s a run)", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    auto_cli(main, as_positional=False)
