"""What workers log in their training steps, logged by the server's module: each has only their word for it."""

from collections.abc import Mapping, Sequence

import lightning.pytorch as pl
import torch

NAMES = 64
"""Names that a run's workers may log under."""
_FLAGS = ("prog_bar", "logger", "on_step", "on_epoch")


class WorkerLog:
    """Collects what the workers of an update have logged, and logs the mean of each value with it.

    Args:
        module: The server's module, which logs while it is in a training step.

    """

    def __init__(self, module: pl.LightningModule) -> None:
        self._module = module
        self._flags: dict[str, dict[str, bool | None]] = {}
        self._values: dict[str, list[float]] = {}

    def note(self, logged: Mapping[str, tuple[float, Sequence[bool | None]]]) -> None:
        """Take what a turn has logged. The first to use a name says how it is logged."""
        for name, (value, flags) in logged.items():
            if name not in self._flags:
                if len(self._flags) >= NAMES or "/dataloader_idx_" in name or list(flags[2:]) == [False, False]:
                    continue
                padded = [*flags, *[None] * (len(_FLAGS) - len(flags))]
                self._flags[name] = dict(zip(_FLAGS, padded, strict=True))
                self._flags[name]["prog_bar"] = bool(padded[0])
            self._values.setdefault(name, []).append(value)

    def tell(self) -> None:
        """Log what was noted since the last call."""
        values, self._values = self._values, {}
        for name, numbers in values.items():
            mean = torch.tensor(numbers, dtype=torch.float64).mean().to(torch.get_default_dtype())
            self._module.log(name, mean, batch_size=1, **self._flags[name])  # type: ignore[arg-type]
