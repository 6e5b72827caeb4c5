"""DDP that waits while ranks start, whose files are whole or refused, and whose process ends as it should."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.strategies import DDPStrategy

from lightning_byz.strategies.checkpoint_io import SealedCheckpointIO, read_together
from lightning_byz.strategies.inside_lightning import WrappingCheckpointIO, note_sigterm
from lightning_byz.strategies.process_group import be_patient, close_at_exit, leave_open, patience, settle


class ReliableDDPStrategy(DDPStrategy):
    """What surrounds the steps of a run: its process group and its files."""

    def setup_distributed(self) -> None:
        """Join the other ranks, however late they are: ``timeout`` counts once all have taken a step."""
        given, self._timeout = self._timeout, patience(self._timeout)
        super().setup_distributed()
        self._timeout = given
        be_patient(given)
        close_at_exit()

    def setup(self, trainer: pl.Trainer) -> None:
        """Prepare a run that a signal ends between two batches."""
        note_sigterm(trainer)
        super().setup(trainer)

    def on_exception(self, exception: BaseException) -> None:
        """Leave groups alone in which something may be under way."""
        leave_open()
        super().on_exception(exception)

    def settle(self) -> None:
        """Let ``timeout`` count from now on."""
        settle(self._timeout)

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """The user's, else files that are whole and unchanged, or refused."""
        if self._checkpoint_io is None:
            self._checkpoint_io = SealedCheckpointIO()
        elif isinstance(self._checkpoint_io, WrappingCheckpointIO):
            self._checkpoint_io.checkpoint_io = SealedCheckpointIO()  # which it takes if it wraps none yet
        return self._checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, io: CheckpointIO) -> None:
        self._checkpoint_io = io

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the file on every rank, or on none."""
        read = partial(super().load_checkpoint, checkpoint_path, weights_only=weights_only)
        return read_together(
            read, checkpoint_path, rank=self.global_rank, ranks=self.world_size, device=self.root_device
        )
