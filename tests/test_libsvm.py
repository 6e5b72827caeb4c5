"""The demo on LIBSVM files: what is read, what is logged, and steps on whole shards."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

from lightning_byz import RobustStrategy
from lightning_byz.aggregators import Mean
from lightning_byz.data import IID, Dirichlet, Everyone, GammaSimilarity, Partition, SortedShards
from lightning_byz.data.labels import classes_of
from lightning_byz.demos import LibsvmData, LogisticRegression
from tests.test_partitions import TEN

pytest.importorskip("sklearn")
SAMPLES, FEATURES = 125, 6


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A gzipped file of 125 samples with 6 features, labels -1 and 1."""
    draws = np.random.default_rng(3)
    rows = draws.integers(0, 2, (SAMPLES, FEATURES)) * draws.normal(size=(SAMPLES, FEATURES)).round(3)
    rows[:, 0] = 1 + np.arange(SAMPLES)  # so that samples can be told apart
    labels = np.where(rows[:, 1:] @ np.arange(1, FEATURES) + draws.normal(size=SAMPLES) > 0, 1, -1)
    lines = [
        " ".join([f"{label:+d}", *(f"{place + 1}:{value}" for place, value in enumerate(row) if value)])
        for row, label in zip(rows, labels, strict=True)
    ]
    file = tmp_path / "small.gz"
    file.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    np.savez(tmp_path / "small.npz", rows=rows, labels=(labels > 0).astype(int))
    return str(file)


def contents(path: str) -> tuple[np.ndarray, np.ndarray]:
    known = np.load(Path(path).with_suffix(".npz"))
    return known["rows"], known["labels"]


def ready(path: str, **arguments) -> LibsvmData:
    data = LibsvmData(path, **arguments)
    data.setup("fit")
    return data


def trainer(**arguments) -> Trainer:
    return Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **arguments,
    )  # fmt: skip


def test_what_is_read(path: str) -> None:
    data, (rows, labels) = ready(path, dtype="float64"), contents(path)
    read = torch.cat([data.train.rows, data.validation.rows])
    order = read[:, 0].long() - 1
    assert sorted(order.tolist()) == list(range(SAMPLES))
    np.testing.assert_array_equal(read, rows[order])
    np.testing.assert_array_equal(torch.cat([data.train.labels, data.validation.labels]), labels[order])
    assert (len(data.train), len(data.validation)) == (100, 25)
    assert classes_of(data.train).tolist() == data.train.labels.tolist()
    single = ready(path)
    assert single.train.rows.dtype == torch.float32
    assert torch.equal(single.train.rows, data.train.rows.float())
    assert not torch.equal(single.train.rows, ready(path, seed=1).train.rows)
    assert len(ready(path, held=0.5).validation) == 62


def test_plain_text_and_other_labels(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("2 1:1\n1 2:3\n" * 5)
    data = ready(str(tmp_path / "plain"))
    rows, labels = data.train.rows, data.train.labels
    assert torch.equal(labels, (rows[:, 0] == 1).long())
    (tmp_path / "three").write_text("2 1:1\n1 2:3\n3 1:1\n")
    with pytest.raises(ValueError, match=r"has the labels \[1.0, 2.0, 3.0\], and LibsvmData reads files of two"):
        ready(str(tmp_path / "three"))
    with pytest.raises(FileNotFoundError, match=r"There is no file .*gone: give LibsvmData the path"):
        ready(str(tmp_path / "gone"))


@pytest.mark.parametrize("arguments", [{"held": 0.0}, {"held": 1.0}, {"batch_size": 0}])
def test_data_that_is_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"LibsvmData\((held|batch_size)="):
        LibsvmData("a", **arguments)


@pytest.mark.parametrize("arguments", [{"features": 0}, {"strength": -0.1}, {"strength": float("nan")}])
def test_modules_that_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match="give the number of columns, 1 or more"):
        LogisticRegression(**arguments)


@pytest.mark.parametrize(("regulariser", "strength"), [("l2", 0.00056), ("nonconvex", 0.1)])
def test_what_is_logged(path: str, regulariser: str, strength: float) -> None:
    """By the formulas, with the derivative by differences."""
    module = LogisticRegression(FEATURES, regulariser=regulariser, learning_rate=1e-3)
    seed_everything(1, verbose=False)
    run, data = trainer(max_epochs=2, precision="64-true"), LibsvmData(path, batch_size=16, dtype="float64")
    run.fit(module, data)
    x, rows, signs = (
        module.linear.weight[0].detach().numpy(),
        data.train.rows.numpy(),
        2 * data.train.labels.numpy() - 1,
    )

    def objective(x: np.ndarray) -> float:
        squares = x**2
        regular = squares.sum() / 2 if regulariser == "l2" else (squares / (1 + squares)).sum()
        return np.log1p(np.exp(-signs * (rows @ x))).mean() + strength * regular

    steps = 1e-6 * np.eye(FEATURES)
    gradient = [(objective(x + step) - objective(x - step)) / 2e-6 for step in steps]
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    assert set(logged) == {"val_loss", "val_accuracy", "gradient_norm", "tail_gradient_norm"}
    assert logged["gradient_norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    held, truth = data.validation.rows.numpy(), data.validation.labels.numpy()
    assert logged["val_accuracy"] == pytest.approx(((held @ x > 0) == truth).mean())
    assert logged["val_loss"] == pytest.approx(np.log1p(np.exp(-(2 * truth - 1) * (held @ x))).mean(), rel=1e-5)
    assert np.abs(x).max() > 0


def test_the_loss_is_logged_where_there_is_a_logger(path: str, tmp_path: Path) -> None:
    run = trainer(max_steps=1)
    run.loggers = [CSVLogger(tmp_path)]
    run.fit(LogisticRegression(FEATURES), LibsvmData(path, batch_size="full"))
    assert float(run.callback_metrics["train_loss"]) == pytest.approx(np.log(2))


def test_logits_between_0_and_1_are_logits(path: str) -> None:
    module, data = LogisticRegression(FEATURES), LibsvmData(path)
    module.linear.weight.data[0, 0] = 1e-3
    (first, _) = trainer().validate(module, data, verbose=False)
    assert first["val_accuracy"] == pytest.approx(float(data.validation.labels.double().mean()))


class Watched(LogisticRegression):
    """Remembers which samples each worker had at each step."""

    def __init__(self, **arguments) -> None:
        super().__init__(FEATURES, **arguments)
        self.seen: list[list[int]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(sorted(batch[0][:, 0].long().tolist()))
        return super().training_step(batch, batch_idx)


PARTITIONS = {
    "GammaSimilarity": GammaSimilarity(1),
    "SortedShards": SortedShards(),
    "Dirichlet": Dirichlet(0.5),
    "Everyone": Everyone(),
}


def stepped(path: str, partition: Partition) -> tuple[Watched, LibsvmData]:
    """Three epochs of four workers with whole shards."""
    seed_everything(1, verbose=False)
    module, data = Watched(learning_rate=0.01), LibsvmData(path, batch_size="full")
    strategy = RobustStrategy(workers=4, f=0, aggregator=Mean(), partition=partition, seed=2)
    run = trainer(max_epochs=3, strategy=strategy)
    run.fit(module, data)
    assert run.global_step == 3
    return module, data


@pytest.mark.parametrize("name", PARTITIONS)
def test_a_full_batch_is_the_whole_shard(path: str, name: str) -> None:
    partition = PARTITIONS[name]
    module, data = stepped(path, partition)
    shards = partition.shards(data.train, workers=4, seed=2)
    expected = [sorted(data.train.rows[torch.as_tensor(shard)][:, 0].long().tolist()) for shard in shards]
    assert module.seen == expected * 3
    if name == "Dirichlet":
        assert len({len(shard) for shard in expected}) > 1


def test_iid_deals_anew_in_each_epoch(path: str) -> None:
    seen = stepped(path, IID())[0].seen
    assert [
        len({*seen[4 * step], *seen[4 * step + 1], *seen[4 * step + 2], *seen[4 * step + 3]}) for step in range(3)
    ] == [100] * 3
    assert seen[0] != seen[4] != seen[8]


def test_plain_sgd_on_a_full_batch_is_gradient_descent(path: str) -> None:
    module, data = Watched(learning_rate=0.01), LibsvmData(path, batch_size="full")
    trainer(max_epochs=2).fit(module, data)
    assert module.seen == [sorted(data.train.rows[:, 0].long().tolist())] * 2


def test_only_room_for_all_samples_makes_a_batch_of_the_shard() -> None:
    class Uneven(Partition):
        def indices(self, dataset, *, workers, worker, seed):
            return range(700) if worker == 0 else range(700, 1000)

    def lengths(batch_size: int, *, drop_last: bool = False) -> list[int]:
        given = {"workers": 2, "shuffle": True, "seed": 0, "batch_size": batch_size, "drop_last": drop_last}
        return [len(list(sampler)) for sampler in Uneven().samplers(TEN, **given)]

    assert lengths(999) == [999, 999]
    assert lengths(1000) == lengths(4000) == [700, 300]
    assert lengths(1000, drop_last=True) == [0, 0]
