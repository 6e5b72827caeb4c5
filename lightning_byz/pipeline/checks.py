"""What the chain refuses of the stages it runs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from lightning_byz.estimators.estimator import Memory


@contextmanager
def unwritten(name: str, held: Mapping[str, Sequence[Tensor | None]]) -> Iterator[None]:
    """Refuse a rule or an attack that writes to what others read."""
    versions = {key: [value._version for value in values if value is not None] for key, values in held.items()}
    yield
    for key, values in held.items():
        if [value._version for value in values if value is not None] != versions[key]:
            raise ValueError(f"{name} wrote to {key}, which others read: work on a copy.")


def check_estimate(name: str, estimate: Tensor, left: Memory, *, gradient: Tensor, memory: Memory) -> None:
    """Refuse a message or a memory of an estimator that cannot travel or be saved."""
    if estimate.shape != gradient.shape or estimate.dtype != gradient.dtype:
        raise ValueError(
            f"{name}.update must return an estimate of {gradient.numel()} {gradient.dtype} coordinates, not {named(estimate)}."
        )
    if {key: (value.shape, value.dtype) for key, value in left.items()} != {
        key: (value.shape, value.dtype) for key, value in memory.items()
    }:
        raise ValueError(
            f"{name}.update returned the memory { ({key: named(value) for key, value in left.items()}) }, and {name}.init declares"
            f" { ({key: named(value) for key, value in memory.items()}) }: return the same names, shapes and dtypes."
        )


def named(value: object) -> str:
    """Return a tensor's shape and dtype, for messages."""
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else repr(value)
