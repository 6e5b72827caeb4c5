"""A line search about the best strength so far."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_byz.redteam.space import Kind, Parameters, Strength

CLOSE = 1.05
"""The ratio of neighbouring strengths between which there is nothing left to look for."""


def halfway(kinds: Mapping[str, Kind], known: Sequence[tuple[Parameters, float]]) -> Parameters | None:
    """Return what hurt most so far among kinds with a strength, at the geometric middle of the wider gap beside it; ``None`` without such a gap.

    Args:
        kinds: By their names.
        known: What was tried, and its harm; where that is infinite there is nothing left to look for.
    """
    graded = [(harm, parameters) for parameters, harm in known if _strength(kinds, parameters)[0] in parameters]
    if not graded:
        return None
    harm, best = max(graded, key=lambda one: one[0])
    key, bounds = _strength(kinds, best)
    if math.isinf(harm) or bounds is None:
        return None
    sizes = [float(other[key]) for _, other in graded if _without(other, key) == _without(best, key)]
    here = float(best[key])
    below = max([bounds.low, *(size for size in sizes if size < here)])
    above = min([bounds.high, *(size for size in sizes if size > here)])
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
