"""Files that are whole or not there, and refused where a bit has changed."""

import contextlib
import fcntl
import os
import random
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch import nn

from lightning_byz.aggregators import Mean
from lightning_byz.errors import DamagedCheckpoint
from lightning_byz.rounds.seal import SEAL, TAG, refuse_damaged, write_sealed
from lightning_byz.strategies import RobustStrategy
from lightning_byz.strategies.checkpoint_io import SealedCheckpointIO, local_path
from tests.ranks import RankFailure
from tests.scenarios import Classifier, Fit, Options, attempt, fit

STRATEGY = {"workers": 4, "f": 0, "aggregator": Mean(), "seed": 0}
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def small_state() -> dict:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    shared = torch.arange(8.0)
    return {
        "epoch": 3,
        "state_dict": network.state_dict(),
        "optimizer_states": [{"state": {0: {"momentum": torch.ones(5)}}, "shared": [shared[:4], shared[4:]]}],
        "nothing": torch.zeros(0),
    }


def flipped(path: Path, place: int, bit: int, target: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    target.write_bytes(data)
    return target


def tensor_bytes(path: Path, number: int) -> range:
    """Where a tensor's numbers lie in the file."""
    with zipfile.ZipFile(path) as archive:
        info = next(one for one in archive.infolist() if one.filename.endswith(f"/data/{number}"))
    header = path.read_bytes()[info.header_offset : info.header_offset + 30]
    start = info.header_offset + 30 + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return range(start, start + info.file_size)


@pytest.fixture
def saved(tmp_path) -> Path:
    write_sealed(small_state(), tmp_path / "saved.ckpt")
    return tmp_path / "saved.ckpt"


def test_a_thousand_truncations_and_flipped_bits_are_refused(saved, tmp_path):
    draws, whole, damaged = random.Random(0), saved.read_bytes(), tmp_path / "damaged.ckpt"
    refuse_damaged(saved)
    passed = []
    for trial in range(1000):
        if trial % 2:
            cut = draws.randrange(len(whole))
            damaged.write_bytes(whole[:cut])
        else:
            cut = draws.randrange(8 * len(whole))
            flipped(saved, cut // 8, cut % 8, damaged)
        with contextlib.suppress(DamagedCheckpoint):
            refuse_damaged(damaged)
            passed.append((trial, cut))
    assert not passed


def test_every_bit_of_the_seal_and_of_the_end_counts(saved, tmp_path):
    size = saved.stat().st_size
    for place in range(size - SEAL - 24, size):
        for bit in range(8):
            with pytest.raises(DamagedCheckpoint):
                refuse_damaged(flipped(saved, place, bit, tmp_path / "damaged.ckpt"))


@pytest.mark.parametrize("cut", [1, 4, SEAL, SEAL + 1, SEAL + 22])
def test_a_file_that_lacks_its_end_or_has_more_is_refused(saved, cut):
    whole = saved.read_bytes()
    saved.write_bytes(whole[:-cut])
    with pytest.raises(DamagedCheckpoint, match="cut short"):
        refuse_damaged(saved)
    saved.write_bytes(whole + bytes(cut))
    with pytest.raises(DamagedCheckpoint):
        refuse_damaged(saved)


def test_the_tensor_in_which_a_bit_has_changed_is_named(saved, tmp_path):
    names = ["state_dict['0.weight']", "state_dict['0.bias']", "state_dict['1.weight']", "state_dict['1.bias']"]
    names += ["optimizer_states[0]['state'][0]['momentum']", "optimizer_states[0]['shared'][0]"]
    for number, name in enumerate(names):
        damaged = flipped(saved, tensor_bytes(saved, number)[-1], 6, tmp_path / "damaged.ckpt")
        with pytest.raises(DamagedCheckpoint) as caught:
            refuse_damaged(damaged)
        assert str(caught.value) == (
            f"The checkpoint {damaged} is damaged in {name}: its bytes are not those that were saved. Resume from another one."
        )


def test_a_tensor_is_named_in_whatever_order_the_records_lie(tmp_path):
    plain, other = tmp_path / "plain.ckpt", tmp_path / "other.ckpt"
    torch.save(small_state(), plain)
    with zipfile.ZipFile(plain) as archive, zipfile.ZipFile(other, "w") as reordered:
        head, data = (
            [one for one in archive.infolist() if ("/data/" in one.filename) == kind] for kind in (False, True)
        )
        for one in (*head, *reversed(data)):
            reordered.writestr(one.filename, archive.read(one))
    for number, name in enumerate(["0.weight", "0.bias", "1.weight"]):
        with pytest.raises(DamagedCheckpoint, match=rf"state_dict\['{name}'\]"):
            refuse_damaged(flipped(other, tensor_bytes(other, number)[-1], 6, tmp_path / "damaged.ckpt"))


class Unknown:
    """No class that torch.load trusts."""


@pytest.mark.parametrize(("extra", "name"), [(None, r"state_dict\['0.weight'\]"), (Unknown(), "its record data/0")])
def test_what_lightning_alone_has_saved_is_held_against_its_own_sums(tmp_path, extra, name):
    path = tmp_path / "plain.ckpt"
    torch.save({**small_state(), "extra": extra}, path)
    refuse_damaged(path)
    with pytest.raises(DamagedCheckpoint, match=f"is damaged in {name}:"):
        refuse_damaged(flipped(path, tensor_bytes(path, 0)[0], 0, tmp_path / "damaged.ckpt"))
    for cut in range(0, path.stat().st_size, 97):
        (tmp_path / "cut.ckpt").write_bytes(path.read_bytes()[:cut])
        with pytest.raises(DamagedCheckpoint, match="empty" if cut == 0 else "cut short"):
            refuse_damaged(tmp_path / "cut.ckpt")
    for record in (0, 1):
        with zipfile.ZipFile(path) as archive:
            header = archive.infolist()[record].header_offset
        with pytest.raises(DamagedCheckpoint, match="is damaged: "):
            refuse_damaged(flipped(path, header + 30, 7, tmp_path / "damaged.ckpt"))


def test_files_older_than_archives_load_as_before(tmp_path):
    path = tmp_path / "old.ckpt"
    torch.save(small_state(), path, _use_new_zipfile_serialization=False)
    assert SealedCheckpointIO().load_checkpoint(path)["epoch"] == 3


def test_everyone_reads_a_sealed_file_and_a_copy_keeps_its_seal(saved, tmp_path):
    assert saved.read_bytes()[-SEAL:].startswith(TAG)
    copy = Path(shutil.copy(saved, tmp_path / "other.name"))
    refuse_damaged(copy)
    for options in ({"weights_only": True}, {"weights_only": True, "mmap": True}):
        state = torch.load(copy, **options)
        assert torch.equal(state["state_dict"]["0.weight"], small_state()["state_dict"]["0.weight"])
    assert TorchCheckpointIO().load_checkpoint(copy)["epoch"] == 3
    with zipfile.ZipFile(copy) as archive:
        assert archive.testzip() is None


def test_a_writer_that_fails_leaves_the_old_file(saved):
    before = saved.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        write_sealed({"fails": lambda: None}, saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_full_disk_says_so_and_leaves_the_old_file(saved):
    before, limits = saved.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"could not be written: File too large: '.*saved.ckpt'"):
            write_sealed({"large": torch.zeros(10_000)}, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    happened, path = [], tmp_path / "saved.ckpt"
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda file: (happened.append(os.path.isdir(f"/proc/self/fd/{file}")), fsync(file))
    )
    monkeypatch.setattr(os, "replace", lambda *names: (happened.append(path.exists()), replace(*names)))
    write_sealed(small_state(), path)
    assert happened == [False, False, True], "the file, its name, the folder"


WRITES = """
import sys, time
from pathlib import Path
from lightning_byz.rounds.seal import write_sealed
class Slow:
    def __reduce__(self):
        print("writing", flush=True)
        time.sleep(60)
write_sealed({"slow": Slow()}, Path(sys.argv[1]))
"""


def test_what_a_killed_writer_has_left_goes_with_the_next_save_and_a_living_writer_is_left_alone(tmp_path):
    path = tmp_path / "hpc_ckpt_1.ckpt"
    trainer = pl.Trainer(default_root_dir=tmp_path, **QUIET)
    with subprocess.Popen([sys.executable, "-c", WRITES, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        write_sealed(small_state(), path)
        left = [one for one in tmp_path.iterdir() if one != path]
        writer.kill()
    assert [one.name.startswith(f".lightning_byz-{writer.pid}-") for one in left] == [True]
    assert trainer._checkpoint_connector._hpc_resume_path == str(path), "Lightning looks for a part of the name"
    (tmp_path / ".users.1.partial").touch()
    write_sealed(small_state(), path)
    assert sorted(one.name for one in tmp_path.iterdir()) == [".users.1.partial", path.name]


def test_a_file_that_is_tidied_up_before_it_is_locked_is_opened_again(tmp_path, monkeypatch):
    flock, opened = fcntl.flock, []

    def tidied(file, how):
        opened.append(Path(file.name))
        if len(opened) == 1:
            opened[0].unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", tidied)
    write_sealed(small_state(), tmp_path / "saved.ckpt")
    assert len(opened) == 2
    refuse_damaged(tmp_path / "saved.ckpt")


def test_without_locks_nothing_is_tidied_up(saved, monkeypatch):
    def refused(file, how):
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", refused)
    (saved.parent / ".lightning_byz-1-0.partial").touch()
    write_sealed(small_state(), saved)
    assert len(list(saved.parent.iterdir())) == 2


def test_remote_paths_go_lightnings_way():
    io, path = SealedCheckpointIO(), "memory://folder/saved.ckpt"
    io.save_checkpoint({"epoch": 3}, path)
    assert io.load_checkpoint(path) == {"epoch": 3}
    io.remove_checkpoint(path)
    assert [local_path(path), local_path("s3::x")] == [None, None]
    assert [local_path("file:///a/b"), local_path("~/a")] == [Path("/a/b"), Path.home() / "a"]
    with pytest.raises(TypeError, match="storage_options"):
        io.save_checkpoint({}, "here.ckpt", storage_options={"a": 1})


@pytest.mark.parametrize(
    ("given", "wrapped"),
    [(None, SealedCheckpointIO), (TorchCheckpointIO(), TorchCheckpointIO), (AsyncCheckpointIO(), AsyncCheckpointIO)],
)
@pytest.mark.parametrize("plugin", [False, True])
def test_the_users_own_way_of_writing_files_wins(given, wrapped, plugin):
    strategy = RobustStrategy(**STRATEGY, checkpoint_io=None if plugin else given)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, strategy=strategy, plugins=[given] if plugin and given else [], **QUIET
    )
    io = trainer.strategy.checkpoint_io
    assert type(io) is wrapped
    if isinstance(io, AsyncCheckpointIO):
        assert type(io.checkpoint_io) is SealedCheckpointIO


@pytest.mark.parametrize("io", [None, "async"])
def test_top_k_and_links_work(tmp_path, io):
    keeps = ModelCheckpoint(tmp_path, monitor="val_accuracy", save_top_k=2, save_last="link", filename="{epoch}")
    strategy = RobustStrategy(**STRATEGY, checkpoint_io=AsyncCheckpointIO() if io else None)
    trainer = pl.Trainer(accelerator="cpu", devices=1, strategy=strategy, max_epochs=4, callbacks=[keeps], **QUIET)
    trainer.fit(Classifier(Options()))
    assert {path.suffix for path in tmp_path.iterdir()} == {".ckpt"}
    assert len(list(tmp_path.iterdir())) == 3
    for path in tmp_path.iterdir():
        refuse_damaged(path)
        assert path.read_bytes()[-SEAL:].startswith(TAG)
    trainer.validate(Classifier(Options()), ckpt_path=str(tmp_path / "last.ckpt"), verbose=False)


def damage_here(job: Fit, devices: int, rank: str) -> tuple[str, str]:
    """Resume, on one rank from a file of its own that is damaged."""
    if os.environ["LOCAL_RANK"] == rank:
        path = Path(job.checkpoint)
        job.checkpoint = str(flipped(path, tensor_bytes(path, 1)[0], 3, path.with_name("own.ckpt")))
    return attempt(job, devices)


def test_ranks_refuse_together(ranks, tmp_path):
    path = str(tmp_path / "half.ckpt")
    ranks(2).run(fit, Fit(strategy=STRATEGY, trainer={"max_epochs": 1}, save=path), 2)
    answers = ranks(2).run(damage_here, Fit(strategy=STRATEGY, checkpoint=path), 2, "1")
    assert answers[0] == (
        "RuntimeError",
        f"Rank 1 could not read the checkpoint {path}, which this rank could: give all ranks the same file.",
    )
    assert answers[1][0] == "DamagedCheckpoint"
    assert "own.ckpt is damaged in state_dict['network.0.bias']: " in answers[1][1]
    assert (
        ranks(2).run(damage_here, Fit(strategy=STRATEGY, checkpoint=path), 2, "none")
        == [("nothing", "was refused")] * 2
    )
    with pytest.raises(RankFailure, match=r"FileNotFoundError.*absent.ckpt"):
        ranks(2).run(fit, Fit(strategy=STRATEGY, checkpoint=str(tmp_path / "absent.ckpt")), 2)
