"""The hooks around an optimizer's step that keep a module at an average of the iterates."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_byz.inside_torch import add_each, callers, copy_each, hooking_call, lerp_each, subtract_each

ATTACHED, ITERATE, STEP = "lightning_byz_anytime", "anytime_iterate", "anytime_step"
CHUNK = 2**15
"""Coordinates whose three numbers lie in a core's cache together; a multiple of every vector width, so that bits do not depend on it."""

Schedule = Callable[[int], tuple[float, float]]
"""Says gamma and alpha of a step; the first is 1."""


class Averaging:
    """Keeps the parameters of one optimizer at an average of its iterates, until :meth:`remove`.

    The pre hook runs before the closure, where it is not known which parameters will have a gradient: it copies all that train. An iterate is created
    after the first step of its parameter, for optimizers create their own state where they find none.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule) -> None:
        self._optimizer = optimizer
        self._schedule = schedule
        self._before: dict[Tensor, Tensor] = {}
        self._outer: FrameType | None = None
        self._inner = 0
        self._handles = [
            optimizer.register_step_pre_hook(self._begin),
            optimizer.register_step_post_hook(self._end),
        ]
        setattr(optimizer, ATTACHED, self)

    def remove(self) -> None:
        """Let the optimizer step by itself; iterates and counts stay in its state. A second call does nothing."""
        for handle in self._handles:
            handle.remove()
        if self._handles:
            delattr(self._optimizer, ATTACHED)
        self._handles, self._before = [], {}

    def _begin(self, optimizer: Optimizer, *_: Any) -> None:
        """Remember the query point. A step within a step, which a subclass has its parent class take, calls hooks too; the outer one counts."""
        if self._outer is not None and any(frame is self._outer for frame in callers()):
            self._inner += 1
        else:  # also after a step that raised, and so never called the hook at its end
            self._outer, self._inner = hooking_call(), 0
            self._remember(optimizer)

    def _end(self, optimizer: Optimizer, *_: Any) -> None:
        """Average, at the end of the outer step."""
        if self._inner:
            self._inner -= 1
            return
        self._outer = None
        if not _skipped(optimizer):
            self._average(optimizer)

    @torch.no_grad()
    def _remember(self, optimizer: Optimizer) -> None:
        """Copy the query point."""
        trained = [p for p in _parameters(optimizer) if p.requires_grad or p.grad is not None]
        known = [(p, self._before.get(p)) for p in trained]
        self._before = {p: one if _fits(one, p) else torch.empty_like(p) for p, one in known}
        if trained:
            copy_each(list(self._before.values()), trained)

    @torch.no_grad()
    def _average(self, optimizer: Optimizer) -> None:
        """Move the iterates of what was stepped as the optimizer has moved the parameters, and the parameters towards them."""
        apart: dict[Any, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
        for parameter, before in self._before.items():
            if parameter.grad is None:
                continue
            state = optimizer.state[parameter]
            if ITERATE not in state:
                state[ITERATE] = before.clone()
            state[STEP] = step = state.get(STEP, 0) + 1
            tensors = _real(parameter.detach()), _real(before), _real(state[ITERATE])
            if parameter.device.type == "cpu":
                move_in_chunks(*tensors, *self._schedule(step))
            else:
                apart[step, parameter.device, parameter.dtype].append(tensors)
        for key, several in apart.items():
            parameters, befores, iterates = (list(part) for part in zip(*several, strict=True))
            move_each(parameters, befores, iterates, *self._schedule(key[0]))


def move_in_chunks(parameter: Tensor, before: Tensor, iterate: Tensor, gamma: float, alpha: float) -> None:
    """Move an iterate by ``alpha`` times the step from ``before`` to the parameter, which becomes the average; tensors not in order stay whole."""
    tensors = (parameter, before, iterate)
    if parameter.numel() <= CHUNK or not all(one.is_contiguous() for one in tensors):
        _move(*tensors, gamma, alpha)
        return
    for part, was, moved in zip(*(one.view(-1).split(CHUNK) for one in tensors), strict=True):
        _move(part, was, moved, gamma, alpha)


def _move(parameter: Tensor, before: Tensor, iterate: Tensor, gamma: float, alpha: float) -> None:
    if alpha == 1.0:
        iterate.sub_(before).add_(parameter)  # exactly the parameter where the iterate was at the query point
    else:
        iterate.add_(parameter.sub_(before), alpha=alpha)
    torch.lerp(before, iterate, gamma, out=parameter)


def move_each(
    parameters: list[Tensor], befores: list[Tensor], iterates: list[Tensor], gamma: float, alpha: float
) -> None:
    """Do the same to many tensors in a few calls, which is fast on a GPU."""
    if alpha == 1.0:
        subtract_each(iterates, befores)
        add_each(iterates, parameters)
    else:
        subtract_each(parameters, befores)
        add_each(iterates, parameters, alpha=alpha)
    copy_each(parameters, befores)
    lerp_each(parameters, iterates, gamma)


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _fits(known: Tensor | None, parameter: Tensor) -> TypeGuard[Tensor]:
    """Whether what was remembered of a parameter can be written to again."""
    if known is None or (known.shape, known.dtype) != (parameter.shape, parameter.dtype):
        return False
    return known.device == parameter.device and known.stride() == parameter.stride()


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a GradScaler has told an optimizer that reads it, as fused ones do, to skip this step."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _real(values: Tensor) -> Tensor:
    return torch.view_as_real(values) if values.is_complex() else values
