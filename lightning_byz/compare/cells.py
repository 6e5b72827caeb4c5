"""The runs that a grid stands for."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Any, Literal

from lightning_byz.compare.grid import Grid
from lightning_byz.compare.names import plain
from lightning_byz.compare.wandb_runs import among, labelled
from lightning_byz.compare.yaml_file import read

QUIET = {
    "trainer.logger": False,
    "trainer.enable_checkpointing": False,
    "trainer.enable_progress_bar": False,
    "trainer.enable_model_summary": False,
}
"""What hundreds of runs do without, unless the grid sets it."""


LOGGING = ("LearningRateMonitor", "DeviceStatsMonitor")
"""Callbacks that Lightning refuses without a logger; their runs have its own, in their own folders."""


@dataclass(frozen=True)
class Variant:
    """One choice along every axis.

    Args:
        names: For each axis, which of its variants.
        values: What they write into the base.
    """

    names: Mapping[str, str]
    values: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The names on one line."""
        return ", ".join(self.names.values())


@dataclass(frozen=True)
class Cell:
    """One run: a variant, the values tuned for it, a seed.

    Args:
        id: Names the run by what it computes: ten hexadecimal digits, the same in every grid that has it.
        variant: The choice along the axes.
        tuned: The tuned paths and their values.
        seed: The seed of everything.
        values: Everything that is written over the base.
        tests: Whether it ends with a test.
        purpose: Whether it is compared, or tunes.
    """

    id: str
    variant: Variant
    tuned: Mapping[str, Any]
    seed: int
    values: Mapping[str, Any]
    tests: bool
    purpose: Literal["compare", "tune"] = "compare"

    def arguments(self, base: Path, output: Path) -> list[str]:
        """Return what follows ``lightning-byz`` for this run."""
        folder = str(output / "fits" / self.id)
        values = {"trainer.default_root_dir": folder, **self.values}
        if "trainer.logger" in values:
            title = f"{self.variant.title}, seed {self.seed}"
            values["trainer.logger"] = labelled(
                values["trainer.logger"], name=title, group=output.absolute().name, folder=folder, columns=self.columns
            )
        outside_in = dict(sorted(values.items(), key=lambda one: plain(one[0]).count(".")))  # model before model.hidden
        return ["fit", "--config", str(base), *options(outside_in)]

    @property
    def columns(self) -> dict[str, Any]:
        """What tells it from the other runs of its grid, by the names of axes and by dotted paths."""
        told = {"seed": self.seed, "purpose": self.purpose, "cell": self.id}
        return {**self.variant.names, **self.variant.values, **self.tuned, **told}


def options(values: Mapping[str, Any]) -> list[str]:
    """Return command-line options that write these values.

    Example:
        >>> options({"trainer.strategy.attack": "IPM", "trainer.strategy.attackers": [6, 7], "trainer.logger": False})
        ['--trainer.strategy.attack=IPM', '--trainer.strategy.attackers=[6, 7]', '--trainer.logger=false']
    """
    return [f"--{path}={value if isinstance(value, str) else json.dumps(value)}" for path, value in values.items()]


def command_of(cell: Cell, grid: Grid) -> str:
    """Return the command that runs the fit of a cell from its own config."""
    config = shlex.quote(str(grid.output / "cells" / f"{cell.id}.yaml"))
    return f"OMP_NUM_THREADS={grid.threads} lightning-byz fit --config {config}"


class Cells:
    """The runs of a grid, in the order of its file: the first axis changes slowest, seeds fastest.

    Args:
        grid: The grid.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        base = read(grid.base, "base")
        self._base = json.dumps(base, sort_keys=True, default=str)
        self.common = {**QUIET, **_needed(base, grid), **grid.set}
        self.variants: Sequence[Variant] = [
            Variant(
                dict(zip((axis.name for axis in grid.axes), names, strict=True)),
                {
                    path: value
                    for axis, name in zip(grid.axes, names, strict=True)
                    for path, value in axis.variants[name].items()
                },
            )
            for names in product(*(axis.variants for axis in grid.axes))
        ]
        self.choices: Sequence[Mapping[str, Any]] = [
            dict(zip(grid.tune, values, strict=True)) for values in product(*grid.tune.values())
        ]

    @property
    def loggers(self) -> list[Any]:
        """The loggers of its runs, each kind once."""
        found = [{**self.common, **variant.values}["trainer.logger"] for variant in self.variants]
        return [one for place, one in enumerate(found) if one not in found[:place]]

    @property
    def count(self) -> int:
        """How many runs there are in all."""
        tuning = len(self.choices) * len(self.grid.tune_seeds) if self.grid.tune else 0
        return len(self.variants) * (tuning + len(self.grid.seeds))

    def tuning(self, variant: Variant) -> list[tuple[Mapping[str, Any], list[Cell]]]:
        """Return each tuned value with the runs that judge it for a variant."""
        grid = self.grid
        return [
            (choice, [self._cell(variant, choice, seed, tests=False) for seed in grid.tune_seeds])
            for choice in (self.choices if grid.tune else ())
        ]

    def compared(self, variant: Variant, tuned: Mapping[str, Any]) -> list[Cell]:
        """Return the runs that show what a variant reaches with these tuned values."""
        return [self._cell(variant, tuned, seed, tests=self.grid.test) for seed in self.grid.seeds]

    def possible(self) -> dict[str, Cell]:
        """Return every run that this grid may come to, by its id."""
        runs = [
            cell
            for variant in self.variants
            for runs in (
                *(runs for _, runs in self.tuning(variant)),
                *(self.compared(variant, choice) for choice in self.choices),
            )
            for cell in runs
        ]
        return {cell.id: cell for cell in runs}

    def _cell(self, variant: Variant, tuned: Mapping[str, Any], seed: int, *, tests: bool) -> Cell:
        values = {**self.common, **variant.values, **tuned, "seed_everything": seed}
        text = json.dumps([values, tests, self.grid.threads], sort_keys=True, default=str)
        name = blake2b((self._base + text).encode(), digest_size=5).hexdigest()
        purpose = "tune" if seed in self.grid.tune_seeds else "compare"
        return Cell(name, variant, tuned, seed, values, tests, purpose)


def _needed(base: Mapping[str, Any], grid: Grid) -> dict[str, Any]:
    """Return what callbacks of the runs cannot do without, and the base's logger where it is W&B's."""
    trainer = base.get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    values = [grid.set, *(values for axis in grid.axes for values in axis.variants.values())]
    callbacks = f"{trainer.get('callbacks')} {values}"
    logger = among(trainer.get("logger")) or any(name in callbacks for name in LOGGING)
    return {"trainer.enable_checkpointing": "ModelCheckpoint" in callbacks, "trainer.logger": logger}
