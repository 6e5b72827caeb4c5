"""Line searches about the best strengths so far."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_byz.redteam.space import Kind, Parameters, Strength

CLOSE = 1.05
"""The ratio of neighbouring strengths between which there is nothing left to look for."""
REACH = 4.0
"""How many times as strong or weak a neighbour is taken to be where none so near has been tried."""


def halfway(
    kinds: Mapping[str, Kind], known: Sequence[tuple[Parameters, float]], *, place: int = 0
) -> Parameters | None:
    """Return what hurts most in one line so far, at the geometric middle of the wider gap beside it; ``None`` without such a gap.

    A line is a kind with a strength, all else about it being chosen.

    Args:
        kinds: By their names.
        known: What was tried, and its harm; where that is infinite there is nothing left to look for.
        place: Of the line, 0 being that which hurts most.
    """
    lines: dict[Any, tuple[float, Parameters]] = {}
    for parameters, harm in known:
        key, _ = _strength(kinds, parameters)
        line = frozenset(_without(parameters, key).items())
        if key in parameters and (line not in lines or harm > lines[line][0]):
            lines[line] = (harm, parameters)
    ranked = sorted(lines.values(), key=lambda one: -one[0])
    if place >= len(ranked):
        return None
    harm, best = ranked[place]
    key, bounds = _strength(kinds, best)
    if math.isinf(harm) or bounds is None:
        return None
    sizes = [float(other[key]) for other, _ in known if key in other and _without(other, key) == _without(best, key)]
    here = float(best[key])
    below = max([bounds.low, here / REACH, *(size for size in sizes if size < here)])
    above = min([bounds.high, here * REACH, *(size for size in sizes if size > here)])
    far = below if here / below > above / here else above
    if max(far / here, here / far) < CLOSE:
        return None
    middle = math.sqrt(here * far)
    return {**best, key: round(middle) if bounds.whole else middle}


def _strength(kinds: Mapping[str, Kind], parameters: Parameters) -> tuple[str, Strength | None]:
    """Return the name and bounds of the strength of what was tried."""
    kind = kinds[parameters["kind"]]
    found = [(f"{kind.name}.{name}", one) for name, one in kind.arguments.items() if isinstance(one, Strength)]
    return found[0] if found else ("", None)


def _without(parameters: Parameters, key: str) -> dict[str, Any]:
    return {name: one for name, one in parameters.items() if name != key}
