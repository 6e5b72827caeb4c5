"""What a step refuses of the stages it runs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from lightning_byz.estimators import Estimator
from lightning_byz.inside_torch import version
from lightning_byz.memory import Vectors
from lightning_byz.stack import Stack

_NUMBERS = {int: Integral, float: Real}


@contextmanager
def unwritten(name: str, held: Mapping[str, Sequence[Tensor | None]]) -> Iterator[None]:
    """Refuse a rule or an attack that writes to what others read."""
    versions = {key: [version(value) for value in values if value is not None] for key, values in held.items()}
    yield
    for key, values in held.items():
        if [version(value) for value in values if value is not None] != versions[key]:
            raise ValueError(f"{name} wrote to {key}, which others read: work on a copy.")


def check_memory(estimator: object, memory: object, *, coordinates: int) -> None:
    """Refuse a blank memory that cannot be saved and moved."""
    values = memory.items() if isinstance(memory, Mapping) else [("", memory)]
    for name, value in values:
        number = (isinstance(value, Tensor) and value.ndim == 0) or _kind(value) in (bool, int, float)
        if not isinstance(name, str) or not (number or (isinstance(value, Tensor) and value.shape == (coordinates,))):
            raise TypeError(
                f"{type(estimator).__name__}.init returned { ({name: named(value)} if name else named(value))!s:.200}: return a dict"
                " from names to vectors of the length of like and to numbers."
            )


def plain(memory: Mapping[str, Any]) -> Vectors:
    """Return a memory whose numbers are Python's own, as they come back from a file."""
    kinds = {key: _kind(value) for key, value in memory.items() if not isinstance(value, Tensor)}
    return {**memory, **{key: kind(memory[key]) for key, kind in kinds.items()}} if kinds else memory  # type: ignore[operator]


def estimated(
    estimator: Estimator, memory: Vectors, gradients: Sequence[Tensor], *, count: int
) -> tuple[Tensor, Vectors]:
    """Return a worker's estimate, and the memory that it leaves: apart from the first gradient, which the next step writes over.

    Raises:
        ValueError: If the message cannot travel, or the memory was written to or is not of the kind that the estimator declares.

    """
    name, row = type(estimator).__name__, gradients[0]
    versions = [version(value) for value in memory.values() if isinstance(value, Tensor)]
    answer: Any = estimator.update(memory, gradients, count=count)
    estimate, left = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
    if not isinstance(estimate, Tensor) or estimate.shape != row.shape or estimate.dtype != row.dtype:
        raise ValueError(
            f"{name}.update must return an estimate of {row.numel()} {row.dtype} coordinates, not {named(estimate)}."
        )
    if [version(value) for value in memory.values() if isinstance(value, Tensor)] != versions:
        raise ValueError(
            f"{name}.update wrote to its memory, which counts if the message is refused: return a new one."
        )
    kinds = {key: _kind(value) for key, value in left.items()} if isinstance(left, Mapping) else None
    if not isinstance(left, Mapping) or kinds != {key: _kind(value) for key, value in memory.items()}:
        given = {key: named(value) for key, value in left.items()} if isinstance(left, Mapping) else named(left)
        raise ValueError(
            f"{name}.update returned the memory {given}, and"
            f" {name}.init declares { ({key: named(value) for key, value in memory.items()}) }: return the same names,"
            " shapes and dtypes."
        )
    shared = {key: value for key, value in left.items() if isinstance(value, Tensor) and share_memory(value, row)}
    return estimate, plain({**left, **{key: value.clone() for key, value in shared.items()}} if shared else left)


def share_memory(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors lie in one storage."""
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def check_stack(name: str, mixed: object, *, like: Stack) -> None:
    """Refuse what is no stack of as many rows and coordinates."""
    if not isinstance(mixed, Stack) or mixed.vectors.shape != like.vectors.shape:
        given = named(mixed.vectors) if isinstance(mixed, Stack) else named(mixed)
        raise ValueError(f"{name} must return a Stack of {tuple(like.vectors.shape)} numbers, not {given}.")


def check_vector(name: str, vector: object, *, coordinates: int) -> None:
    """Refuse what is no aggregate."""
    if not isinstance(vector, Tensor) or vector.shape != (coordinates,) or not vector.is_floating_point():
        raise ValueError(
            f"{name} must return a floating point vector of {coordinates} coordinates, not {named(vector)}."
        )


def check_rows(name: str, rows: object, expected: tuple[int, int]) -> None:
    """Refuse what are no rows of attackers."""
    if not isinstance(rows, Tensor) or tuple(rows.shape) != expected:
        raise ValueError(
            f"{name}.replace must return {expected[0]} rows of {expected[1]} coordinates, not {named(rows)}."
        )


def named(value: object) -> str:
    """Return a tensor's shape and dtype, for messages."""
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else repr(value)


def _kind(value: object) -> object:
    """What a value is, as far as files tell: the numbers of other libraries come back as Python's."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    return (
        type(value)
        if isinstance(value, bool)
        else next((own for own in (int, float) if isinstance(value, _NUMBERS[own])), type(value))
    )


def refuse_new_shape(name: str, before: Tensor, after: Tensor) -> None:
    """Refuse a buffer of several workers that is not comparable by coordinate any more."""
    if after.shape != before.shape:
        raise ValueError(
            f"The buffer '{name}' went from shape {tuple(before.shape)} to {tuple(after.shape)} in a training step: with several workers on a rank"
            " buffers are compared by coordinate, so keep its shape, hold it in a plain attribute, or run one worker per rank."
        )
