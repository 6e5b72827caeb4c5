"""What a search chooses from: the kinds of the catalogue, and how strong each may be."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
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
    """One of several values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Kind:
    """A class of the catalogue, and which of its arguments are searched.

    Args:
        attack: The class.
        arguments: How each argument is chosen; the others stay at their defaults.
    """

    attack: type[Attack]
    arguments: Mapping[str, Strength | Choice]

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
        return {one.name: one.default for one in fields(self.attack) if one.default is not MISSING}  # pyright: ignore[reportArgumentType]

    @property
    def fixed(self) -> Mapping[str, Any]:
        """The attack with its defaults, as a config writes it."""
        return written(self.attack, self.defaults)

    def chosen(self, parameters: Parameters) -> Mapping[str, Any]:
        """Return the attack with these arguments, as a config writes it; numbers have four digits, all of which are printed."""
        given = {name: _value(one, f"{self.name}.{name}", parameters) for name, one in self.arguments.items()}
        return written(self.attack, {**self.defaults, **given})

    def rung(self, part: float) -> list[Parameters]:
        """Return what chooses the strengths at this part of their bounds, of either sign; arguments without one are left open."""
        found: list[dict[str, Any]] = [{"kind": self.name}]
        for name, one in self.arguments.items():
            if isinstance(one, Strength):
                key, size = f"{self.name}.{name}", one.low ** (1 - part) * one.high**part
                found = [{**each, key: round(size) if one.whole else size} for each in found]
                if one.signed:
                    found = [{**each, f"{key}.sign": sign} for each in found for sign in "+-"]
        return [each for each in found if len(each) > 1]

    def parameters(self) -> Parameters:
        """Return what would have chosen the defaults, as far as a choice can: None as a strength is none."""
        found: dict[str, Any] = {"kind": self.name}
        for name, one in self.arguments.items():
            key, value = f"{self.name}.{name}", self.defaults[name]
            if isinstance(one, Choice):
                found[key] = spelt(value)
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
        Kind(ReverseGradient, {"factor": Strength(0.1, 1e3)}),
        Kind(IPM, {"epsilon": Strength(0.01, 100)}),
        Kind(ALIE, {"z": Strength(0.1, 30, signed=True)}),
        Kind(MinMax, {"deviation": directions}),
        Kind(MinSum, {"deviation": directions}),
        Kind(Mimic, {"worker": Choice((None, *mimicked))}),
        Kind(Gaussian, {"deviation": Strength(1e-3, 1e3)}),
        Kind(Constant, {"value": Strength(1e-3, 1e3, signed=True)}),
        Kind(NonFinite, {"value": Choice((".nan", ".inf", "-.inf"))}),
        Kind(Replay, {"delay": Strength(1, 20, whole=True)}),
        Kind(BitFlip, {"flips": Choice((1, 2, 4, 8)), "coordinates": Strength(1, 1e4, whole=True)}),
    ]


def optimized() -> list[Mapping[str, Any]]:
    """Return the catalogue's own line searches, at each step anew: fixed attacks too."""
    return [written(Optimized, {"attack": written(kind, {})}) for kind in (ALIE, IPM)]


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
        return given
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
