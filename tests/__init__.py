"""Tests; ``check`` is the checker of types and shapes that pytest switches on in the package: an int is a float, as in Python itself.

Its import hook decorates every function with ``jaxtyping.jaxtyped``, those inside functions whenever these run. That one has beartype make
two new functions each time, and in each call binds the arguments in Python and checks them twice, which took most of the time of the laws. The one
below checks the same annotations in the same scope of shapes, once, by one function of beartype's for all closures of one code.
"""

from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial, wraps
from types import CellType, CodeType, FunctionType
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError))
_JAXTYPED = jaxtyping.jaxtyped
_MADE: dict[CodeType, tuple[FunctionType, Any]] = {}
"""For the code of closures, one without anything in its cells, and what beartype made of that."""


def jaxtyped(function: Any = None, *, typechecker: Any = None) -> Any:
    """As jaxtyping's own for what the hook decorates: functions, and classes, of which dataclasses have an ``__init__`` that nobody wrote."""
    if function is None:
        return partial(jaxtyped, typechecker=typechecker)
    if isinstance(function, FunctionType):
        return _scoped(function, _checked(function))
    if not isinstance(function, type):
        return _JAXTYPED(function, typechecker=typechecker)
    if is_dataclass(function) and not hasattr(function.__init__, "__wrapped__"):
        function.__init__ = jaxtyped(function.__init__)
    return function


def _scoped(function: Callable, checked: Callable) -> Callable:
    """The checked function, in each of whose calls the name of a dimension stands for one size."""
    if checked is function:  # without annotations
        return function

    @wraps(function)
    def inside(*args: Any, **keywords: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **keywords)
        with _JAXTYPED("context"):
            return checked(*args, **keywords)

    return inside


def _checked(function: FunctionType) -> Callable:
    """What beartype makes of a function; for a closure, a copy of what it made of the first one with the same code, if annotations are the same."""
    if "<locals>" not in function.__qualname__:
        return check(function)
    if function.__code__ not in _MADE:
        cells = tuple(CellType() for _ in function.__code__.co_freevars)
        like = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
        for name in ("__annotations__", "__qualname__", "__module__"):
            setattr(like, name, getattr(function, name))
        _MADE[function.__code__] = like, check(like)
    like, made = _MADE[function.__code__]
    keywords = {} if made is like else made.__kwdefaults__
    if like.__annotations__ != function.__annotations__ or not any(value is like for value in keywords.values()):
        return check(function)
    copy = FunctionType(made.__code__, made.__globals__, made.__name__, made.__defaults__, made.__closure__)
    copy.__kwdefaults__ = {name: function if value is like else value for name, value in keywords.items()}
    return copy


jaxtyping.jaxtyped = jaxtyped
