"""What a search chooses from: the kinds of the catalogue, and how strong each may be."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from lightning_byz.attacks import (
    ALIE,
    IPM,
    Attack,
    BitFlip,
    Constant,
    Gaussian,
    Mimic,
    MinMax,
    MinSum,
    NonFinite,
    Optimized,
    Replay,
    ReverseGradient,
    SignFlip,
)

Parameters = Mapping[str, Any]
"""What a search has chosen: a kind, and its arguments under ``KIND.ARGUMENT``."""


@dataclass(frozen=True)
class Strength:
    """A number other than zero, chosen evenly on a logarithmic scale.

    Args:
        low: Smallest size.
        high: Largest size.
        signed: Whether it may be negative.
        whole: Whether it is a whole number.
    """

    low: float
    high: float
    signed: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Choice:
    """One of several values, as a config writes them; a search knows them by their places."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Kind:
    """A class of the catalogue, and which of its arguments are searched.

    Args:
        attack: The class.
        arguments: How each argument is chosen; the others stay at their defaults.
        given: The defaults of those for which the class has none.
        rungs: Values of arguments that are tried once each, early on, because the defaults of this kind are often harmless where these are not.
    """

    attack: type[Attack]
    arguments: Mapping[str, Strength | Choice]
    given: Mapping[str, Any] = field(default_factory=dict)
    rungs: Sequence[Mapping[str, Any]] = ()

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.attack.__name__

    @property
    def graded(self) -> bool:
        """Whether it has a strength."""
        return any(isinstance(one, Strength) for one in self.arguments.values())

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The default of each argument."""
        own = {one.name: one.default for one in fields(self.attack) if one.default is not MISSING}  # pyright: ignore[reportArgumentType]
        return {**self.given, **own}

    @property
    def fixed(self) -> Mapping[str, Any]:
        """The attack with its defaults, as a config writes it."""
        return written(self.attack, self.defaults)

    def chosen(self, parameters: Parameters) -> Mapping[str, Any]:
        """Return the attack with these arguments, as a config writes it; numbers have four digits, all of which are printed."""
        given = {name: _value(one, f"{self.name}.{name}", parameters) for name, one in self.arguments.items()}
        return written(self.attack, {**self.defaults, **given})

    def parameters(self, values: Mapping[str, Any] | None = None) -> Parameters:
        """Return what chooses these values, and else the defaults, as far as a choice can: None as a strength is none."""
        found: dict[str, Any] = {"kind": self.name}
        for name, one in self.arguments.items():
            key, value = f"{self.name}.{name}", {**self.defaults, **(values or {})}[name]
            if isinstance(one, Choice):
                found[key] = one.values.index(spelt(value))
            elif value is not None and one.low <= abs(value) <= one.high:
                found |= {key: abs(value), **({f"{key}.sign": "-" if value < 0 else "+"} if one.signed else {})}
        return found


def catalogue(mimicked: Sequence[int]) -> list[Kind]:
    """Return the kinds that are searched: all that need to know nothing of the data.

    Args:
        mimicked: Workers who never attack, and whom :class:`Mimic` may copy.
    """
    directions = Choice(("std", "unit", "sign"))
    return [
        Kind(SignFlip, {}),
        Kind(ReverseGradient, {"factor": Strength(0.1, 1e3)}, rungs=({"factor": 3.0},)),
        Kind(IPM, {"epsilon": Strength(0.01, 100)}, rungs=({"epsilon": 1.0},)),
        Kind(ALIE, {"z": Strength(0.1, 30, signed=True)}, rungs=({"z": -1.0}, {"z": 1.0})),
        Kind(MinMax, {"deviation": directions}, rungs=({"deviation": "unit"}, {"deviation": "sign"})),
        Kind(MinSum, {"deviation": directions}),
        Kind(Mimic, {"worker": Choice((None, *mimicked))}),
        Kind(Gaussian, {"deviation": Strength(1e-3, 1e3)}),
        Kind(Constant, {"value": Strength(1e-3, 1e3, signed=True)}, rungs=({"value": 0.1},)),
        Kind(NonFinite, {"value": Choice((".nan", ".inf", "-.inf"))}),
        Kind(Replay, {"delay": Strength(1, 20, whole=True)}),
        Kind(BitFlip, {"flips": Choice((1, 2, 4, 8)), "coordinates": Strength(1, 1e4, whole=True)}),
        Kind(
            Optimized,
            {"attack": Choice((_ALIE, _IPM, _REVERSED, _RAISED)), "high": Strength(0.5, 100)},
            given={"attack": _ALIE},
            rungs=({"attack": _REVERSED}, {"attack": _RAISED}),
        ),
    ]


def fixed(kinds: Sequence[Kind]) -> list[tuple[Parameters, Mapping[str, Any]]]:
    """Return what comes first, as a search chooses it and as a config writes it: each kind with its defaults, and the line search of :class:`IPM`."""
    lines = [(kind, kind.parameters({"attack": _IPM})) for kind in kinds if kind.attack is Optimized]
    known = [(kind.parameters(), kind.fixed) for kind in kinds]
    return known + [(parameters, kind.chosen(parameters)) for kind, parameters in lines]


def ladder(kinds: Sequence[Kind]) -> list[Parameters]:
    """Return what comes next: the first rung of each kind that has one, then the second of each."""
    rungs = [(place, kind.parameters(rung)) for kind in kinds for place, rung in enumerate(kind.rungs)]
    return [parameters for _, parameters in sorted(rungs, key=lambda one: one[0])]


def written(kind: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object as a config writes it.

    Example:
        >>> written(NonFinite, {"value": math.nan})
        {'class_path': 'lightning_byz.attacks.NonFinite', 'init_args': {'value': '.nan'}}
    """
    path = f"lightning_byz.attacks.{kind.__name__}"
    return {"class_path": path, "init_args": {name: spelt(value) for name, value in arguments.items()}}


def _value(one: Strength | Choice, key: str, parameters: Parameters) -> Any:
    given = parameters[key]
    if isinstance(one, Choice):
        return one.values[given]
    if one.whole:
        return int(given)
    size = float(f"{given:.4g}")
    return -size if parameters.get(f"{key}.sign") == "-" else size


def spelt(value: Any) -> Any:
    """Return a value as JSON and YAML both read it.

    Example:
        >>> spelt({"value": [math.inf, 1.0]})
        {'value': ['.inf', 1.0]}
    """
    if isinstance(value, Mapping):
        return {name: spelt(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [spelt(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return value


_ALIE, _IPM, _REVERSED = (written(kind, {}) for kind in (ALIE, IPM, ReverseGradient))
_RAISED = written(ALIE, {"z": -1.0})
