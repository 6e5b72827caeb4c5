"""What a pass that nobody may see leaves in a module, put back."""

import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from lightning_byz.inside_torch import INTERNALS, version
from lightning_byz.rounds.buffers import SMALL, same

FEW = 1024
"""Items up to which a container is searched for others and for tensors."""

_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, torch.device, torch.dtype, torch.Size})
_DRAWS: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    torch.Generator: (torch.Generator.get_state, torch.Generator.set_state),
    random.Random: (random.Random.getstate, random.Random.setstate),
    np.random.RandomState: (np.random.RandomState.get_state, np.random.RandomState.set_state),
    np.random.Generator: (
        lambda one: one.bit_generator.state,
        lambda one, state: setattr(one.bit_generator, "state", state),
    ),
}

Restore = Callable[[], None]


class Unseen:
    """Puts a module back as it was: attributes, containers, tensors and random generators that it holds, at any depth.

    It does not look into other Python objects (a counter of the user's own), containers of more than 1,024 items, arrays of more than 65,536 numbers,
    sparse tensors, and what lies outside the module. Large tensors, and parameters that are trained, are copied and compared at the first pass, to
    learn which of them passes write to, also through ``.data``; those are copied from then on, and writes to the others are noticed unless they
    go through ``.data``.

    Args:
        module: The user's module.

    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._unwritten: set[str] = set()
        self._known: set[int] = set()
        self._trained: set[int] = set()
        self._restores: list[Restore] = []

    @contextmanager
    def after(self, trained: Iterable[Tensor] = ()) -> Iterator[None]:
        """Put everything back at the end of the block, however it ends, but for the gradients of what is trained.

        Raises:
            ValueError: If the pass wrote to a parameter that is trained, or to a large tensor that no pass wrote to before.

        """
        self._known, self._restores, self._trained = set(), [], {id(one) for one in trained}
        self._look_after(self._module, "")
        restores, self._known, self._restores = self._restores, set(), []
        try:
            yield
        finally:
            for restore in restores:
                restore()

    def _look_after(self, thing: Any, name: str) -> None:
        if type(thing) in _PLAIN or id(thing) in self._known:
            return
        self._known.add(id(thing))
        if isinstance(thing, Tensor):
            self._tensor(thing, name)
        elif isinstance(thing, nn.Module):
            self._parts(thing, name)
        elif isinstance(thing, dict):
            self._restores.append(partial(_put_back, thing, dict(thing)))
            self._items(thing, name)
        elif isinstance(thing, list | set | deque | tuple):
            if not isinstance(thing, tuple):
                self._restores.append(partial(_put_back_items, thing, list(thing)))
            self._items(dict(enumerate(thing)) if len(thing) <= FEW else {}, name)
        elif isinstance(thing, np.ndarray):
            if thing.size <= SMALL and thing.flags.writeable:
                self._restores.append(partial(np.copyto, thing, thing.copy()))
        elif known := _DRAWS.get(type(thing)):
            self._restores.append(partial(known[1], thing, known[0](thing)))

    def _parts(self, module: nn.Module, name: str) -> None:
        own = vars(module)
        self._restores.append(partial(_put_back, own, dict(own)))
        inner = [(own[kind], own[kind].copy()) for kind in INTERNALS if isinstance(own.get(kind), dict | set)]
        self._restores.append(partial(_put_back_each, inner))
        for key, value in own.items():
            if key not in INTERNALS:
                self._look_after(value, f"{name}.{key}".lstrip("."))
        for kind in ("_parameters", "_buffers", "_modules"):
            for key, value in own[kind].items():
                self._look_after(value, f"{name}.{key}".lstrip("."))

    def _items(self, items: dict, name: str) -> None:
        for key, value in items.items() if len(items) <= FEW else ():
            self._look_after(value, f"{name}[{key!r}]")

    def _tensor(self, tensor: Tensor, name: str) -> None:
        if tensor.is_inference() or tensor.layout is not torch.strided:
            return
        trained = id(tensor) in self._trained or (isinstance(tensor, nn.Parameter) and tensor.requires_grad)
        if tensor.requires_grad and tensor.is_leaf and not trained:
            self._restores.append(partial(setattr, tensor, "grad", tensor.grad))
            tensor.grad = None if tensor.grad is None else tensor.grad.clone()
        if name in self._unwritten:
            self._restores.append(partial(_refuse_written, tensor, version(tensor), name))
        else:
            kept = tensor.detach().clone()
            self._restores.append(partial(self._restore, tensor, version(tensor), name, kept, trained=trained))

    def _restore(self, tensor: Tensor, before: int, name: str, kept: Tensor, *, trained: bool) -> None:
        if version(tensor) != before or not same(tensor.detach(), kept):
            tensor.data.copy_(kept)
            if trained:
                _refuse(name)
        elif trained or tensor.numel() > SMALL:
            self._unwritten.add(name)


def _put_back(own: dict, before: dict) -> None:
    """Give a dict its old items, in their order."""
    if list(own) != list(before):
        own.clear()
    for key, value in before.items():
        if key not in own or own[key] is not value:
            own[key] = value


def _put_back_each(pairs: list) -> None:
    for own, before in pairs:
        if own or before:
            (_put_back if isinstance(own, dict) else _put_back_items)(own, before)


def _put_back_items(own: Any, before: Collection) -> None:
    """Give a list, a deque or a set its old items."""
    if len(own) == len(before) and all(map(_is, own, before)):
        return
    own.clear()
    if isinstance(own, set):
        own.update(before)
    else:
        own.extend(before)


def _is(first: object, second: object) -> bool:
    return first is second


def _refuse_written(tensor: Tensor, before: int, name: str) -> None:
    if version(tensor) != before:
        _refuse(name)


def _refuse(name: str) -> NoReturn:
    raise ValueError(
        f"'{name}' is written to in place while a loss is computed, and an estimator with two points computes each loss twice, the first time unseen,"
        " which this cannot be: write to it between two steps, such as in on_train_batch_end, or use an estimator with one point, such as"
        " WorkerMomentum()."
    )
