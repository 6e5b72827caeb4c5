"""One process, numbers computed by hand: what is remembered from step to step, and what of it is in the file."""

import pytest
import torch
from torch import nn

from lightning_byz.aggregators import Mean
from lightning_byz.attacks import Constant, Replay
from lightning_byz.estimators import WorkerMomentum
from tests.recording import ABSENT, NAN, Line, Referring, column, train
from tests.test_bites import file_of, noted, shown

pytestmark = pytest.mark.filterwarnings("ignore:Mean tolerates no Byzantine", "ignore:.*workers attack in this")


def momenta(path) -> list[float]:
    """The momentum of each worker, in the order of their ids."""
    memories = file_of(path)["optimizers"][0]["memories"]
    return [memories[worker]["estimator"]["momentum"].item() for worker in range(len(memories))]


def test_only_accepted_rows_of_taken_steps_are_remembered(tmp_path):
    rows = ((2, 4, 6, 8), (2, 4, ABSENT, NAN), (NAN, NAN, 6, 8), (4, 4, 4, 4))
    paths = {count: str(tmp_path / f"{count}.ckpt") for count in (1, 2, 3, 4)}
    record = train(noted(rows, estimator=WorkerMomentum(0.5), save=paths))
    assert [momenta(path) for path in paths.values()] == [
        [1, 2, 3, 4],
        [1.5, 3, 3, 4],
        [1.5, 3, 3, 4],
        [2.75, 3.5, 3.5, 4],
    ]
    assert shown(record, "rows") == [[1, 2, 3, 4], [1.5, 3, 0, 0], [2.75, 3.5, 3.5, 4]]
    resumed = train(
        noted(((0, 0, 0, 8),), estimator=WorkerMomentum(0.5), checkpoint=paths[4], trainer={"max_epochs": 2})
    )
    assert shown(resumed, "rows") == [[1.375, 1.75, 1.75, 6]]


def test_who_never_sent_anything_remembers_nothing(tmp_path):
    path = str(tmp_path / "one.ckpt")
    train(noted(((2, 4, ABSENT, NAN),), estimator=WorkerMomentum(0.5), save={1: path}))
    memories = file_of(path)["optimizers"][0]["memories"]
    assert {worker: own["estimator"]["momentum"].item() for worker, own in memories.items()} == {0: 1, 1: 2}


def test_who_is_weighed_by_the_size_of_a_shard_goes_on_with_what_it_remembers(tmp_path):
    path = str(tmp_path / "one.ckpt")
    plan = noted(((2, 4, 6, 8),), Referring, estimator=WorkerMomentum(0.5), weights="samples")
    train(plan.but(save={1: path}))
    resumed = train(plan.but(checkpoint=path, trainer={"max_epochs": 2}))
    assert (shown(resumed, "rows"), shown(resumed, "reference")) == ([[1.5, 3, 4.5, 6]], [2.5])
    assert column(resumed, "step") == [1]


def test_a_file_before_the_first_step_holds_no_optimizer(tmp_path):
    path = str(tmp_path / "none.ckpt")
    plan = noted(((2,), (4,)), workers=1, f=0, trainer={"accumulate_grad_batches": 2}, save={1: path})
    assert train(plan)["weight"] == -3
    assert file_of(path)["optimizers"] == {}


def test_a_narrow_module_is_resumed_in_its_own_dtype(tmp_path):
    path = str(tmp_path / "one.ckpt")
    more = {"estimator": WorkerMomentum(0.5), "trainer": {"precision": "bf16-true", "max_epochs": 2}}
    train(noted(((2, 4, 6, 8),), Referring, **more, save={1: path}))
    entry = file_of(path)["optimizers"][0]
    assert (entry["rules"]["reference"]["aggregate"].dtype, entry["memories"][0]["estimator"]["momentum"].dtype) == (
        torch.bfloat16,
        torch.float32,
    )
    resumed = train(noted(((2, 4, 6, 8),), Referring, **more, checkpoint=path))
    assert (shown(resumed, "rows"), shown(resumed, "reference")) == ([[1.5, 3, 4.5, 6]], [2.5])


def test_an_attackers_memory_is_of_what_it_computed_not_of_what_it_sent(tmp_path):
    path = str(tmp_path / "two.ckpt")
    plan = noted(
        ((2, 4, 6, 8),) * 2, estimator=WorkerMomentum(0.5), attackers=[1], attack=Constant(-9.0), save={2: path}
    )
    assert shown(train(plan), "rows") == [[1, -9, 3, 4], [1.5, -9, 4.5, 6]]
    assert momenta(path) == [1.5, 3, 4.5, 6]


def test_the_reference_is_the_last_aggregate_that_was_taken(tmp_path):
    path = str(tmp_path / "four.ckpt")
    rows = ((1, 2, 3, 6), (2, 2, 2, 2), (NAN, NAN, 3, 4), (5, 5, 5, 5))
    record = train(noted(rows, Referring, save={4: path}))
    assert shown(record, "reference") == [None, 3, 2]
    resumed = train(noted(rows, Referring, checkpoint=path, trainer={"max_epochs": 2}))
    assert shown(resumed, "reference") == [5, 3, 2]
    unasked = train(noted(rows, checkpoint=path, trainer={"max_epochs": 2}))
    assert shown(unasked, "reference") == [None] * 3


def test_past_rows_come_oldest_first_and_only_usable_ones(tmp_path):
    path = str(tmp_path / "six.ckpt")
    rows = tuple((0, 0, 0, value) for value in (1, 2, 3, NAN, ABSENT, 4))
    more = {"attackers": [3], "attack": Replay(delay=2), "estimator": WorkerMomentum(0.0)}
    record = train(noted(rows, **more, save={6: path}))
    assert [row[3] for row in shown(record, "rows")] == [1, 1, 1, 0, 0, 2]
    assert [row.item() for row in file_of(path)["optimizers"][0]["rules"]["attack"].values()] == [3, 4]
    resumed = train(noted(((0, 0, 0, 9),) * 6, **more, checkpoint=path, trainer={"max_epochs": 2}))
    assert [row[3] for row in shown(resumed, "rows")] == [3, 4, 9, 9, 9, 9]


class Thaws(Line):
    """A second parameter, before the first one in the optimizer, that trains in epochs 0 and 2."""

    def __init__(self, plan):
        super().__init__(plan)
        self.other = nn.Parameter(torch.zeros(1))

    def loss(self, x):
        return super().loss(x) + (10 * x * self.other).sum()

    def configure_optimizers(self):
        return torch.optim.SGD([self.other, self.weight], lr=1.0)

    def on_train_epoch_start(self):
        self.other.requires_grad_(self.current_epoch != 1)


def test_memories_follow_their_parameters_by_name(tmp_path):
    paths = {count: str(tmp_path / f"{count}.ckpt") for count in (1, 2, 3)}
    plan = noted(((4, 8, 8, 8),), Mean, estimator=WorkerMomentum(0.5), module=Thaws, save=paths)
    train(plan.but(trainer={"max_epochs": 3}))
    kept = [file_of(path)["optimizers"][0]["memories"][0]["estimator"]["momentum"].tolist() for path in paths.values()]
    assert kept == [[20, 2], [3], [20, 3.5]]
    assert file_of(paths[3])["optimizers"][0]["names"] == ["other", "weight"]


class TakesTurns(Thaws):
    """One of them trains in each epoch, so that their number stays."""

    def on_train_epoch_start(self):
        self.other.requires_grad_(self.current_epoch == 1)
        self.weight.requires_grad_(self.current_epoch != 1)

    def loss(self, x):
        return ((10 * self.other if self.other.requires_grad else self.weight) * x).sum(1).mean()


def test_as_many_other_parameters_are_others(tmp_path):
    paths = {count: str(tmp_path / f"{count}.ckpt") for count in (1, 2, 3)}
    plan = noted(((4, 8, 8, 8),), Mean, estimator=WorkerMomentum(0.5), module=TakesTurns, save=paths)
    record = train(plan.but(trainer={"max_epochs": 3}))
    assert [file_of(path)["optimizers"][0]["names"] for path in paths.values()] == [["weight"], ["other"], ["weight"]]
    assert [momenta(path)[0] for path in paths.values()] == [2, 20, 2]
    assert record["parameters"] == {"weight": [-7], "other": [-35]}


class ByHand(Line):
    """Two optimizers, the second of which sees ten times the gradient, in one training step."""

    def __init__(self, plan):
        super().__init__(plan)
        self.other = nn.Parameter(torch.zeros(1))
        self.automatic_optimization = False

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=1.0), torch.optim.SGD([self.other], lr=1.0)

    def training_step(self, batch, batch_idx):
        for factor, parameter, optimizer in zip((1, 10), (self.weight, self.other), self.optimizers(), strict=True):
            optimizer.zero_grad()
            loss = (factor * batch["x"] * parameter).sum()
            self.manual_backward(loss) if factor == 1 else loss.backward()
            optimizer.step()
        return {"loss": torch.zeros(())}


def test_each_optimizer_has_memories_of_its_own(tmp_path):
    path = str(tmp_path / "two.ckpt")
    plan = noted(((4,), (8,)), workers=1, f=0, estimator=WorkerMomentum(0.5), module=ByHand, save={2: path})
    record = train(plan)
    assert shown(record, "rows") == [[2], [20], [5], [50]]
    kept = {
        index: entry["memories"][0]["estimator"]["momentum"].item()
        for index, entry in file_of(path)["optimizers"].items()
    }
    assert kept == {0: 5, 1: 50}
    assert record["parameters"] == {"weight": [-7], "other": [-70]}
