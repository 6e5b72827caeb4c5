"""What ``self.trainer`` is in a worker that goes at its own pace: a few facts, and an error that names everything else."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torchmetrics import Metric

FACTS = (
    "max_epochs",
    "min_epochs",
    "max_steps",
    "min_steps",
    "num_training_batches",
    "estimated_stepping_batches",
    "log_every_n_steps",
    "gradient_clip_val",
    "precision",
    "default_root_dir",
)
"""What is the server's Trainer's, as it was at the start."""

CONSTANT: Mapping[str, Any] = {
    "training": True,
    "sanity_checking": False,
    "validating": False,
    "testing": False,
    "predicting": False,
    "evaluating": False,
    "accumulate_grad_batches": 1,
    "world_size": 1,
    "num_devices": 1,
    "num_nodes": 1,
    "node_rank": 0,
    "local_rank": 0,
    "global_rank": 0,
    "is_global_zero": False,
    "barebones": False,
}
"""What is the same in every worker."""

MOVING = ("current_epoch", "global_step")
"""What the server says with the parameters of each turn."""


class NotInAWorker(RuntimeError):
    """Something of the Trainer was asked for that only the serving process has."""


class WorkerTrainer:
    """Stands for the Trainer in a worker: ``current_epoch`` and ``global_step`` of the parameters that it has fetched, and a few facts of the run.

    Args:
        facts: The server's, by name.

    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        vars(self).update({**CONSTANT, **facts, "current_epoch": 0, "global_step": 0})

    def __getattr__(self, name: str) -> Any:
        """Refuse, by name, what is not here."""
        if name.startswith("__"):
            raise AttributeError(name)
        offered = ", ".join(sorted({*FACTS, *CONSTANT, *MOVING}))
        raise NotInAWorker(
            f"The training step used self.trainer.{name}, which only the serving process of AsyncRobustStrategy has: a worker has {offered}."
            " Move what needs it to a hook or a callback, which run in the serving process, or use RobustStrategy."
        )


def facts_of(trainer: pl.Trainer) -> dict[str, Any]:
    """Return what workers may know of a Trainer."""
    return {name: getattr(trainer, name) for name in FACTS}


class Notes:
    """Takes what a module logs in a worker, for the server: a number and flags by name.

    Args:
        module: The module; ``log``, ``log_dict`` and ``print`` of it and of the modules in it are this object's from now on.

    """

    def __init__(self, module: pl.LightningModule) -> None:
        self.values: dict[str, list[Any]] = {}
        for part in module.modules():
            if isinstance(part, pl.LightningModule):
                vars(part)["log"], vars(part)["log_dict"], vars(part)["print"] = self._log, self._log_all, _silent

    def taken(self) -> dict[str, list[Any]]:
        """Return what was logged since the last call."""
        values, self.values = self.values, {}
        return values

    def _log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        **_: Any,
    ) -> None:
        """Note a number; further options are those of a reduction that does not take place here."""
        if isinstance(value, Metric):
            value = value.compute()
        number = float(value.detach() if isinstance(value, Tensor) else value)
        self.values[name] = [number, bool(prog_bar), logger, on_step, on_epoch]

    def _log_all(self, dictionary: Mapping[str, Any], *args: Any, **options: Any) -> None:
        for name, value in dictionary.items():
            self._log(name, value, *args, **options)


def _silent(*_: Any, **__: Any) -> None:
    """Print nothing."""
