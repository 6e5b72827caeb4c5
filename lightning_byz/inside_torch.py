"""Every name of torch that this package uses although it is not public, in one room."""

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from inspect import signature
from operator import attrgetter
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

add_each = torch._foreach_add_  # pyright: ignore[reportPrivateImportUsage]
"""Add many tensors in place in one call: targets, what is added, and ``alpha``, which multiplies it."""

copy_each = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]
"""Copy many tensors in one call: targets, sources."""

lerp_each = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]
"""Move many tensors in place towards others in one call: targets, ends, weight."""

parts_like = _unflatten_dense_tensors
"""Views of a flat vector in the shapes of some tensors, which must not be empty, in one call: vector, tensors."""

subtract_each = torch._foreach_sub_  # pyright: ignore[reportPrivateImportUsage]
"""Subtract many tensors in place in one call: targets, what is subtracted."""

zero_each = torch._foreach_zero_  # pyright: ignore[reportPrivateImportUsage]
"""Set many tensors to zero in one call."""


version = attrgetter("_version")
"""How often a tensor was written to in place; writes through ``.data`` are not counted."""

INTERNALS = frozenset(vars(nn.Module())) - {"training"}
"""Attributes that torch itself keeps in a module: its parts, and hooks."""


def buffers_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The module's own buffers, those of its children left out."""
    return ((name, buffer) for name, buffer in module._buffers.items() if buffer is not None)


def running_statistics(module: nn.Module) -> set[str]:
    """Return the names of the buffers that normalisation layers write without counting a new version of the tensor."""
    return {
        f"{name}.{buffer}".lstrip(".")
        for name, part in module.named_modules()
        if isinstance(part, _NormBase) and part.track_running_stats
        for buffer, _ in buffers_of(part)
    }


def at_end_of_backward(loss: Tensor, function: Callable[[], None]) -> None:
    """Call ``function`` when all gradients of the next backward pass that starts from ``loss`` are there."""

    def started(_: Tensor) -> None:
        handle.remove()
        torch.autograd.Variable._execution_engine.queue_callback(function)  # pyright: ignore[reportAttributeAccessIssue]

    if loss.requires_grad:
        handle = loss.register_hook(started)


def wait_at_most(timeout: timedelta) -> None:
    """Let the collectives of the default group wait this long from now on; messages between two ranks wait for :func:`present_timeout`."""
    torch.distributed.distributed_c10d._set_pg_timeout(timeout, None)


def present_timeout() -> timedelta | None:
    """How long a message through gloo may take, which keeps the timeout that it was opened with unless told; ``None`` for other backends."""
    if torch.distributed.get_backend() != "gloo":
        return None
    group = torch.distributed.group.WORLD
    assert group is not None
    return group._get_backend(torch.device("cpu")).options._timeout


@contextmanager
def scalers_heard() -> Iterator[list[torch.amp.GradScaler]]:
    """Note, for the length of the block, which gradient scalers scale something; those that are switched off do not."""
    heard: list[torch.amp.GradScaler] = []
    scale = torch.amp.GradScaler.scale

    @wraps(scale)
    def noted(self: torch.amp.GradScaler, outputs: Any) -> Any:
        if self.is_enabled() and not any(self is one for one in heard):
            heard.append(self)
        return scale(self, outputs)

    torch.amp.GradScaler.scale = noted
    try:
        yield heard
    finally:
        torch.amp.GradScaler.scale = scale


class AskedByScalers(Optimizer):
    """An optimizer that is told when a gradient scaler is about to look at its gradients."""

    @abstractmethod
    def asked(self) -> Optimizer:
        """Return the optimizer that steps, with gradients in place."""

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """What scalers read before anything else: whether the optimizer divides by the scale itself, and skips steps, as fused ones do."""
        try:
            optimizer = self.asked()
        except AttributeError as error:  # which a scaler would take for no
            raise RuntimeError(str(error)) from error
        return (
            getattr(optimizer, "_step_supports_amp_scaling", False)
            and "grad_scaler" not in signature(optimizer.step).parameters
        )


def callers() -> Iterator[FrameType]:
    """Yield the calls that run now, from the caller's on outwards."""
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def hooking_call() -> FrameType:
    """Return torch's call of an optimizer's step that calls the hook which asks; whoever else calls hooks is its own."""
    own = sys.modules[torch.optim.Optimizer.__module__].__file__
    return next((frame for frame in callers() if frame.f_code.co_filename == own), sys._getframe(1))
