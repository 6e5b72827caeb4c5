"""What loggers get of the workers: a few numbers, and a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch import Tensor

COLUMNS = ("worker", "attacks", "coefficient", "left_out", "broken", "absent", "norm", "distance")
MORE = ("named", "delivered", "age", "oldest", "weight")
"""Columns that workers have beside these under a code, and those that are stale."""
COUNTS = ("left_out", "broken", "absent", "named")

Means = Mapping[str, Tensor]


def groups(workers: int, attackers: Sequence[int]) -> dict[str, list[int]]:
    """Return the ids of honest workers and attackers, or of all workers where nobody is known to attack.

    Example:
        >>> groups(3, [1]), groups(2, [])
        ({'honest': [0, 2], 'attackers': [1]}, {'workers': [0, 1]})
    """
    if not attackers:
        return {"workers": list(range(workers))}
    return {"honest": [one for one in range(workers) if one not in attackers], "attackers": list(attackers)}


def of_groups(means: Means, attackers: Sequence[int]) -> dict[str, float]:
    """Return mean and largest norm, distance and age of each group, its share in the aggregate and of the weight, and its counts."""
    told = {}
    for group, ids in groups(len(means["left_out"]), attackers).items():
        for name in ("norm", "distance"):
            values = means[name][ids]
            values = values[~values.isnan()]
            if len(values):
                told[f"{group}/{name}_mean"], told[f"{group}/{name}_max"] = float(values.mean()), float(values.max())
        told[f"{group}/share"] = float(means["coefficient"][ids].sum())
        told |= {f"{group}/{name}": float(means[name][ids].sum()) for name in COUNTS if name in means}
        if "age" in means:
            told |= {f"{group}/{name}": float(means[name][ids].sum()) for name in ("delivered", "weight")}
            told[f"{group}/age_mean"] = float(means["age"][ids].nanmean())
            told[f"{group}/age_max"] = float(means["oldest"][ids].nan_to_num(-1.0).max())
    return told


def of_workers(means: Means) -> dict[str, float]:
    """Return every number of every worker."""
    return {f"worker_{name}/{worker}": float(value) for name, row in means.items() for worker, value in enumerate(row)}


def known(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the values that are known: not NaN."""
    return {name: number for name, value in values.items() if (number := float(value)) == number}


def columns(means: Means) -> tuple[str, ...]:
    """Return the names of what a line says."""
    return (*COLUMNS, *(name for name in MORE if name in means))


def rows(means: Means, attackers: Sequence[int]) -> list[list[Any]]:
    """Return one line per worker, under :func:`columns`."""
    lines = torch.stack([means[name] for name in columns(means)[2:]], 1).tolist()
    return [[worker, worker in attackers, *line] for worker, line in enumerate(lines)]


def log_table(logger: Logger, means: Means, attackers: Sequence[int], *, step: int) -> None:
    """Give a logger that has tables one of the workers: ``log_table``, as that of W&B, or TensorBoard's text."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text("workers", _markdown(columns(means), rows(means, attackers)), global_step=step)
    elif callable(log := getattr(logger, "log_table", None)):
        log(key="workers", columns=list(columns(means)), data=rows(means, attackers), step=step)


def _markdown(names: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    told = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (names, ["---:"] * len(names), *told))
