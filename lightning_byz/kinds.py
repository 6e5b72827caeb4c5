"""What an argument takes, read from the signature of its class and said in words; and which names come close to a misspelt one."""

import difflib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from lightning_byz import (
    aggregators,
    arrivals,
    attacks,
    callbacks,
    codes,
    compressors,
    data,
    demos,
    estimators,
    exchange,
    links,
    optimizers,
    preaggregators,
    strategies,
)

_FAMILIES = (
    aggregators,
    arrivals,
    attacks,
    callbacks,
    codes,
    compressors,
    data,
    demos,
    estimators,
    exchange,
    links,
    optimizers,
    preaggregators,
    strategies,
)
_LIBRARIES = ("lightning_byz", "lightning", "torch")
_WORDS = {int: ["a whole number"], float: ["a number"], str: ["text"], bool: ["true", "false"], NoneType: ["null"]}


def parameters_of(kind: type) -> dict[str, inspect.Parameter]:
    """Return the named arguments of a class, with those it hands on to its bases.

    Example:
        >>> list(parameters_of(aggregators.CTMA))
        ['base']
    """
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        own = list(inspect.signature(base.__init__).parameters.values())[1:]
        named = [p for p in own if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        found = {parameter.name: parameter for parameter in named} | found
        if len(named) == len(own):
            break
    return found


def annotation_of(kind: type | None, name: str) -> Any:
    """Return what a class's argument is annotated with; ``None`` where that is not known."""
    parameter = None if kind is None else parameters_of(kind).get(name)
    return None if parameter is None or parameter.annotation is parameter.empty else parameter.annotation


def described(annotation: Any, given: str = "") -> str:
    """Return what an annotation takes, in words; "" where that cannot be said.

    Example:
        >>> described(Sequence[float | int] | Literal["samples"] | None)
        'a list of numbers, samples or null'
        >>> described(Sequence[int], given="6")
        'a list of whole numbers, such as [6]'
    """
    words = list(dict.fromkeys(word for part in _parts(annotation) for word in _words(part, given)))
    if "a number" in words and "a whole number" in words:
        words.remove("a whole number")
    return listed(words)


def listed(words: Sequence[str]) -> str:
    """Join words as a choice.

    Example:
        >>> listed(["a", "b", "c"])
        'a, b or c'
    """
    return " or ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


def choices_of(annotation: Any) -> list[str]:
    """Return the words that an annotation takes literally."""
    return [str(word) for part in _parts(annotation) if get_origin(part) is Literal for word in get_args(part)]


def takes_list(annotation: Any) -> bool:
    """Whether an annotation takes nothing but lists, or null."""
    parts = [part for part in _parts(annotation) if part is not NoneType]
    return bool(parts) and all(_is_list(part) for part in parts)


def classes_of(annotation: Any) -> list[type]:
    """Return the classes in an annotation whose instances a config builds by name.

    Example:
        >>> [kind.__name__ for kind in classes_of(Sequence[attacks.Attack] | None)]
        ['Attack']
    """
    inner = [part for part in _parts(annotation) if not _is_list(part)]
    inner += [part for listed in _parts(annotation) if _is_list(listed) for part in classes_of(get_args(listed)[0])]
    return [part for part in inner if inspect.isclass(part) and part.__module__ != "builtins"]


def names_of(kinds: Iterable[type]) -> list[str]:
    """Return the names of the loaded classes that can stand for one of these kinds, those of this package as its rooms export them.

    Example:
        >>> "IPM" in names_of([attacks.Attack]), "Krum" in names_of([attacks.Attack])
        (True, False)
    """
    ours = {name for family in _FAMILIES for name in family.__all__}
    names = {
        kind.__name__
        for root in kinds
        for kind in _below(root)
        if kind.__module__.split(".")[0] in _LIBRARIES
        and not inspect.isabstract(kind)
        and "._" not in f"{kind.__module__}.{kind.__qualname__}"
        and (not kind.__module__.startswith("lightning_byz.") or kind.__name__ in ours)
        and (kind not in kinds or is_dataclass(kind))  # an interface of ours is none
    }
    return sorted(names)


def family_of(name: str) -> str:
    """Return the kind of a class of this package, by the interface that its room exports; "" for a name of no room.

    Example:
        >>> family_of("Krum"), family_of("Krumm")
        ('Aggregator', '')
    """
    for family in _FAMILIES:
        if inspect.isclass(found := getattr(family, name, None)):
            bases = [base.__name__ for base in found.__mro__[1:] if base.__name__ in family.__all__]
            return bases[-1] if bases else found.__mro__[1].__name__
    return ""


def closest(given: str, known: Iterable[str]) -> list[str]:
    """Return the known names that are nearly as close as the closest one, if any is close.

    Example:
        >>> closest("max_epoch", ["max_epochs", "min_epochs", "max_steps"])
        ['max_epochs']
        >>> closest("robust", ["tree"])
        []
    """
    words = (given.lower(), "")
    likeness = {name: difflib.SequenceMatcher(None, words[0], name.lower()).ratio() for name in known}
    best = max(likeness.values(), default=0.0)
    near = [name for name, value in likeness.items() if value >= max(0.6, best - 0.05)]
    return sorted(near, key=lambda name: -likeness[name])[:3]


def hint(given: str, known: Iterable[str]) -> str:
    """Return the question for the closest names, or "" where none is close."""
    near = closest(given, known)
    return f"did you mean {listed(near)}?" if near else ""


def _words(part: Any, given: str) -> list[str]:
    """Return what one alternative takes: several words where it is a choice of them, none where it has no name."""
    if get_origin(part) is Literal:
        return [str(word) for word in get_args(part)]
    if _is_list(part):
        elements = described(get_args(part)[0]) if get_args(part) else ""
        plural = {"a whole number": "whole numbers", "a number": "numbers", "text": "texts"}.get(elements, "")
        kinds = classes_of(part)
        fits = given.lstrip("-").isdigit() if plural else given in names_of(kinds)
        of = f" of {plural}" if plural else f" of {kinds[0].__name__}s" if kinds else ""
        sample = given if fits else "1, 2" if plural == "whole numbers" else ""
        return [f"a list{of}" + (f", such as [{sample}]" if sample else "")]
    if part in _WORDS:
        return list(_WORDS[part])
    name = getattr(part, "__name__", "")
    return [f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"] if name else []


def _parts(annotation: Any) -> Iterator[Any]:
    """Return the alternatives of an annotation."""
    if get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _parts(part)
    elif annotation is not None:
        yield annotation


def _is_list(annotation: Any) -> bool:
    origin = get_origin(annotation)
    return inspect.isclass(origin) and issubclass(origin, Iterable) and not issubclass(origin, dict)


def _below(kind: type) -> Iterator[type]:
    yield kind
    for child in type.__subclasses__(kind):
        yield from _below(child)
