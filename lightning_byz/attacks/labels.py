"""Finding the labels of a batch, whatever it is made of."""

import copy
import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

NAMES = ("label", "labels", "y", "target", "targets")
Flip = Callable[[Tensor], Tensor]
Place = int | str | None


class _Unlabelled(Exception):
    """Says what is wrong with a part of a batch."""


def relabelled(batch: Any, flip: Flip, place: Place = None) -> Any:
    """A batch of the same type with ``flip`` applied to its labels, which are at ``place``, or where batches usually have them.

    Raises:
        ValueError: If they are not found, or in more than one place.
    """
    try:
        return _in_batch(batch, flip, place)
    except _Unlabelled as error:
        raise ValueError(
            f"{error}, in the batch {_named(batch)}: labels are tensors of whole numbers or booleans; say where they are with labels=, "
            "the key, attribute or index of their place"
        ) from None


def _in_batch(batch: Any, flip: Flip, place: Place) -> Any:
    found = _places(batch, place)
    if len(found) > 1:
        raise _Unlabelled(f"labels could be at any of {', '.join(map(repr, found))}")
    if found:
        return _with(batch, {found[0]: _flipped(_at(batch, found[0]), flip)})
    held = {key: part for key, part in batch.items() if part is not None} if isinstance(batch, Mapping) else {}
    if held and all(isinstance(part, Mapping | list | tuple) or _places(part, place) for part in held.values()):
        return _with(batch, {key: _in_batch(part, flip, place) for key, part in held.items()})
    if isinstance(batch, list | tuple) and batch:
        return _in_sequence(batch, flip, place)
    raise _Unlabelled("there are no labels" if place is None else f"there is no {place!r}")


def _in_sequence(batch: list | tuple, flip: Flip, place: Place) -> Any:
    """Labels of every part where all have a name for them, but for what is ``None``; otherwise those of the last part."""
    held = {index: part for index, part in enumerate(batch) if part is not None}
    if held and all(_places(part, place) for part in held.values()):
        return _with(batch, {index: _in_batch(part, flip, place) for index, part in held.items()})
    last = batch[-1]
    if len(batch) > 1 and (_places(last, place) or _all_named(last, place)):
        return _with(batch, {len(batch) - 1: _in_batch(last, flip, place)})
    if len(batch) > 1 and place is None and isinstance(last, Tensor):
        return _with(batch, {len(batch) - 1: _flipped(last, flip)})
    raise _Unlabelled("the last part is no labels" if place is None else f"there is no {place!r}")


def _flipped(labels: Any, flip: Flip) -> Any:
    """What was found as labels, flipped: a tensor, a list of them, or again something with names."""
    if isinstance(labels, Tensor):
        if labels.is_floating_point() or labels.is_complex():
            raise _Unlabelled(f"what should be labels are {str(labels.dtype)[6:]} numbers")
        return flip(labels)
    if _places(labels, None):
        return _in_batch(labels, flip, None)
    if isinstance(labels, list | tuple) and labels:
        return _with(labels, {index: _flipped(part, flip) for index, part in enumerate(labels)})
    raise _Unlabelled(f"what should be labels is {_named(labels)}")


def _all_named(parts: Any, place: Place) -> bool:
    return isinstance(parts, list | tuple) and len(parts) > 0 and all(_places(part, place) for part in parts)


def _places(batch: Any, place: Place) -> list[int | str]:
    """Where the batch itself may have labels."""
    names: tuple[int | str, ...] = NAMES if place is None else (place,)
    if isinstance(batch, Mapping):
        return [name for name in names if batch.get(name) is not None]
    if isinstance(batch, list | tuple):
        fields = getattr(batch, "_fields", ())
        return [
            name for name in names if name in fields or (isinstance(name, int) and -len(batch) <= name < len(batch))
        ]
    if batch is None or isinstance(batch, Tensor | str | bytes | int | float):
        return []
    return [name for name in names if isinstance(name, str) and getattr(batch, name, None) is not None]


def _at(batch: Any, place: int | str) -> Any:
    return batch[place] if isinstance(batch, Mapping) or isinstance(place, int) else getattr(batch, place)


def _with(batch: Any, parts: Mapping[Any, Any]) -> Any:
    """A copy of ``batch`` with some of its parts replaced."""
    if isinstance(batch, list | tuple):
        fields = getattr(batch, "_fields", ())
        changed = {
            fields.index(place) if isinstance(place, str) else place % len(batch): part for place, part in parts.items()
        }
        items = [changed.get(index, part) for index, part in enumerate(batch)]
        return type(batch)(*items) if fields else type(batch)(items)
    if not isinstance(batch, Mapping) and hasattr(batch, "__dataclass_fields__"):
        return dataclasses.replace(batch, **parts)
    copied = copy.copy(batch)
    write: Callable[[Any, Any, Any], None] = operator.setitem if isinstance(batch, Mapping) else setattr
    for place, part in parts.items():
        write(copied, place, part)
    return copied


def _named(batch: Any) -> str:
    """The types that a batch is made of."""
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype)[6:]} tensor"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key!r}: {_named(part)}" for key, part in list(batch.items())[:8]) + "}"
    if isinstance(batch, list | tuple):
        inside = ", ".join([*map(_named, batch[:4]), *(["..."] if len(batch) > 4 else [])])
        return f"[{inside}]" if isinstance(batch, list) else f"({inside})"
    return type(batch).__name__
