"""What a pass that nobody may see leaves in a module, put back."""

import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_byz.inside_torch import INTERNALS, version
from lightning_byz.rounds.buffers import SMALL
from lightning_byz.rounds.same import same

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


class Unseen:
    """Puts a module back as it was: attributes, containers, tensors and random generators that it holds, at any depth.

    It does not look into other Python objects (a counter of the user's own), containers of more than 1,024 items, arrays of more than 65,536 numbers,
    tensors without strides of their own (sparse, nested, meta), and what lies outside the module. Large tensors, and parameters that are trained, are
    copied and compared at the first pass, to learn which of them passes write to, also through ``.data``; those are copied from then on, and writes
    to the others are noticed unless they go through ``.data``.

    Args:
        module: The user's module.

    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._unwritten: set[str] = set()

    @contextmanager
    def after(self, trained: Iterable[Tensor] = ()) -> Iterator[None]:
        """Put everything back at the end of the block, however it ends, but for the gradients of what is trained.

        Raises:
            ValueError: If the pass wrote to a parameter that is trained, or to a large tensor that no pass wrote to before.

        """
        before = _Before(self._module, self._unwritten, {id(one) for one in trained})
        try:
            yield
        finally:
            before.put_back()


class _Before:
    """How everything is now, in a few long lists: many small objects would have Python search all of its own for garbage."""

    def __init__(self, module: nn.Module, unwritten: set[str], trained: set[int]) -> None:
        self._unwritten = unwritten
        self._trained = trained
        self._known: set[int] = set()
        self._modules: list[dict] = []
        self._attributes: list[dict] = []
        self._containers: list[Any] = []
        self._contents: list[Any] = []
        self._watched: list[Tensor] = []
        self._versions: list[int] = []
        self._names: list[str] = []
        self._copied: list[tuple[Tensor, int, str, Tensor]] = []
        self._others: list[Callable[[], Any]] = []
        self._look_after(module, "")

    def put_back(self) -> None:
        """Put all of it back, then refuse what could not be."""
        for own, attributes in zip(self._modules, self._attributes, strict=True):
            _put_back(own, attributes)
            for kind in INTERNALS:
                if own.get(kind) and id(own[kind]) not in self._known:
                    own[kind].clear()  # it was empty
        for container, contents in zip(self._containers, self._contents, strict=True):
            (_put_back if isinstance(container, dict) else _put_back_items)(container, contents)
        for restore in self._others:
            restore()
        written = [name for tensor, seen, name, kept in self._copied if self._wrote(tensor, seen, name, kept)]
        watched = zip(self._watched, self._versions, self._names, strict=True)
        written += [name for tensor, seen, name in watched if version(tensor) != seen]
        if written:
            raise ValueError(
                f"'{written[0]}' is written to in place while a loss is computed, and an estimator with two points computes each loss twice, at first"
                " unseen, which this cannot be: write to it between two steps, such as in on_train_batch_end, or use an estimator with one"
                " point, such as WorkerMomentum()."
            )

    def _look_after(self, thing: Any, name: str) -> None:
        if type(thing) in _PLAIN or id(thing) in self._known:
            return
        self._known.add(id(thing))
        if isinstance(thing, Tensor):
            self._tensor(thing, name)
        elif isinstance(thing, nn.Module):
            self._parts(thing, name)
        elif isinstance(thing, dict | list | set | deque):
            self._containers.append(thing)
            self._contents.append(dict(thing) if isinstance(thing, dict) else list(thing))
            self._items(thing, name)
        elif isinstance(thing, tuple):
            self._items(thing, name)
        elif isinstance(thing, np.ndarray):
            if thing.size <= SMALL and thing.flags.writeable:
                self._others.append(partial(np.copyto, thing, thing.copy()))
        elif known := _DRAWS.get(type(thing)):
            self._others.append(partial(known[1], thing, known[0](thing)))

    def _parts(self, module: nn.Module, name: str) -> None:
        own, start = vars(module), f"{name}." if name else ""
        self._modules.append(own)
        self._attributes.append(own.copy())
        for key, value in own.items():
            if key not in INTERNALS:
                self._look_after(value, f"{start}{key}")
            elif value and isinstance(value, dict | set):
                self._known.add(id(value))
                self._containers.append(value)
                self._contents.append(value.copy())
        for kind in ("_parameters", "_buffers", "_modules"):
            for key, value in own[kind].items():
                self._look_after(value, f"{start}{key}")

    def _items(self, held: Any, name: str) -> None:
        if len(held) <= FEW:
            for key, value in held.items() if isinstance(held, dict) else enumerate(held):
                self._look_after(value, f"{name}[{key!r}]")

    def _tensor(self, tensor: Tensor, name: str) -> None:
        if tensor.is_inference() or tensor.is_meta or tensor.is_nested or tensor.layout is not torch.strided:
            return
        if tensor.requires_grad and tensor.is_leaf and not self._trains(tensor):
            self._others.append(partial(setattr, tensor, "grad", tensor.grad))
            tensor.grad = None if tensor.grad is None else tensor.grad.clone()
        if name in self._unwritten:
            self._watched.append(tensor)
            self._versions.append(version(tensor))
            self._names.append(name)
        else:
            self._copied.append((tensor, version(tensor), name, tensor.detach().clone()))

    def _trains(self, tensor: Tensor) -> bool:
        return id(tensor) in self._trained or (isinstance(tensor, nn.Parameter) and tensor.requires_grad)

    def _wrote(self, tensor: Tensor, seen: int, name: str, kept: Tensor) -> bool:
        """Give a tensor its old values; return whether it is one that nobody may write to."""
        trained = self._trains(tensor)
        if version(tensor) != seen or not same(tensor.detach(), kept):
            tensor.data.copy_(kept)
            return trained
        if trained or tensor.numel() > SMALL:
            self._unwritten.add(name)
        return False


def _put_back(own: dict, before: dict) -> None:
    """Give a dict its old items, in their order."""
    if list(own) != list(before):
        own.clear()
    for key, value in before.items():
        if key not in own or own[key] is not value:
            own[key] = value


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
