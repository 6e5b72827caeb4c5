"""What a pass that nobody may see leaves in a module is put back; a batch is copied without what it is a view of."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_byz.aggregators import Mean
from lightning_byz.exchange import Local
from lightning_byz.random import Streams
from lightning_byz.rounds import Aggregation, Defence, EarlierGradients, Robust, Turn, WorkerBuffers
from lightning_byz.rounds.earlier import copied
from lightning_byz.rounds.unseen import FEW, Unseen


class Holder(nn.Module):
    """Holds one thing of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("queue", torch.zeros(3))
        self.counts = np.zeros(3)
        self.nested = {"lists": [[torch.zeros(2)], (torch.zeros(1),)], "numbers": {1, 2}}
        self.outside = [nn.BatchNorm1d(2)]
        self.total = torch.zeros(())


def state(holder: Holder) -> str:
    parts = {name: value for name, value in vars(holder).items() if not name.startswith("_")}
    return repr((parts, holder.state_dict(), [one.state_dict() for one in holder.outside], holder._buffers))


def test_everything_is_put_back() -> None:
    holder = Holder()
    unseen = Unseen(holder)
    for _ in range(3):
        before, queue = state(holder), holder.queue
        with unseen.after():
            holder.counts[1] += 1
            holder.nested["lists"][0][0].add_(1)
            holder.nested["lists"][1][0].data.add_(1)
            holder.nested["lists"].append("more")
            holder.nested["numbers"].add(3)
            holder.nested["fresh"] = 1
            holder.outside[0](torch.randn(4, 2))
            holder.total += 1
            holder.queue = torch.ones(3)
            holder.later = "set"
            holder.layer.register_forward_hook(print)
            del holder.layer.weight
            assert state(holder) != before
        assert state(holder) == before
        assert holder.queue is queue
        assert not hasattr(holder, "later")
        assert not holder.layer._forward_hooks


def test_what_is_not_looked_into() -> None:
    holder = Holder()
    holder.nested = {"long": [torch.zeros(1) for _ in range(FEW + 1)]}
    holder.counts = np.zeros(65_537)
    with Unseen(holder).after():
        holder.nested["long"][0].add_(1)
        holder.nested["long"].append("more")
        holder.counts[0] = 1
    assert holder.nested["long"][0] == 1
    assert len(holder.nested["long"]) == FEW + 1
    assert holder.counts[0] == 1


@pytest.mark.parametrize("late", [False, True])
def test_large_tensors_are_copied_once_they_are_written_to(late: bool) -> None:
    holder = Holder()
    holder.register_buffer("bank", torch.zeros(70_000))
    unseen = Unseen(holder)
    if late:
        with unseen.after():
            pass
        with pytest.raises(ValueError, match=r"^'bank' is written to in place"), unseen.after():
            holder.bank.add_(1)
        return
    for _ in range(3):
        with unseen.after():
            holder.bank.add_(1)
        assert not holder.bank.any()


def test_gradients_of_trained_tensors_that_are_no_parameters() -> None:
    holder = nn.Module()
    holder.weight = torch.ones(2, requires_grad=True)  # type: ignore[assignment]
    (weight,) = trained = [holder.weight]
    local = Local()
    aggregation = Aggregation(Robust(Defence(1, 0, Mean())), local, local.place(1), device=torch.device("cpu"))
    gradients = EarlierGradients(holder, WorkerBuffers(holder, [0]), Streams(torch.device("cpu")), seed=0)
    for factor in (2.0, 3.0):
        with gradients.computing(Turn(0, ("step", 0)), aggregation, trained):
            (factor * weight).sum().backward()
        assert weight.grad is None
    (taken,) = gradients.take(0, trained) or [None]
    assert taken is not None
    assert taken.tolist() == [5.0, 5.0]
    assert gradients.take(0, trained) is None


def test_a_slice_is_copied_without_what_it_is_a_slice_of() -> None:
    data = torch.arange(1000.0).view(100, 10)
    batch = {"inputs": data[3:5], "rest": (data[:, 1], ["words"], {"deep": data[0].requires_grad_()})}
    copy = copied(batch)
    assert repr(copy) == repr(batch)
    assert copy["inputs"].untyped_storage().nbytes() == 20 * 4
    assert copy["rest"][2]["deep"].requires_grad
    copy["inputs"].zero_()
    copy["rest"][1].append("more")
    assert batch["inputs"].any()
    assert batch["rest"][1] == ["words"]


def test_a_batch_that_cannot_be_copied() -> None:
    with pytest.raises(ValueError, match=r"^A batch of type generator cannot be copied"):
        copied(one for one in range(3))
