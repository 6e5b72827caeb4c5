"""Checkpoints that a crash does not halve and a flipped bit does not pass."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lightning_byz.exchange import AllToAll
from lightning_byz.rounds.seal import refuse_damaged, write_sealed


class SealedCheckpointIO(TorchCheckpointIO):
    """Lightning's files, written at once, with their SHA-256 in them, and refused in one sentence where they are damaged.

    Any ``Trainer`` and ``torch.load`` read them. Remote paths go Lightning's own way.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write the file, sealed."""
        local = local_path(path)
        if local is None or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_sealed(checkpoint, local)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a file whose bytes are those that were saved.

        Raises:
            DamagedCheckpoint: If they are not.

        """
        local = local_path(path)
        if local is not None and local.is_file():
            refuse_damaged(local)
        return super().load_checkpoint(path, map_location, weights_only)


def local_path(path: str | Path) -> Path | None:
    """Return a path of this machine's file system, as Lightning understands it; ``None`` for a remote one."""
    text = os.fspath(path).removeprefix("file://").removeprefix("local://")
    return None if "://" in text or "::" in text else Path(text).expanduser()


def read_together(
    read: Callable[[], Mapping[str, Any]], path: object, *, rank: int, ranks: int, device: torch.device
) -> Any:
    """Return what this rank has read, if every rank could read: otherwise all ranks stop."""
    state: Mapping[str, Any] | None = None
    error: Exception | None = None
    try:
        state = read()
    except Exception as caught:
        error = caught
    mine = torch.tensor([int(error is not None and one == rank) for one in range(ranks)], device=device)
    failed = [one for one, count in enumerate(AllToAll().all_reduce(mine).tolist()) if count]
    if error is not None:
        raise error
    if failed:
        raise RuntimeError(
            f"Rank{'s' * (len(failed) > 1)} {', '.join(map(str, failed))} could not read the checkpoint {path}, which this rank could: give all ranks"
            " the same file."
        )
    return state
