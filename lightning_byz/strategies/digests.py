"""What module and libraries must have in common at all workers and the server."""

import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

import lightning.pytorch as pl

from lightning_byz.random import derive
from lightning_byz.serving.libraries import libraries_digest

_STEP = (
    "forward",
    "training_step",
    "backward",
    "on_before_backward",
    "on_after_backward",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)
"""What of a module runs in a worker, besides what these call."""


def digests_of(module: pl.LightningModule) -> tuple[int, int]:
    """Return digests of the module, which is its tensors and the code of its step, and of the libraries that are installed here."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    words = [f"{name} {tuple(tensor.shape)} {tensor.dtype} {tensor.requires_grad}" for name, tensor in tensors]
    kinds = dict.fromkeys(type(part) for part in module.modules())
    code = [word for kind in kinds for name in _STEP for word in _words(_code(kind, name))]
    return derive(0, type(module).__qualname__, *words, *code), libraries_digest()


def _code(kind: type, name: str) -> CodeType | None:
    """Return the code of a method as it was written, whatever has been put around it."""
    method: Any = getattr(kind, name, None)
    return getattr(inspect.unwrap(method), "__code__", None) if callable(method) else None


def _words(code: CodeType | None) -> Iterator[str]:
    """Yield what a method does, without where its file lies."""
    if code is None:
        return
    yield f"{code.co_code.hex()} {code.co_names}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _words(constant)
        elif not isinstance(constant, frozenset):  # whose order differs
            yield repr(constant)
