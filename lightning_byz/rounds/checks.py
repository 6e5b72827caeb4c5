"""What a step refuses of the stages it runs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from lightning_byz.inside_torch import version
from lightning_byz.memory import Vectors


@contextmanager
def unwritten(name: str, held: Mapping[str, Sequence[Tensor | None]]) -> Iterator[None]:
    """Refuse a rule or an attack that writes to what others read."""
    versions = {key: [version(value) for value in values if value is not None] for key, values in held.items()}
    yield
    for key, values in held.items():
        if [version(value) for value in values if value is not None] != versions[key]:
            raise ValueError(f"{name} wrote to {key}, which others read: work on a copy.")


def check_estimate(name: str, estimate: object, left: Vectors, *, gradient: Tensor, memory: Vectors) -> None:
    """Refuse a message or a memory of an estimator that cannot travel or be saved."""
    if not isinstance(estimate, Tensor) or estimate.shape != gradient.shape or estimate.dtype != gradient.dtype:
        raise ValueError(
            f"{name}.update must return an estimate of {gradient.numel()} {gradient.dtype} coordinates, not"
            f" {named(estimate)}."
        )
    if {key: _kind(value) for key, value in left.items()} != {key: _kind(value) for key, value in memory.items()}:
        raise ValueError(
            f"{name}.update returned the memory { ({key: named(value) for key, value in left.items()}) }, and"
            f" {name}.init declares { ({key: named(value) for key, value in memory.items()}) }: return the same names,"
            " shapes and dtypes."
        )


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
    return (value.shape, value.dtype) if isinstance(value, Tensor) else type(value)
