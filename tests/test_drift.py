"""Ranks that no longer train the same parameters are named at once, on every rank."""

import os
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lightning_byz.aggregators import Mean
from lightning_byz.exchange import AllToAll
from lightning_byz.rounds.drift import CHUNK, digest
from lightning_byz.strategies import RobustStrategy
from lightning_byz.strategies.process_group import patience, settle
from tests.ranks import RankFailure
from tests.scenarios import Classifier, Fit, Options, fit

STRATEGY = {"f": 0, "aggregator": Mean()}


def flipped(tensor: torch.Tensor, place: int) -> torch.Tensor:
    """The tensor with one bit of one element changed, the lowest."""
    changed = tensor.clone()
    changed.view(-1).view(torch.uint8)[place * tensor.element_size()] ^= 1
    return changed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64, torch.int8])
def test_a_digest_changes_with_every_element_and_its_place(dtype):
    for shape in ((7, 3), (CHUNK // 2, 5), (1,), ()):
        tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        own, count = int(digest([tensor])), tensor.numel()
        assert int(digest([tensor.clone()])) == own
        assert all(int(digest([flipped(tensor, place)])) != own for place in {0, count // 2, count - 1})
        if count > 1 and dtype != torch.int8:
            assert int(digest([tensor.flatten().roll(1).view(shape)])) != own


def test_a_digest_knows_bits_and_not_where_they_lie_in_memory():
    base = torch.randn(33, generator=torch.Generator().manual_seed(0))
    assert int(digest([base[1:9]])) == int(digest([base[1:9].clone()]))
    square = base[:16].view(4, 4)
    assert int(digest([square.T])) == int(digest([square.T.contiguous()])) != int(digest([square]))
    assert int(digest([torch.zeros(2)])) != int(digest([-torch.zeros(2)]))
    assert int(digest([base[:0], base, nn.Parameter(base.double())])) != int(
        digest([base, base[:0], base.double() * 2])
    )
    one, other = base[:8], base[8:16]
    assert int(digest([one, other])) != int(digest([other, one]))


class Tampers(Classifier):
    """Changes one bit of a parameter by hand, on the ranks of an environment variable of the test."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.trainer.global_step == 4 and os.environ["LOCAL_RANK"] in self.ranks:
            self.network[3].bias.data.copy_(flipped(self.network[3].bias.data, int(os.environ["LOCAL_RANK"])))


class OneTampers(Tampers):
    ranks = "1"


class TwoTamper(Tampers):
    ranks = "12"


@pytest.mark.parametrize(
    ("world", "module", "sentence"),
    [
        (2, OneTampers, "the 2 ranks have 2 different sets of parameters, and no majority says whose are right"),
        (3, OneTampers, "the parameters of rank 1 are not those of the other 2 ranks"),
        (3, TwoTamper, "the 3 ranks have 3 different sets of parameters, and no majority says whose are right"),
    ],
)
def test_a_rank_that_drifted_is_named_on_every_rank(ranks, world, module, sentence):
    with pytest.raises(RankFailure) as caught:
        ranks(world).run(fit, Fit(strategy={**STRATEGY, "digest_every": 6}, module=module), world)
    assert sorted(caught.value.failures) == list(range(world))
    for text in caught.value.failures.values():
        assert f"RanksDrifted: After 6 steps of this run {sentence}: network.3.bias" in text


def test_who_does_not_look_does_not_see(ranks):
    parted = ranks(2).run(fit, Fit(strategy={**STRATEGY, "digest_every": None}, module=OneTampers), 2)
    assert not torch.equal(*(result["parameters"]["network.3.bias"] for result in parted))


def collectives(every: int | None) -> list[int]:
    """How many collectives each step has, and how often it waits for a number."""
    counts, each = [0], []
    names, item = ("all_reduce", "broadcast", "all_gather_into_tensor", "batch_isend_irecv"), torch.Tensor.tolist

    class Counts(Classifier):
        def on_before_optimizer_step(self, optimizer):
            counts.append(0)

    def counted(call):
        def instead(*args, **kwargs):
            counts[-1] += 1
            return call(*args, **kwargs)

        return instead

    before = {name: getattr(dist, name) for name in names}
    for name in names:
        setattr(dist, name, counted(before[name]))
    torch.Tensor.tolist = counted(item)
    try:
        fit(Fit(Options(samples=64), {**STRATEGY, "digest_every": every}, {"max_epochs": 1}, Counts), 2)
    finally:
        for name, call in before.items():
            setattr(dist, name, call)
        torch.Tensor.tolist = item
    each.extend(counts[1:])
    return each


def test_one_number_travels_and_only_every_so_many_steps(ranks):
    never, sometimes = (ranks(2).run(collectives, every)[0] for every in (None, 3))
    assert [more - less for more, less in zip(sometimes, never, strict=True)] == [0, 0, 2, 0, 0, 2, 0, 0]


@pytest.mark.parametrize("every", [0, -1, True])
def test_a_wrong_number_of_steps_is_refused(every):
    with pytest.raises(ValueError, match=r"digest_every=.*give the number of steps, 1 or more"):
        RobustStrategy(**STRATEGY, digest_every=every)


# ---------------------------------------------------------------------- waiting


class StartsLate(Classifier):
    """One rank is late: in setup, in its first batch, or in its fifth."""

    late = "setup"

    def setup(self, stage):
        self.sleeps("setup")

    def training_step(self, batch, batch_idx):
        self.sleeps({0: "first batch", 4: "fifth batch"}.get(batch_idx, ""))
        return super().training_step(batch, batch_idx)

    def sleeps(self, where):
        if where == self.late and os.environ["LOCAL_RANK"] == "1":
            time.sleep(5)


class FirstBatchLate(StartsLate):
    late = "first batch"


class FifthBatchLate(StartsLate):
    late = "fifth batch"


IMPATIENT = {**STRATEGY, "timeout": timedelta(seconds=2)}


@pytest.mark.parametrize("module", [StartsLate, FirstBatchLate])
def test_the_timeout_does_not_bound_start_up(ranks, module):
    job = Fit(strategy=IMPATIENT, module=module, trainer={"max_epochs": 1})
    ranks(2).kill()
    for _ in range(2):  # the second fit finds a group that has settled
        assert [result["global_step"] for result in ranks(2).run(fit, job, 2)] == [12, 12]


def test_the_timeout_bounds_a_step(ranks):
    ranks(2).kill()
    start = time.monotonic()
    with pytest.raises(RankFailure, match="Timed out"):
        ranks(2).run(fit, Fit(strategy=IMPATIENT, module=FifthBatchLate, trainer={"max_epochs": 1}), 2)
    assert time.monotonic() - start < 40


def gathering_late() -> str:
    """Bring a tensor of rank 1, which is late, to rank 0 when ``timeout`` counts already; how that ends."""
    timeout = timedelta(seconds=1)
    dist.init_process_group("gloo", timeout=patience(timeout))
    settle(timeout)
    rank, like = dist.get_rank(), torch.zeros(3)
    time.sleep(4 * rank)
    try:
        return str(AllToAll().gather_to_first(like + rank, host=1, like=like))
    except RuntimeError as error:
        return str(error)


def test_the_timeout_bounds_what_is_gathered_for_a_file(ranks):
    ranks(2).kill()
    assert "imed out" in ranks(2).run(gathering_late)[0]
    ranks(2).kill()
