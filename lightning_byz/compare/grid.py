"""What ``grid.yaml`` says: the axes of a comparison, and what is made of its runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from lightning_byz.compare.names import COLUMNS, name_of, plain, short_names
from lightning_byz.compare.yaml_file import GridMistake, read
from lightning_byz.kinds import hint, listed

Values = Mapping[str, Any]
"""Dotted paths into the config of a fit, and what is written there."""


@dataclass(frozen=True)
class Axis:
    """One axis of the grid.

    Args:
        name: What it is called in tables and figures.
        variants: For the name of each variant, what it writes where.
    """

    name: str
    variants: Mapping[str, Values]

    @property
    def paths(self) -> set[str]:
        """Where its variants write."""
        return {path for values in self.variants.values() for path in values}


@dataclass(frozen=True)
class Grid:
    """A comparison.

    Args:
        base: The config of a fit, relative to the grid's file.
        axes: What varies; axes multiply.
        seeds: Seeds of the runs of each variant, the same for all.
        set: What differs from the base in every run.
        tune: Values of which each variant takes the best.
        tune_seeds: Seeds of the runs that choose it, none of ``seeds``.
        metric: By which runs are compared, as the module logs it in validation; the last evaluation counts.
        mode: Whether more of it is better, or less.
        baseline: The variants of some axes against which the others are compared, on equal seeds.
        test: Whether runs end with a test, which is reported apart; runs that tune never do.
        processes: How many run at the same time; 0 for the command's own, for a debugger.
        threads: Of torch, in each process: bits of a run are equal for equal numbers of threads.
        output: The folder of the results.
    """

    base: Path
    axes: tuple[Axis, ...]
    output: Path
    seeds: tuple[int, ...] = (1, 2, 3)
    set: Values = field(default_factory=dict)
    tune: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    tune_seeds: tuple[int, ...] = ()
    metric: str = "val_accuracy"
    mode: Literal["max", "min"] = "max"
    baseline: Mapping[str, str] = field(default_factory=dict)
    test: bool = False
    processes: int = 1
    threads: int = 1

    @property
    def tuned(self) -> tuple[str, ...]:
        """The tuned paths by their short names, or whole where an axis has that name."""
        names, taken = short_names(tuple(self.tune)), {axis.name for axis in self.axes}
        return tuple(path if name in taken else name for path, name in zip(self.tune, names, strict=True))


def read_grid(path: Path, over: Values | None = None) -> Grid:
    """Read a grid from its file.

    Args:
        path: The file.
        over: What goes over its ``set``.

    Raises:
        GridMistake: For a key or value that no grid has.
    """
    given = read(path, "grid")
    known = ["grid", *(one.name for one in fields(Grid) if one.name != "axes")]
    for key in given:
        if key not in known:
            near = hint(str(key), known) or f"a grid has {listed(known)}."
            raise GridMistake(f"{path}: there is no key {str(key)!r}: {near}")
    if not given.get("base"):
        raise GridMistake(f"{path} has no base: give the config of a fit, such as base: quickstart.yaml.")
    base = path.parent / _of(given["base"], str, "base", "the path of a config, relative to the grid's file")
    if not base.is_file():
        raise GridMistake(f"base={given['base']}: there is no file {base}; base is relative to the grid's file.")
    try:
        grid = Grid(
            base=base,
            axes=_axes(given.get("grid")),
            output=Path(_of(given.get("output", f"runs/compare/{path.stem}"), str, "output", "the path of a folder")),
            seeds=_seeds(given.get("seeds", [1, 2, 3]), "seeds"),
            set={**_mapping(given.get("set"), "set", "trainer.max_epochs: 5"), **(over or {})},
            tune={key: _choices(key, values) for key, values in _tune(given.get("tune")).items()},
            tune_seeds=_seeds(given["tune_seeds"], "tune_seeds") if "tune_seeds" in given else (),
            metric=_of(given.get("metric", "val_accuracy"), str, "metric", "the name of a logged metric"),
            mode=_mode(given.get("mode", "max")),
            baseline={
                axis: name_of(one)
                for axis, one in _mapping(given.get("baseline"), "baseline", "aggregator: Mean").items()
            },
            test=_of(given.get("test", False), bool, "test", "true or false"),
            processes=_of(given.get("processes", 1), int, "processes", "a whole number"),
            threads=_of(given.get("threads", 1), int, "threads", "a whole number"),
        )
        return _checked(grid)
    except GridMistake as mistake:
        raise GridMistake(f"{path}: {mistake}") from None


def _axes(given: Any) -> tuple[Axis, ...]:
    if not isinstance(given, dict) or not given:
        raise GridMistake("the grid is empty: give axes under grid, such as trainer.strategy.aggregator: [Mean, Krum].")
    names = short_names([str(key) for key in given])
    return tuple(_axis(name, str(key), value) for name, (key, value) in zip(names, given.items(), strict=True))


def _axis(name: str, key: str, given: Any) -> Axis:
    if isinstance(given, list) and given:
        names = [name_of(value) for value in given]
        if twice := [one for one in names if names.count(one) > 1]:
            raise GridMistake(f"axis {key} has {twice[0]} twice: leave one out, or give variants names in a mapping.")
        return Axis(name, {one: {key: value} for one, value in zip(names, given, strict=True)})
    if isinstance(given, dict) and given:
        return Axis(
            key, {str(one): _mapping(values, f"{key}, {one}", "trainer.strategy.f: 2") for one, values in given.items()}
        )
    what = "has no values" if given in ([], {}, None) else f"is {name_of(given)}"
    raise GridMistake(f"axis {key} {what}: give a list of values, or a mapping of named variants.")


def _mapping(given: Any, key: str, example: str) -> dict[str, Any]:
    if given is not None and not isinstance(given, dict):
        raise GridMistake(f"{key} is {name_of(given)}: give a mapping, such as {{{example}}}.")
    return {str(path): value for path, value in (given or {}).items()}


def _tune(given: Any) -> dict[str, Any]:
    return _mapping(given, "tune", "model.learning_rate: [0.05, 0.1, 0.2]")


def _choices(key: str, given: Any) -> tuple[Any, ...]:
    if not isinstance(given, list) or not given:
        raise GridMistake(f"tune, {key} is {name_of(given)}: give a list of values, such as [0.05, 0.1, 0.2].")
    if twice := [one for place, one in enumerate(given) if one in given[:place]]:
        raise GridMistake(f"tune, {key} has {name_of(twice[0])} twice: leave one out.")
    return tuple(given)


def _seeds(given: Any, key: str) -> tuple[int, ...]:
    if not isinstance(given, list) or not given or not all(type(one) is int and one >= 0 for one in given):
        raise GridMistake(f"{key}={name_of(given)}: give a list of whole numbers, such as [1, 2, 3].")
    if max(given) >= 2**32:
        raise GridMistake(f"{key}={name_of(given)}: seeds are below 2**32.")
    if twice := [one for place, one in enumerate(given) if one in given[:place]]:
        raise GridMistake(f"{key}={name_of(given)} has {twice[0]} twice: equal seeds are the same run.")
    return tuple(given)


def _of(given: Any, kind: type, key: str, what: str) -> Any:
    if type(given) is not kind:
        raise GridMistake(f"{key}={name_of(given)}: give {what}.")
    return given


def _mode(given: Any) -> Literal["max", "min"]:
    if given not in ("max", "min"):
        raise GridMistake(f"mode={name_of(given)}: give max where more of the metric is better, or min.")
    return given


def _checked(grid: Grid) -> Grid:
    refuse_counts(grid.processes, grid.threads)
    if taken := [axis.name for axis in grid.axes if axis.name in COLUMNS]:
        raise GridMistake(f"axis {taken[0]} has the name of another column of the tables: give it another name.")
    if bool(grid.tune) != bool(grid.tune_seeds):
        raise GridMistake(
            "tune and tune_seeds go together: give values to choose from, and the seeds of the runs that choose."
        )
    if both := sorted(set(grid.seeds) & set(grid.tune_seeds)):
        raise GridMistake(
            f"seed {both[0]} stands in seeds and in tune_seeds: runs must not choose what they are then judged by."
        )
    _refuse_two_writers(grid)
    axes = {axis.name: axis for axis in grid.axes}
    for name, variant in grid.baseline.items():
        if name not in axes:
            raise GridMistake(
                f"baseline: there is no axis {name!r}: {hint(name, axes) or f'give {listed(list(axes))}.'}"
            )
        if variant not in axes[name].variants:
            known = list(axes[name].variants)
            near = hint(variant, known) or f"give {listed(known)}."
            raise GridMistake(f"baseline: axis {name} has no variant {variant!r}: {near}")
    return grid


def refuse_counts(processes: int, threads: int = 1) -> None:
    """Refuse fewer processes or threads than there can be.

    Raises:
        GridMistake: Saying how many were given.
    """
    if processes < 0 or threads < 1:
        raise GridMistake(
            f"processes={processes}, threads={threads}: give 1 or more of each, or 0 processes for the command's own."
        )


def _refuse_two_writers(grid: Grid) -> None:
    writers = [(f"axis {axis.name}", path) for axis in grid.axes for path in axis.paths]
    writers += [("tune", path) for path in grid.tune] + [("set", path) for path in grid.set]
    for place, (writer, path) in enumerate(writers):
        if path == "seed_everything":
            raise GridMistake(f"{writer} sets seed_everything: give seeds instead.")
        if other := [one for one, same in writers[:place] if plain(same) == plain(path)]:
            raise GridMistake(f"{other[0]} and {writer} both set {path}: leave one of them out.")
