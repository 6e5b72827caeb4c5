"""One process: buffers are each worker's own, and evaluation, files and the trained module have what they have in common."""

from datetime import timedelta

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, default_collate

from lightning_byz.aggregators import Mean
from lightning_byz.inside_torch import present_timeout
from tests.recording import ABSENT, NAN, Line, Noting, Plan, Samples, by_worker, column, train

pytestmark = pytest.mark.filterwarnings("ignore:Mean tolerates no Byzantine", "ignore:.*workers attack in this")
MEAN = "norm.running_mean"


def plan(rows, **more) -> Plan:
    """Four workers and the mean of their rows."""
    options = {name: more.pop(name) for name in list(more) if name in Plan.__dataclass_fields__}
    return Plan(rows, {"workers": 4, "f": 1, "aggregator": Mean(), **more}, **options)


def kept(path, name: str = MEAN) -> list:
    """A buffer of each worker in the file, in the order of their ids."""
    buffers = torch.load(path, weights_only=True)["lightning_byz"]["buffers"]
    return [buffers[worker][name].flatten()[0].item() for worker in range(len(buffers))]


def shared(path, name: str = MEAN) -> torch.Tensor:
    """A buffer of the module in the file."""
    return torch.load(path, weights_only=True)["state_dict"][name]


# ---------------------------------------------------------------------- buffers


class Validates(Line):
    """Writes down what validation finds in the module, and which samples."""

    def val_dataloader(self):
        return DataLoader(Samples([[10, 20, 30]], 1))

    def validation_step(self, batch, batch_idx):
        self.validated.append((self.norm.running_mean[0].item(), batch["x"].item()))


@pytest.mark.parametrize(("buffers", "first", "second"), [("median", 2.5, 3.25), ("mean", 5, 4.5)])
def test_validation_files_and_the_trained_module_have_the_consensus(tmp_path, buffers, first, second):
    paths = {count: str(tmp_path / f"{count}.ckpt") for count in (1, 2)}
    rows = ((2, 4, 6, 28), (4, 4, 4, 4))
    record = train(plan(rows, buffers=buffers, module=Validates, save=paths, trainer={"val_check_interval": 1}))
    assert [shared(path).item() for path in paths.values()] == [first, second]
    assert [kept(path) for path in paths.values()] == [[1, 2, 3, 14], [2.5, 3, 3.5, 9]]
    assert record["validated"] == [(mean, x) for mean in (first, second) for x in (10, 20)]
    assert by_worker(record, "mean") == {0: [0, 1], 1: [0, 2], 2: [0, 3], 3: [0, 14]}
    assert record["mean"] == second
    assert train(plan(rows, buffers=buffers))["mean"] == second


@pytest.mark.parametrize("bad", [NAN, ABSENT])
def test_buffers_of_a_row_that_is_not_accepted_are_not_adopted(tmp_path, bad):
    path = str(tmp_path / "two.ckpt")
    record = train(plan(((2, 4, 6, bad), (2, 4, 6, 8), (2, 4, 6, 8)), save={2: path}))
    assert by_worker(record, "mean") == {0: [0, 1, 1.5], 1: [0, 2, 3], 2: [0, 3, 4.5], 3: [0, 0, 4]}
    assert kept(path) == [1.5, 3, 4.5, 4]
    assert kept(path, "norm.num_batches_tracked") == [2, 2, 2, 1]
    assert shared(path, "norm.num_batches_tracked").item() == 2


@pytest.mark.parametrize("bad", [NAN, ABSENT])
def test_nor_are_those_of_the_only_worker_of_a_rank(bad):
    record = train(plan(((2,), (bad,), (4,), (bad,)), workers=1))
    assert by_worker(record, "mean") == {0: [0, 1, 1, 2.5]}
    assert record["mean"] == 2.5


def test_nor_are_those_of_a_step_that_is_not_taken():
    record = train(plan(((2, 4, 6, 8), (NAN, NAN, 6, 8), (2, 4, 6, 8))))
    assert by_worker(record, "mean") == {worker: [0, worker + 1, worker + 1] for worker in range(4)}


@pytest.mark.parametrize("workers", [1, 4])
def test_buffers_of_a_window_are_adopted_together(workers):
    rows = tuple(
        tuple(row[:workers]) for row in ((2, 2, 2, 2), (NAN, 4, 4, 4), (2, 2, 2, 2), (4, 4, 4, 4), (0, 0, 0, 0))
    )
    record = train(plan(rows, workers=workers, trainer={"accumulate_grad_batches": 2}))
    means = {0: [0, 1, 0, 1, 2.5], 1: [0, 1, 2.5, 2.25, 3.125]}
    assert by_worker(record, "mean") == {worker: means[min(worker, 1)] for worker in range(workers)}


class BreaksBuffers(Line):
    """Samples from 50 to 100 leave a mean behind that is not a number, though their gradients are numbers."""

    def loss(self, x):
        if bool((x > 50).all() and (x < 100).all()):
            self.norm.running_mean.fill_(NAN)
        return super().loss(x)


@pytest.mark.parametrize(("rows", "consensus"), [((60, 4, 6, 28), 3), ((2, 60, 6, 28), 3), ((60, 60, 60, 60), NAN)])
def test_a_buffer_that_is_not_finite_does_not_count(tmp_path, rows, consensus):
    path = str(tmp_path / "one.ckpt")
    record = train(plan((rows,), module=BreaksBuffers, save={1: path}))
    assert [shared(path).item(), record["mean"]] == pytest.approx([consensus] * 2, nan_ok=True)
    assert record["buffers"]["norm.num_batches_tracked"] == 1
    assert record["weight"] == -sum(rows) / 4


class ManyBuffers(Line):
    """Averages written in all the ways there are, one of them long, one in float64, one that no file has."""

    def __init__(self, plan):
        super().__init__(plan)
        for name in ("hidden", "replaced", "unsaved"):
            self.register_buffer(name, torch.zeros(1), persistent=name != "unsaved")
        self.register_buffer("long", torch.zeros(70_000))
        self.register_buffer("wide", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("idle", torch.zeros(1))
        self.quiet = nn.BatchNorm1d(70_000, momentum=0.5, affine=False)

    def loss(self, x):
        self.seen[-1]["all"] = [
            buffer.flatten()[0].item() for name, buffer in self.named_buffers() if "norm" not in name
        ]
        self.hidden.data.mul_(0.5).add_(x[0] / 2)
        self.replaced = self.replaced / 2 + x[0] / 2
        self.unsaved.lerp_(x[0], 0.5)
        self.long.lerp_(x[0], 0.5)
        self.wide.mul_(0.5).add_(x[0].double() / 2 + 1e-12)
        self.quiet(x.expand(2, 70_000))
        return super().loss(x)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_way_to_write_a_buffer_is_noticed(tmp_path, workers):
    path = str(tmp_path / "two.ckpt")
    rows = tuple(tuple(row[:workers]) for row in ((2, 4), (2, 4), (NAN, 4), (2, 4)))
    record = train(plan(rows, workers=workers, module=ManyBuffers, save={2: path}))
    for worker, means in enumerate(([0, 1, 1.5, 1.5], [0, 2, 3, 3.5])[:workers]):
        for seen, mean in zip(by_worker(record, "all")[worker], means, strict=True):
            assert seen[:5] + seen[6:7] == pytest.approx([mean] * 6)
    assert {name: kept(path, name) for name in ("long", "quiet.running_mean")} == dict.fromkeys(
        ("long", "quiet.running_mean"), [1.5, 3][:workers]
    )
    state = torch.load(path, weights_only=True)["state_dict"]
    assert "unsaved" not in state
    expected = sum([1.5, 3][:workers]) / workers + 1.5e-12
    assert (state["wide"].dtype, state["wide"].item()) == (torch.float64, pytest.approx(expected, rel=1e-15))
    assert state["long"].dtype == state["hidden"].dtype == torch.float32
    assert (state["idle"].item(), state["quiet.running_mean"].shape) == (0, (70_000,))


class Grows(Line):
    def loss(self, x):
        self.norm.running_mean.resize_(2)
        return super().loss(x)


def test_a_buffer_that_grows_is_refused():
    assert (
        "'norm.running_mean' went from shape (1,) to (2,)"
        in train(plan(((1,) * 4,), module=Grows, may_fail=True))["error"]
    )


# ---------------------------------------------------------------------- files


def test_resumed_workers_go_on_with_their_own_buffers(tmp_path):
    path = str(tmp_path / "one.ckpt")
    train(plan(((2, 4, 6, 28),), save={1: path}))
    record = train(plan(((2, 4, 6, 28),), checkpoint=path, trainer={"max_epochs": 2}))
    assert by_worker(record, "mean") == {0: [1], 1: [2], 2: [3], 3: [14]}
    assert record["mean"] == 3.75


@pytest.mark.parametrize(
    ("entry", "value", "sentence"),
    [("version", 0, "ValueError: The checkpoint holds memories of format 0; this version reads format"),
     ("workers", 6, "ValueError: The checkpoint holds the memories of 6 workers and this run has 4")],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_before_any_step(tmp_path, entry, value, sentence):
    path = str(tmp_path / "one.ckpt")
    train(plan(((2, 4, 6, 8),), save={1: path}))
    file = torch.load(path, weights_only=True)
    file["lightning_byz"][entry] = value
    torch.save(file, path)
    record = train(plan(((2, 4, 6, 8),), checkpoint=path, may_fail=True, trainer={"max_epochs": 2}))
    assert record["error"].startswith(sentence)
    assert record["seen"] == []


class SavesWeights(pl.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.path, weights_only=True)


def test_a_file_of_weights_has_the_consensus_and_no_memories(tmp_path):
    path = str(tmp_path / "one.ckpt")
    train(plan(((2, 4, 6, 28),), callbacks=[SavesWeights(path)]))
    assert shared(path).item() == 2.5
    assert "lightning_byz" not in torch.load(path, weights_only=True)


def test_a_file_without_memories_is_read_with_a_warning(tmp_path):
    path = str(tmp_path / "one.ckpt")
    train(plan(((2, 4, 6, 8),), save={1: path}))
    file = torch.load(path, weights_only=True)
    del file["lightning_byz"]
    torch.save(file, path)
    with pytest.warns(UserWarning, match="saved without lightning_byz"):
        record = train(plan(((1, 1, 1, 1),), checkpoint=path, trainer={"max_epochs": 2}))
    assert (record["weight"], column(record, "step")) == (-6, [0])


# ---------------------------------------------------------------------- the trainer's side


class Scales(Validates):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return super().on_before_batch_transfer({**batch, "x": batch["x"] * 2}, dataloader_idx)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return super().on_after_batch_transfer({**batch, "x": batch["x"] * 3}, dataloader_idx)


@pytest.mark.parametrize("workers", [1, 4])
def test_hooks_around_the_transfer_run_once(workers):
    rule = Noting()
    record = train(plan(((1, 2, 3, 4)[:workers],), workers=workers, module=Scales).under(aggregator=rule))
    assert rule.seen[0]["rows"] == [6, 12, 18, 24][:workers]
    assert [x for _, x in record["validated"]] == [60]


class Logs(Line):
    def loss(self, x):
        self.log("mean", x.mean(), on_step=False, on_epoch=True)
        return super().loss(x)


def test_a_logged_mean_is_over_the_samples_of_all_workers():
    rows = ((1, 2), (3, 4), (5, 6), (70, 8))
    record = train(plan(rows, workers=2, module=Logs, loader={"batch_size": 3}, shuffled=True))
    assert [len(seen["index"]) for seen in record["seen"]] == [3, 3, 1, 1]
    assert record["metrics"]["mean"] == pytest.approx(99 / 8)


def small_ones(samples):
    return default_collate([sample for sample in samples if sample["x"].item() < 50])


def test_also_where_batches_of_one_step_are_of_unequal_size():
    rows = ((1, 2, 3, 60), (70, 6, 7, 8))
    loader = {"batch_size": 2, "collate_fn": small_ones}
    record = train(plan(rows, workers=2, f=0, module=Logs, loader=loader, trainer={"overfit_batches": 2}))
    assert sorted(len(seen["index"]) for seen in record["seen"]) == [1, 1, 2, 2]
    assert record["metrics"]["mean"] == pytest.approx(27 / 6)


def test_only_a_training_step_is_a_workers():
    record = train(plan(((1, 2, 3, 4), (5, 6, 7, 8))))
    assert [seen["worker"] for seen in record["seen"]] == [0, 1, 2, 3] * 2
    assert column(record, "between") == [None] * 2


class Waits(Line):
    def loss(self, x):
        strategy = self.trainer.strategy
        {"all_gather": lambda: strategy.all_gather(x), "barrier": strategy.barrier}[self.plan.rows[1][0]]()
        return super().loss(x)


@pytest.mark.parametrize("call", ["all_gather", "barrier"])
def test_workers_of_one_rank_do_not_wait_for_ranks(call):
    class Asks(Waits):
        def __init__(self, plan):
            super().__init__(plan.but(rows=((1, 2),)))
            self.plan = plan

    error = train(plan(((1, 2), (call, 4)), workers=2, module=Asks, may_fail=True))["error"]
    assert error.startswith(f"RuntimeError: {call} in the training step of worker 0")


def test_the_timeout_is_the_process_groups(monkeypatch):
    given, start = [], dist.init_process_group
    monkeypatch.setattr(
        dist, "init_process_group", lambda *args, **more: (given.append(more["timeout"]), start(*args, **more))
    )
    train(plan(((1, 2, 3, 4),), timeout=timedelta(seconds=77)))
    assert given == [timedelta(minutes=30)], "while ranks start"
    assert present_timeout() == timedelta(seconds=77), "once all have taken a step"
