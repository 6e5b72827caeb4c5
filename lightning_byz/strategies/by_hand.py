"""Manual optimization with one worker per rank: which optimizers a backward pass concerns, and that none steps on what no rule has seen."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_byz.exchange import Exchange
from lightning_byz.inside_torch import version


class ByHand:
    """Watches the optimizers of a module that steps them itself; does nothing under automatic optimization.

    At the end of a ``manual_backward`` outside ``no_sync()``, each optimizer is due whose parameters have a gradient that was not aggregated
    before; a plain ``loss.backward()`` makes it due when Lightning's wrapper steps it, after whatever training_step has made of its gradients. One
    such pass belongs to one step: an aggregate that is followed by neither a step nor ``zero_grad`` must not meet another backward pass, since
    estimators remember one gradient per step; a worker alone, whose aggregate is its own gradient, may add up as many as it likes.

    Args:
        module: The user's module.
        exchange: Adds up over ranks whose optimizers are due.
        alone: Whether there is one worker in all.
        stepped: Told the index of each optimizer that has stepped.

    """

    def __init__(
        self, module: pl.LightningModule, exchange: Exchange, *, alone: bool, stepped: Callable[[int], None]
    ) -> None:
        self._module = module
        self._exchange = exchange
        self._alone = alone
        self._stepped = stepped
        self._handles: list[Any] = []
        self._watched: list[Optimizer] = []
        self._aggregated: dict[int, dict[Tensor, Tensor]] = {}
        self._aside: dict[Tensor, Tensor] = {}
        self._pending: set[int] = set()
        self._mixed: set[Tensor] = set()
        self._passing = False
        self._seen = False

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Refuse a batch that moves trained parameters although nothing was aggregated."""
        if self._module.automatic_optimization:
            yield
            return
        self._watch()
        self._seen, trained = False, [p for index in range(len(self._watched)) for p in self._trained(index)]
        before = list(map(version, trained))
        yield
        moved = [p for p, was in zip(trained, before, strict=True) if version(p) != was]
        if moved and not self._seen:
            name = next((name for name, one in self._module.named_parameters() if one is moved[0]), "a parameter")
            raise ValueError(
                f"{type(self._module).__name__}.training_step changed {name} without aggregation: call self.manual_backward(loss), outside no_sync(),"
                " and step the optimizers of configure_optimizers."
            )

    def gradients(self) -> list[object]:
        """Return what tells whether any trained parameter's gradient has been written."""
        groups = [group for optimizer in self._module.trainer.optimizers for group in optimizer.param_groups]
        present = [p.grad for group in groups for p in group["params"]]
        return [None if gradient is None else (id(gradient), version(gradient)) for gradient in present]

    def begin(self) -> None:
        """Keep what was aggregated before out of the backward pass that begins, and out of those that accumulate with it."""
        self._passing = True
        if self._module.automatic_optimization:
            return
        self._watch()
        aggregated = [pair for known in self._aggregated.values() for pair in known.items() if pair[0].grad is pair[1]]
        self._aside = {p: gradient for p, gradient in self._aside.items() if p.grad is not None} | dict(aggregated)
        for parameter, _ in aggregated:
            parameter.grad = None

    def end(self) -> None:
        """Return what was kept out to the parameters that the backward pass has not reached."""
        self._passing = False
        for parameter in [p for p in self._aside if p.grad is None]:
            parameter.grad = self._aside.pop(parameter)

    def due(self) -> Iterator[int]:
        """Yield the optimizers that the last backward pass concerns on any rank; each is aggregated before the next is asked for."""
        optimizers = self._watched
        own = [any(map(self._reached, self._trained(index))) for index in range(len(optimizers))]
        if len(own) > 1:
            flags = torch.tensor(own, dtype=torch.int64, device=self._module.device)
            own = [count > 0 for count in self._exchange.all_reduce(flags).tolist()]
        concerned = [index for index, here in enumerate(own) if here]
        owners = Counter(p for index in concerned for p in self._trained(index) if self._reached(p))
        shared = {p: p.grad.clone() for p, count in owners.items() if count > 1 and p.grad is not None}
        for index in concerned:
            for parameter in (p for p in self._trained(index) if p in shared):
                parameter.grad = shared[parameter].clone()  # not what another optimizer's aggregate has made of it
            yield from self._one(index)

    def unseen(self, index: int) -> Iterator[int]:
        """Yield the optimizer if it is about to step on gradients that were never aggregated, of a plain ``loss.backward()``, on any rank."""
        if self._module.automatic_optimization or index in self._pending:
            return
        own = torch.tensor([any(map(self._reached, self._trained(index)))], dtype=torch.int64)
        if self._exchange.all_reduce(own.to(self._module.device)).item():
            yield from self._one(index)

    def _one(self, index: int) -> Iterator[int]:
        kept = self._kept_out(index)
        if not self._alone and index in self._pending and any(bool(gradient.any()) for gradient in kept.values()):
            raise ValueError(
                f"A second backward pass reached the parameters of {self._named(index)} before it stepped: a worker sends one gradient per step."
                " Add up the losses, or run all passes but the last inside self.trainer.model.no_sync()."
            )
        yield index
        self._mixed -= {p for p in self._trained(index) if p not in kept}
        for parameter, gradient in kept.items():
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        self._aggregated[index] = {p: p.grad for p in self._trained(index) if p.grad is not None}
        self._pending.add(index)
        self._seen = True

    def _kept_out(self, index: int) -> dict[Tensor, Tensor]:
        """Leave only this backward pass's gradients; return copies of what was aggregated before, whose memory is needed."""
        for parameter in self._trained(index):
            if parameter.grad is not None and not self._reached(parameter):
                self._aside[parameter], parameter.grad = parameter.grad, None
        return {p: self._aside.pop(p).clone() for p in self._trained(index) if p in self._aside}

    def remove(self) -> None:
        """Watch no optimizer any more."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._watched = [], []
        self._aggregated.clear()
        self._aside.clear()
        self._mixed.clear()
        self._pending.clear()

    def _watch(self) -> None:
        """Hear of each step of the trainer's optimizers, whoever calls it."""
        optimizers = self._module.trainer.optimizers
        if len(optimizers) == len(self._watched) and all(map(_is, optimizers, self._watched)):
            return
        self.remove()
        self._watched = list(optimizers)
        self._handles = [one.register_step_post_hook(lambda *_, i=i: self._step(i)) for i, one in enumerate(optimizers)]
        watched = {p for one in optimizers for group in one.param_groups for p in group["params"] if p.is_leaf}
        self._handles += [p.register_post_accumulate_grad_hook(self._accumulated) for p in watched if p.requires_grad]

    def _accumulated(self, parameter: Tensor) -> None:
        """Note a plain backward pass that adds its gradient to an aggregate."""
        if not self._passing and parameter.grad is not None and not self._reached(parameter):
            self._mixed.add(parameter)

    def _step(self, index: int) -> None:
        known = self._aggregated.get(index, {})
        strange = [p for p in self._trained(index) if p.grad is not None and known.get(p) is not p.grad]
        if (strange and index not in self._pending) or not self._mixed.isdisjoint(self._trained(index)):
            raise ValueError(
                f"{self._named(index)} stepped on gradients that no rule has seen: call self.manual_backward(loss) instead of loss.backward(),"
                " and run the last pass of a step outside no_sync()."
            )
        self._pending.discard(index)
        self._seen = True
        self._stepped(index)

    def _reached(self, parameter: Tensor) -> bool:
        """Whether there is a gradient that was not aggregated yet."""
        known = [aggregated.get(parameter) for aggregated in self._aggregated.values()]
        return parameter.grad is not None and not any(parameter.grad is one for one in known)

    def _trained(self, index: int) -> Sequence[Tensor]:
        return [p for group in self._watched[index].param_groups for p in group["params"] if p.requires_grad]

    def _named(self, index: int) -> str:
        return f"optimizer {index} ({type(self._watched[index]).__name__})"


def _is(first: object, second: object) -> bool:
    return first is second
