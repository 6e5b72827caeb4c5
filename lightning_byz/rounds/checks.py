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


def left_apart(estimator: object, estimate: object, left: Vectors, *, row: Tensor, memory: Vectors) -> Vectors:
    """Return the memory that an estimator leaves, apart from the row, which the next step writes over.

    Raises:
        ValueError: If the message cannot travel, or the memory is not of the kind that the estimator declares.

    """
    name = type(estimator).__name__
    if not isinstance(estimate, Tensor) or estimate.shape != row.shape or estimate.dtype != row.dtype:
        raise ValueError(
            f"{name}.update must return an estimate of {row.numel()} {row.dtype} coordinates, not {named(estimate)}."
        )
    if left.keys() != memory.keys() or any(_kind(left[key]) != _kind(memory[key]) for key in left):
        raise ValueError(
            f"{name}.update returned the memory { ({key: named(value) for key, value in left.items()}) }, and"
            f" {name}.init declares { ({key: named(value) for key, value in memory.items()}) }: return the same names,"
            " shapes and dtypes."
        )
    shared = {key: value for key, value in left.items() if isinstance(value, Tensor) and share_memory(value, row)}
    return {**left, **{key: value.clone() for key, value in shared.items()}} if shared else left


def share_memory(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors lie in one storage."""
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


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
