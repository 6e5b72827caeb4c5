"""Compressed messages between real ranks: bytes counted by hand, parameters that are trained later, scaled gradients, two optimizers, refusals."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightning_byz.aggregators import CTMA, CoordinateMedian, Mean
from lightning_byz.arrivals import RandomArrivals
from lightning_byz.attacks import SignFlip
from lightning_byz.compressors import Cast, LowRank, RandomK, ScaledSign, TopK
from lightning_byz.estimators import Gradient, WorkerMomentum
from lightning_byz.exchange import AllGather, AllToAll, Local
from lightning_byz.links import EF21, Diana, Direct, Downlink, ErrorFeedback
from lightning_byz.memory import Memory
from lightning_byz.rounds import Attackers, Defence, Sent
from lightning_byz.rounds.aggregation import Aggregation
from lightning_byz.rounds.plan import Plan
from tests.scenarios import Classifier, Fit, Options, attempt, fit, same_bits
from tests.test_lightning_life import OnlyTrainable, with_callbacks
from tests.test_two_optimizers import Twins

D, CUT, N = 1000, 512, 4
"""Blocks of 64: rank 0 has 8 of the 16, and rank 1 the rest of the coordinates."""
FOUR: dict[str, Any] = {
    "workers": 4,
    "f": 1,
    "aggregator": CTMA(CoordinateMedian()),
    "estimator": WorkerMomentum(0.9),
    "attackers": [1],
    "attack": SignFlip(),
    "link": EF21(),
    "compressor": TopK(0.1),
}


def rows() -> torch.Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(5))


def moved(exchange, compressor, downlink) -> dict[str, Any]:
    """What one step moves on this rank, and what the rules see of it."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    plan = Plan(Gradient(), Attackers(), compressor=compressor, downlink=downlink)
    round, placement = plan.round(Defence(N, 1, CoordinateMedian())), exchange.place(N)
    wire = exchange.open(D, dtype=torch.float32, device=torch.device("cpu"), placement=placement)
    sent = {}
    for worker in placement.local:
        wire.row(worker).copy_(rows()[worker])
        sent[worker] = Sent([wire.row(worker)], [True])
    vector, _, report = round.take(Memory(), sent, wire, parameters=1)
    assert vector is not None
    return {
        "vector": vector.clone(),
        "message": report.message_bytes,
        "received": report.bytes_received,
        "sent": report.bytes_sent,
    }


def largest(k: int) -> list[list[int]]:
    """How many of each worker's largest lie below the cut, and above."""
    index = rows().abs().topk(k).indices
    return [[int((own < CUT).sum()), int((own >= CUT).sum())] for own in index]


@pytest.mark.parametrize("exchange", [AllToAll(), AllGather()], ids=str)
def test_bytes_are_those_of_the_tensors_by_hand(ranks, exchange) -> None:
    slices = isinstance(exchange, AllToAll)
    below, above = (CUT, D - CUT) if slices else (D, D)
    back = [above * 4 * slices, below * 4 * slices]  # what the ranks get of the aggregate
    entries = largest(50)

    def uplink(of: list[int], side: int) -> int:
        return sum(8 + 8 * (entries[worker][side] if slices else 50) for worker in of)

    theirs = [uplink([2, 3], 0), uplink([0, 1], 1)]  # a count of 8 bytes, and per entry a float32 and an int32
    told = ranks(2).run(moved, exchange, TopK(k=50), None)
    assert [one["message"] for one in told] == [400, 400]
    assert [one["received"] for one in told] == [theirs[0] + back[0], theirs[1] + back[1]]
    assert [one["sent"] for one in told] == [theirs[1] + back[1], theirs[0] + back[0]]

    told = ranks(2).run(moved, exchange, Cast("bfloat16"), None)
    assert [one["message"] for one in told] == [2000, 2000]
    assert [one["received"] for one in told] == [2 * 2 * below + back[0], 2 * 2 * above + back[1]]

    told = ranks(2).run(moved, exchange, ScaledSign(), None)
    assert [one["message"] for one in told] == [4 + 125] * 2
    assert [one["received"] for one in told] == [2 * (4 + below // 8) + back[0], 2 * (4 + above // 8) + back[1]]

    told = ranks(2).run(moved, exchange, ScaledSign(), Downlink(Cast("float16")))
    halves = [back[0] // 2, back[1] // 2]
    assert [one["received"] for one in told] == [2 * (4 + below // 8) + halves[0], 2 * (4 + above // 8) + halves[1]]

    told = ranks(2).run(moved, exchange, ScaledSign(), Downlink(TopK(k=30)))
    ones = [int((told[0]["vector"][:CUT] != 0).sum()), int((told[0]["vector"][CUT:] != 0).sum())]
    assert sum(ones) == 30
    lists = [(8 + 8 * ones[1]) * slices, (8 + 8 * ones[0]) * slices]
    assert [one["received"] for one in told] == [2 * (4 + below // 8) + lists[0], 2 * (4 + above // 8) + lists[1]]
    assert torch.equal(told[0]["vector"], told[1]["vector"])


@pytest.mark.parametrize("change", [{}, {"link": ErrorFeedback()}, {"downlink": Downlink(TopK(0.2), EF21())}], ids=str)
def test_parameters_that_are_trained_later_join_the_links(ranks, change) -> None:
    job = Fit(strategy={**FOUR, **change}, module=OnlyTrainable, trainer={"max_epochs": 3})
    first, second, third = (ranks(world).run(with_callbacks, job, ["thaw"], world)[0] for world in (1, 2, 2))
    assert not same_bits(first["parameters"], second["parameters"])
    assert not same_bits(second["parameters"], third["parameters"])


@pytest.mark.parametrize("link", [EF21(), ErrorFeedback(), Diana(0.5)], ids=lambda link: type(link).__name__)
def test_what_links_remember_follows_its_parameters(link) -> None:
    """Kept for those that stay, and zero for those that join, at both ends and for attackers."""
    torch.manual_seed(0)
    parts = {"first": torch.nn.Parameter(torch.randn(70)), "second": torch.nn.Parameter(torch.randn(3, 5))}
    compressor = RandomK(k=4) if isinstance(link, Diana) else TopK(k=4)
    plan = Plan(
        Gradient(), Attackers([1], SignFlip()), link=link, compressor=compressor, downlink=Downlink(TopK(k=4), EF21())
    )
    round, placement = plan.round(Defence(N, 1, CoordinateMedian())), Local().place(N)
    aggregation = Aggregation(round, Local(), placement, device=torch.device("cpu"))

    def step(names):
        aggregation.fit([(name, parts[name]) for name in names])
        own = [torch.randn_like(parts[name]) for name in names]
        aggregation.step(
            {worker: aggregation.collect(worker, [(worker + 1) * one for one in own]) for worker in range(N)}
        )
        aggregation.stepped()

    for _ in range(3):
        step(["second"])
    before = aggregation.memory
    aggregation.fit([(name, parts[name]) for name in ("first", "second")])
    after = aggregation.memory
    pairs = [
        (own[name], after.workers[worker][stage][name])
        for worker, stages in before.workers.items()
        for stage, own in stages.items()
        for name in own
    ]
    pairs += [
        (value, after.rules[stage].values[name])
        for stage, own in before.rules.items()
        for name, value in own.values.items()
    ]
    assert len(pairs) >= N
    for old, new in pairs:
        assert isinstance(old, torch.Tensor)
        assert isinstance(new, torch.Tensor)
        assert torch.equal(new, torch.cat([torch.zeros(70), old]))
    step(["first", "second"])
    assert aggregation.memory.step == 4


@pytest.mark.parametrize("arrivals", [None, RandomArrivals("squared")], ids=["all", "some"])
def test_a_scaler_that_starts_too_high_costs_steps_and_nothing_else(ranks, arrivals) -> None:
    strategy = {**FOUR, "downlink": Downlink(TopK(0.3), EF21()), **({} if arrivals is None else {"arrivals": arrivals})}
    job = Fit(Options(learning_rate=0.02, loss_factor=8.0), strategy, {"max_epochs": 3}, scaler=True)
    alone, again = (ranks(world).run(fit, job, world)[0] for world in (1, 2))
    assert alone["scale"] == again["scale"]
    assert not same_bits(alone["parameters"], again["parameters"])
    assert all(value.isfinite().all() for value in alone["parameters"].values())


class Apart(Twins):
    """Whose two networks have the same gradients."""

    def training_step(self, batch, batch_idx):
        for optimizer, part in zip(self.optimizers(), self.network, strict=True):  # pyright: ignore[reportArgumentType]
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(torch.nn.functional.cross_entropy(part(batch[0]), batch[1]))
            optimizer.step()
            self.untoggle_optimizer(optimizer)
            self.gradients.append(part.weight.grad.clone())


def test_two_optimizers_draw_apart(ranks) -> None:
    for way in ({"compressor": RandomK(k=3)}, {"downlink": RandomK(k=3)}):
        strategy = {"f": 0, "aggregator": Mean(), "workers": 2, **way}
        for world in (2,):
            results = ranks(world).run(fit, Fit(strategy=strategy, module=Apart, trainer={"max_steps": 16}), world)
            seen = results[0]["buffers"]["seen"] != 0
            assert torch.equal(results[1]["buffers"]["seen"], results[0]["buffers"]["seen"])
            same = [bool((seen[place] == seen[place + 1]).all()) for place in range(0, len(seen), 2)]
            assert sum(same) <= 1, "another mask for each"


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"compressor": TopK(k=10**6)}, "ValueError", "TopK(k=1000000) keeps more coordinates than there are"),
    (
        {"compressor": LowRank(100), "exchange": AllGather()},
        "ValueError",
        "LowRank(rank=100) compresses matrices of which",
    ),
    ({"compressor": LowRank(1)}, "ValueError", "LowRank(rank=1): its messages do not split by coordinates"),
    ({"downlink": LowRank(1)}, "ValueError", "downlink: compressor=LowRank(rank=1): its messages do not split"),
    (
        {"link": EF21(), "compressor": RandomK(0.1)},
        "ValueError",
        "mirrors come closer only under a contractive compressor",
    ),
    ({"link": ErrorFeedback(), "compressor": RandomK(0.1)}, "ValueError", "what waits grows without bound"),
    ({"link": Diana(), "compressor": TopK(0.1)}, "ValueError", "shifts learn means only under an unbiased compressor"),
    ({"downlink": Downlink(TopK(0.1), Diana())}, "ValueError", "downlink: link=Diana() with compressor=TopK(ratio=0.1"),
]


@pytest.mark.parametrize(
    ("change", "kind", "said"), REFUSED, ids=lambda value: value[:40] if isinstance(value, str) else ""
)
def test_what_cannot_be_is_refused_on_each_rank_before_the_first_step(ranks, change, kind, said) -> None:
    strategy = {**FOUR, "link": Direct(), **change}
    for found, sentence in ranks(2).run(attempt, Fit(strategy=strategy), 2):
        assert found == kind
        assert said in sentence
        assert "\n" not in sentence


class Curved(Classifier):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"link": EF21(), "compressor": TopK(0.1)}, "link=EF21() would remember each of them"),
        (
            {"link": Direct(), "downlink": Downlink(TopK(0.1), EF21())},
            "downlink.link=EF21() would remember each of them",
        ),
        ({"link": Direct(), "compressor": TopK(0.5)}, ""),
    ],
    ids=["link", "downlink", "none"],
)
def test_lbfgs_goes_with_links_that_remember_nothing(ranks, change, said) -> None:
    job = Fit(strategy={**FOUR, "estimator": Gradient(), **change}, module=Curved, trainer={"max_steps": 2})
    ((kind, sentence),) = ranks(1).run(attempt, job, 1)
    assert (kind, said in sentence) == ("ValueError" if said else "nothing", True)


def test_mirrors_behind_identity_are_no_mistake(ranks) -> None:
    ranks(1).run(fit, Fit(strategy={**FOUR, "compressor": TopK(1.0)}, trainer={"max_steps": 2}), 1)


def test_a_run_with_another_link_is_not_resumed(ranks, tmp_path) -> None:
    ways = {
        "EF21": FOUR,
        "ErrorFeedback": {**FOUR, "link": ErrorFeedback()},
        "nothing": {**FOUR, "link": Direct()},
        "downlink": {**FOUR, "link": Direct(), "downlink": Downlink(TopK(0.2), EF21())},
    }
    paths = {name: str(tmp_path / f"{name}.ckpt") for name in ways}
    for name, strategy in ways.items():
        ranks(2).run(fit, Fit(strategy=strategy, trainer={"max_epochs": 1}, save=paths[name]), 2)
    for saved in ways:
        for name, strategy in ways.items():
            told = ranks(2).run(attempt, Fit(strategy=strategy, trainer={"max_epochs": 1}, checkpoint=paths[saved]), 2)
            for kind, sentence in told:
                assert kind == ("nothing" if saved == name else "ValueError"), (saved, name, sentence)
                assert saved == name or ("link" in sentence and "or start a new run from the weights alone" in sentence)
