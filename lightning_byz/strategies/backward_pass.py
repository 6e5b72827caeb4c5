"""The backward pass of a rank's only worker, which Lightning runs."""

from collections.abc import Callable
from contextlib import ExitStack

from torch import Tensor

from lightning_byz.inside_torch import at_end_of_backward
from lightning_byz.strategies.by_hand import ByHand
from lightning_byz.strategies.worker_loop import WorkerLoop


class BackwardPass:
    """Runs in the worker's random streams, with its buffers, and aggregates as soon as all gradients are there: where DDP does.

    Args:
        loop: Knows the worker's streams and buffers.
        by_hand: Keeps gradients of earlier passes apart under manual optimization.

    """

    def __init__(self, loop: WorkerLoop, by_hand: ByHand) -> None:
        self._loop = loop
        self._by_hand = by_hand
        self._around = ExitStack()
        self._last: Callable[[], None] | None = None

    def begin(self, loss: Tensor, aggregate: Callable[[], None] | None) -> None:
        """Prepare the pass from ``loss``; ``aggregate`` is called at its end, before hooks see the gradients."""
        self._around.close()  # of a pass that was broken off
        self._around.enter_context(self._loop.around_backward())
        self._by_hand.begin()

        def last() -> None:
            self._by_hand.end()
            if aggregate is not None:
                aggregate()

        self._last = last
        at_end_of_backward(loss, self._finish)

    def end(self) -> None:
        """Leave the worker's streams and buffers."""
        self._finish()
        self._around.close()

    def _finish(self) -> None:
        """Do what belongs to the end of the pass, once."""
        last, self._last = self._last, None
        if last is not None:
            last()
