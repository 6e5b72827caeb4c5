"""The runs of a grid in Weights & Biases: one group, the grid's values as columns, and a sweep that makes the same fits."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import yaml

from lightning_byz.compare.yaml_file import GridMistake

NAME = "WandbLogger"
MISSING = "trainer.logger is WandbLogger, and wandb is not installed: pip install 'lightning-byz[wandb]'."


def among(loggers: Any) -> Any:
    """Return the logger of W&B among a config's loggers; ``None`` where there is none.

    Example:
        >>> among([{"class_path": "CSVLogger"}, {"class_path": "WandbLogger", "init_args": {"project": "digits"}}])
        {'class_path': 'WandbLogger', 'init_args': {'project': 'digits'}}
        >>> among(False)
    """
    found = [one for one in (loggers if isinstance(loggers, list) else [loggers]) if _is_wandb(one)]
    return found[0] if found else None


def labelled(loggers: Any, *, name: str, group: str, folder: str, columns: Mapping[str, Any]) -> Any:
    """Return loggers, of which W&B's has a run's name, group, folder and columns where it has none of its own.

    Args:
        loggers: As a config has them.
        name: Of the run.
        group: Of all runs of the grid.
        folder: Where it writes.
        columns: What is added to the run's config.
    """
    if isinstance(loggers, list):
        return [labelled(one, name=name, group=group, folder=folder, columns=columns) for one in loggers]
    if not _is_wandb(loggers):
        return loggers
    given: Any = {"class_path": loggers} if isinstance(loggers, str) else loggers
    own = dict(given.get("init_args") or {})
    more = {one: own.pop(one) for one in ("group", "config") if one in own} | (given.get("dict_kwargs") or {})
    place = {} if "dir" in own else {"save_dir": folder}
    return {
        **given,
        "init_args": {"name": name, **place, **own},
        "dict_kwargs": {"group": group, **more, "config": {**columns, **(more.get("config") or {})}},
    }


def refuse_without_wandb(loggers: Sequence[Any]) -> None:
    """Refuse runs that would log to W&B where it is not installed.

    Raises:
        GridMistake: Saying what to install.
    """
    if any(among(one) for one in loggers) and find_spec("wandb") is None:
        raise GridMistake(MISSING)


@contextmanager
def own_run() -> Iterator[None]:
    """Have a run of W&B that the block starts end with it, so that the next fit of this process starts one of its own."""
    before, status = _running(), 1
    try:
        yield
        status = 0
    finally:
        if (run := _running()) is not None and run is not before:
            run.finish(exit_code=status)


def sweep(name: str, configs: Sequence[str], *, metric: str, mode: str, threads: int, project: str | None) -> str:
    """Return W&B's configuration of a sweep whose only parameter is the config of a fit.

    Args:
        name: Of the sweep.
        configs: Paths of the configs.
        metric: What it is about.
        mode: Whether more of it is better.
        threads: Of torch.
        project: Of W&B; ``None`` leaves it to the command ``wandb sweep``.
    """
    told = {
        "name": name,
        **({"project": project} if project else {}),
        "program": "lightning-byz",
        "command": ["${env}", f"OMP_NUM_THREADS={threads}", "${program}", "fit", "${args}"],
        "method": "grid",
        "metric": {"name": metric, "goal": "maximize" if mode == "max" else "minimize"},
        "parameters": {"config": {"values": list(configs)}},
    }
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True)


def _is_wandb(logger: Any) -> bool:
    name = logger.get("class_path") if isinstance(logger, dict) else logger
    return isinstance(name, str) and name.rpartition(".")[2] == NAME


def _running() -> Any:
    return getattr(sys.modules.get("wandb"), "run", None)
