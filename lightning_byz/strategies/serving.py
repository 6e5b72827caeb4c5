"""A strategy whose process serves: Lightning's calls become messages to and from workers that go at their own pace."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_byz.serving.serving import Desk
from lightning_byz.strategies.planned import PlannedStrategy
from lightning_byz.strategies.served_data import ServedData, Update
from lightning_byz.strategies.served_run import ServedRun


class ServingStrategy(PlannedStrategy):
    """Hands Lightning's calls to a :class:`ServedRun` for the length of a fit; the attributes are the arguments of :class:`AsyncRobustStrategy`."""

    served: ServedRun | None = None
    """The workers of the present fit, or of the last."""
    _desk: Desk

    @property
    def rates(self) -> Mapping[int, float] | None:
        """Messages per second of each worker that were accepted in the present fit, or in the last; ``None`` before."""
        return None if self.served is None else self.served.rates

    def on_train_start(self) -> None:
        """Start the workers, and wait for a first message of each: what they cannot do is found before the first update."""
        super().on_train_start()
        assert self._run is not None
        assert isinstance(self._data, ServedData)
        self.served = ServedRun(self, self._run, self._data, self._desk)
        self.served.start()

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Leave an update as it is: batches are at the workers."""
        return batch if isinstance(batch, Update) else super().batch_to_device(batch, device, dataloader_idx)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for the arrivals of an update; return their mean loss."""
        assert self.served is not None
        self.report, loss = self.served.update(diagnose=self.diagnose)
        self.backward = self._gradients_are_there
        return loss

    def _gradients_are_there(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Give the parameters the aggregate."""
        assert self.served is not None
        self.served.show_gradients()
        self._unstepped = self.report
        return closure_loss

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: nn.Module | None = None, **kwargs: Any
    ) -> Any:
        """Step the user's optimizer on the aggregate, and send the new parameters to whoever has delivered."""
        output = super().optimizer_step(optimizer, closure, model, **kwargs)
        assert self.served is not None
        self.served.go_on()
        return output

    # ------------------------------------------------------------------ evaluation, checkpoints, the end

    def _show_consensus(self) -> bool:
        self._share_buffers()
        return super()._show_consensus()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the module's state, with what all workers' buffers have in common."""
        self._share_buffers()
        return super().lightning_module_state_dict()

    def _share_buffers(self) -> None:
        if self.served is not None:
            self.served.share_buffers()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Save what the workers remember in the same file: each that answers within the deadline hands it over."""
        with nullcontext() if self.served is None else self.served.handed_over():
            super().save_checkpoint(checkpoint, filepath, storage_options)

    def on_train_end(self) -> None:
        """Leave the module with what all workers' buffers have in common; the workers end."""
        super().on_train_end()
        assert self.served is not None
        self.served.end()

    def teardown(self) -> None:
        """End the workers, however the run ended."""
        if self.served is not None:
            self.served.close()
        super().teardown()
