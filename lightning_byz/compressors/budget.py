"""How many coordinates are kept: a part of them or a number, of the whole vector or of each parameter tensor."""

from collections.abc import Iterator
from typing import Literal, Protocol, runtime_checkable

from lightning_byz.compressors.coordinates import Coordinates

Per = Literal["vector", "tensor"]


@runtime_checkable
class _Keeping(Protocol):
    """What keeps some coordinates."""

    @property
    def ratio(self) -> float | None:
        """Which part is kept."""
        ...

    @property
    def k(self) -> int | None:
        """How many are kept."""
        ...

    @property
    def per(self) -> Per:
        """Of what."""
        ...


def check_budget(rule: _Keeping) -> None:
    """Refuse what says nothing, two things or nonsense about how many coordinates are kept."""
    name, ratio, k = type(rule).__name__, rule.ratio, rule.k
    if (ratio is None) == (k is None):
        raise ValueError(
            f"{name}(ratio={ratio}, k={k}): give either a ratio, {name}(0.01), or a number, {name}(k=100)."
        )
    number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
    if ratio is not None and not (number and 0.0 < ratio <= 1.0):
        raise ValueError(
            f"{name}(ratio={ratio!r}): ratio must be in (0, 1]; 0.01 keeps one coordinate in a hundred, k= a number of them."
        )
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise ValueError(f"{name}(k={k!r}): k must be a whole number of coordinates from 1 on; ratio= keeps a part.")
    if rule.per not in ("vector", "tensor"):
        raise ValueError(f"{name}(per={rule.per!r}): per must be 'vector' or 'tensor', what ratio or k holds for.")


def check_enough(rule: _Keeping, coordinates: Coordinates) -> None:
    """Refuse vectors, or tensors throughout, that have fewer coordinates than are to be kept."""
    if coordinates.stop - coordinates.start > 2**31:
        raise ValueError(
            f"{type(rule).__name__} sends int32 indices, which reach 2^31 coordinates; there are {coordinates.stop - coordinates.start}. "
            "Spread them over more ranks with AllToAll."
        )
    most = max(sizes(rule, coordinates), default=0)
    if rule.k is not None and rule.k > most:
        what = "the vector has" if rule.per == "vector" else "the largest parameter tensor has"
        raise ValueError(
            f"{type(rule).__name__}(k={rule.k}) keeps more coordinates than there are: {what} {most}. Lower k, or give a ratio."
        )


def sizes(rule: _Keeping, coordinates: Coordinates) -> tuple[int, ...]:
    """Return how many coordinates each group has: all in one, or those of each tensor."""
    return (coordinates.total,) if rule.per == "vector" else coordinates.sizes


def budgets(rule: _Keeping, coordinates: Coordinates) -> tuple[int, ...]:
    """Return how many coordinates of each group are kept."""
    return tuple(_of(rule, size) for size in sizes(rule, coordinates))


def _of(rule: _Keeping, size: int) -> int:
    wanted = rule.k if rule.ratio is None else max(1, round(rule.ratio * size))
    return min(wanted or 0, size)


def runs(rule: _Keeping, coordinates: Coordinates) -> Iterator[tuple[int, int, int]]:
    """Yield each group that the vector has something of: its number, and from where to where, counted from the vector's start."""
    if rule.per == "tensor":
        yield from coordinates.runs()
    elif coordinates.start < coordinates.stop:
        yield 0, 0, coordinates.stop - coordinates.start


def most(rule: _Keeping, coordinates: Coordinates) -> int:
    """Return how many coordinates of the vector are kept at most."""
    limits = budgets(rule, coordinates)
    return sum(min(limits[group], high - low) for group, low, high in runs(rule, coordinates))


def parts_kept(rule: _Keeping, coordinates: Coordinates) -> list[float]:
    """Return which part of each group is kept; of empty ones nothing is said."""
    pairs = zip(budgets(rule, coordinates), sizes(rule, coordinates), strict=True)
    return [count / size for count, size in pairs if size]
