"""What the values and paths of a grid are called in tables and figures."""

from collections.abc import Sequence
from typing import Any

COLUMNS = (
    "seed",
    "purpose",
    "cell",
    "stage",
    "epoch",
    "step",
    "seconds",
    "run_seconds",
    "failure",
    "python",
    "n",
    "failed",
)
"""Columns of the tables, whose names no axis may have."""


def short_names(paths: Sequence[str]) -> tuple[str, ...]:
    """Return the last word of each dotted path, or the whole path where several end alike, or as a column of the tables.

    Example:
        >>> short_names(["trainer.strategy.f", "model.hidden"])
        ('f', 'hidden')
        >>> short_names(["model.rate", "data.rate"])
        ('model.rate', 'data.rate')
        >>> short_names(["trainer.strategy.seed"])
        ('trainer.strategy.seed',)
    """
    last = [path.rpartition(".")[2] for path in paths]
    return tuple(
        path if last.count(word) > 1 or word in COLUMNS else word for path, word in zip(paths, last, strict=True)
    )


def name_of(value: Any) -> str:
    """Return what a value is called in tables.

    Example:
        >>> name_of({"class_path": "lightning_byz.aggregators.CTMA", "init_args": {"base": "CoordinateMedian"}})
        'CTMA(base=CoordinateMedian)'
        >>> name_of([6, 7]), name_of(0.10), name_of(None)
        ('[6, 7]', '0.1', 'null')
    """
    if isinstance(value, dict) and "class_path" in value:
        arguments = ", ".join(f"{key}={name_of(one)}" for key, one in (value.get("init_args") or {}).items())
        return str(value["class_path"]).rpartition(".")[2] + (f"({arguments})" if arguments else "")
    if isinstance(value, list):
        return f"[{', '.join(name_of(one) for one in value)}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def plain(path: str) -> str:
    """Return a path without the words that may be left out.

    Example:
        >>> plain("trainer.strategy.init_args.f")
        'trainer.strategy.f'
    """
    return ".".join(word for word in path.split(".") if word != "init_args")
