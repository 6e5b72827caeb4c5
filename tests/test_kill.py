"""A run that is killed with SIGKILL, all processes at once, goes on from its last file as if nothing had been."""

import os
import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_byz.aggregators import CenteredClipping
from lightning_byz.attacks import Replay
from lightning_byz.estimators import WorkerMomentum
from lightning_byz.rounds.seal import refuse_damaged
from tests.scenarios import Fit, Options, fit, same_bits

STRATEGY = {
    "workers": 4,
    "f": 1,
    "aggregator": CenteredClipping(),
    "estimator": WorkerMomentum(0.9),
    "attackers": [3],
    "attack": Replay(3),
}
OPTIONS = Options(dropout=0.2, batch_norm=True, augment=True, step_scheduler=True)
STEPS = 6
SEED = 3
MOMENTS = ("on_train_batch_start", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end", "writing")


@dataclass
class Death(pl.Callback):
    """One rank kills everybody at a moment of a step, or while the step's epoch is written to its file."""

    step: int
    moment: str
    rank: int

    def __post_init__(self) -> None:
        if self.moment != "writing":
            setattr(self, self.moment, self.strike)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.moment, self.rank)

    def strike(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step >= self.step and trainer.global_rank == self.rank:
            os.killpg(os.getpgid(0), signal.SIGKILL)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        if self.moment == "writing" and trainer.global_step >= self.step:
            checkpoint["last words"] = Bomb()


class Bomb:
    """Kills everybody when half of the file is written."""

    def __reduce__(self) -> Any:
        os.killpg(os.getpgid(0), signal.SIGKILL)


def job(folder: Path, *deaths: Death, epochs: int, resume: str | None = None) -> Fit:
    keeps = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer = {
        "max_epochs": epochs,
        "enable_checkpointing": True,
        "limit_val_batches": 0,
        "callbacks": [keeps, *deaths],
    }
    return Fit(OPTIONS, STRATEGY, trainer, checkpoint=resume, seed=3 if resume is None else 99)


def killed(pool: Any, one: Fit) -> None:
    """Run a fit that somebody kills."""
    with pytest.raises(EOFError):
        pool.run(fit, one, pool.world)
    pool.kill()


def last(folder: Path) -> str:
    """The file of the last epoch that ended; all files are whole, but for what the last kill has left."""
    files = {path.name for path in folder.glob("epoch=*.ckpt")}
    left = {path.name for path in folder.glob(".lightning_byz-*.partial")}
    assert files | left == {path.name for path in folder.iterdir()}
    assert len(left) <= 1
    for name in files:
        refuse_damaged(folder / name)
    return str(folder / f"epoch={len(files) - 1}.ckpt")


def differing(first: Any, second: Any, name: str = "") -> list[str]:
    """Return where two files differ, in any bit."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        return [one for key in first for one in differing(first[key], second[key], f"{name}.{key}")]
    if isinstance(first, list):
        assert len(first) == len(second)
        return [
            one for key, pair in enumerate(zip(first, second, strict=True)) for one in differing(*pair, f"{name}.{key}")
        ]
    same = torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
    return [] if same else [name]


def parted(*files: Path) -> list[str]:
    """Return what differs in two files: parameters, buffers, optimizers, and all memories."""
    held = [torch.load(file, weights_only=True) for file in files]
    memories = held[0]["lightning_byz"]["optimizers"][0]
    assert sorted(memories["memories"]) == [0, 1, 2, 3]
    assert set(memories["rules"]) == {"reference", "attack"}
    names = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "lightning_byz")
    return differing(*({name: file[name] for name in names} for file in held))


def chain(
    ranks: Callable[[int], Any], folder: Path, worlds: Sequence[int], *, seed: int
) -> tuple[list[str], list[Death]]:
    """Kill a run once in each epoch but the first, resume it on the next number of ranks; what differs in the end, and who killed it."""
    epochs, chance, resume, deaths = len(worlds), random.Random(seed), None, []
    whole = ranks(worlds[0]).run(fit, job(folder / "whole", epochs=epochs), worlds[0])[0]
    for epoch, world in enumerate(worlds[:-1], 1):
        moment = chance.choice(MOMENTS)
        step, rank = epoch * STEPS + chance.randrange(1, STEPS), 0 if moment == "writing" else chance.randrange(world)
        deaths.append(Death(step, moment, rank))
        killed(ranks(world), job(folder / "killed", deaths[-1], epochs=epochs, resume=resume))
        resume = last(folder / "killed")
    results = ranks(worlds[-1]).run(fit, job(folder / "killed", epochs=epochs, resume=resume), worlds[-1])
    kinds = ("parameters", "buffers")
    names = [name for result in results for kind in kinds for name in same_bits(result[kind], whole[kind])]
    assert not list((folder / "killed").glob(".*")), "what was left goes with the next file"
    return names + parted(*(folder / one / f"epoch={epochs - 1}.ckpt" for one in ("killed", "whole"))), deaths


def test_a_run_that_is_killed_three_times_equals_no_interruption_on_any_layout(ranks, tmp_path):
    names, deaths = chain(ranks, tmp_path, [2, 2, 1, 4], seed=SEED)
    assert not names
    assert "writing" in [death.moment for death in deaths]
