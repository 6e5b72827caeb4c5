"""Whether a part computed twice gives the same gradient, without which honest workers of a group would be taken for liars."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_byz.exchange import Exchange
from lightning_byz.random import Streams
from lightning_byz.rounds import Aggregation, EarlierGradients, Turn
from lightning_byz.rounds.earlier import copied
from lightning_byz.rounds.same import same
from lightning_byz.strategies.earlier_pass import backward_unseen
from lightning_byz.strategies.inside_lightning import loss_of, silent, skips_backward

Gradients = Sequence[Tensor | None]


class ComputedTwice:
    """Before the first step, computes one part on each rank twice where nobody sees it, and refuses a module whose gradients differ.

    The second pass starts from the same parameters, buffers and random streams, and from whatever else the first one has left in the module, such as
    a counter or a generator of its own: the workers of a rank share these.

    Args:
        module: The user's module.
        gradients: Where unseen passes are made.
        exchange: Tells ranks what others have found.
        streams: The global random streams.
        seed: The run's seed.

    """

    def __init__(
        self,
        module: pl.LightningModule,
        gradients: EarlierGradients,
        exchange: Exchange,
        streams: Streams,
        seed: int,
    ) -> None:
        self._module = module
        self._gradients = gradients
        self._exchange = exchange
        self._streams = streams
        self._seed = seed
        self._apart: float | None = None
        self._judged = False

    def compute(
        self,
        turn: Turn,
        aggregation: Aggregation,
        trained: Sequence[Tensor],
        step: Callable[..., Any],
        batch: Any,
        *rest: Any,
    ) -> None:
        """Compute a turn that is about to be seen, if it is this rank's first."""
        due = not self._judged and self._apart is None and aggregation.opened
        if not due or aggregation.round.slack(aggregation.layout.dtype) is None or skips_backward(self._module.trainer):
            return
        buffers = list(self._module.buffers())
        held, found = [buffer.clone() for buffer in buffers], []
        with silent(self._module), self._gradients.computing(turn, aggregation, trained):
            for _ in range(2):
                with self._streams.inside(self._seed, *turn.key), torch.no_grad():
                    for buffer, before in zip(buffers, held, strict=True):
                        buffer.copy_(before)
                    with torch.enable_grad():
                        found.append(self._gradients_of(trained, step, copied(batch), *rest))
        self._gradients.take(turn.worker, ())
        self._apart = apart(*found)

    def judge(self, aggregation: Aggregation) -> None:
        """Refuse to go on where a rank has found other gradients. Every rank must call it.

        Raises:
            ValueError: If a rank has.

        """
        if self._apart is None or self._judged:
            return
        self._judged, slack = True, aggregation.round.slack(aggregation.layout.dtype)
        assert slack is not None
        differs = not self._apart <= slack  # NaN where parts of both overflow
        found = torch.tensor([int(differs)], dtype=torch.int64, device=self._module.device)
        if ranks := int(self._exchange.all_reduce(found)):
            told = f", {self._apart:.2g} of its length apart" if differs else ""
            raise ValueError(
                f"{type(self._module).__name__}.training_step gave two gradients{told} for the same batch and random state, on {ranks}"
                f" rank{'s' * (ranks > 1)}, and under code= honest workers of a group must agree: let a step depend on batch, parameters, buffers and"
                " the global random streams of torch, numpy and random only, use deterministic kernels, or leave code out."
            )

    def _gradients_of(
        self, trained: Sequence[Tensor], step: Callable[..., Any], batch: Any, *rest: Any
    ) -> list[Tensor | None]:
        """The gradients of one pass, taken off the parameters."""
        loss = loss_of(step, self._module.trainer, batch, *rest)
        if loss is not None:
            backward_unseen(self._module, loss)
        gradients = [parameter.grad for parameter in trained]
        for parameter in trained:
            parameter.grad = None
        return gradients


def apart(first: Gradients, second: Gradients) -> float:
    """Return how far two gradients are apart, in parts of the length of the second; 0 for equal numbers only, infinite where one is missing.

    Example:
        >>> apart([torch.ones(4), None], [torch.ones(4), None]), apart([torch.zeros(2)], [torch.ones(2)]), apart([None], [torch.ones(1)])
        (0.0, 1.0, inf)

    """
    if any((one is None) != (other is None) for one, other in zip(first, second, strict=True)):
        return float("inf")
    known = [(one, other) for one, other in zip(first, second, strict=True) if one is not None and other is not None]
    if all(same(one, other) for one, other in known):
        return 0.0
    difference = sum(float((one.double() - other.double()).square().sum()) for one, other in known)
    length = sum(float(other.double().square().sum()) for _, other in known)
    return (difference / length) ** 0.5 if length > 0 else float("inf")
