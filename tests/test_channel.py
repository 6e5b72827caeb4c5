"""What links remember at both ends, step by step in one process: honest and played states, broken messages, untaken steps, what attackers see."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from lightning_byz.aggregators import CoordinateMedian
from lightning_byz.arrivals import RandomArrivals, Synchronous
from lightning_byz.attacks import ALIE, Attack, NonFinite, ReverseGradient, SignFlip
from lightning_byz.compressors import Compressor, Coordinates, Identity, Quantize, RandomK, ScaledSign, TopK
from lightning_byz.errors import TooManyFaults
from lightning_byz.estimators import Gradient, WorkerMomentum
from lightning_byz.exchange import Local
from lightning_byz.links import EF21, Diana, Direct, Downlink, ErrorFeedback, HeavyBall, Link
from lightning_byz.memory import Memory, Sliced
from lightning_byz.rounds import Attackers, Defence, Sent
from lightning_byz.rounds.plan import Plan
from tests.test_arriving import Noting, Told

N, F, D = 5, 1, 12
ATTACKS = [SignFlip(), ALIE(), ReverseGradient(), NonFinite()]
BOTH_ENDS: list[tuple[Link, Compressor]] = [(EF21(), TopK(k=2)), (Diana(), RandomK(k=4)), (EF21(), ScaledSign())]
WAYS: list[tuple[Link, Compressor]] = [
    *BOTH_ENDS,
    (Direct(), TopK(k=2)),
    (ErrorFeedback(), TopK(k=2)),
    (HeavyBall(), RandomK(k=4, shared=True)),
]
NAMED = {"argnames": ("link", "compressor"), "ids": lambda stage: type(stage).__name__}


class Channelled:
    """Steps of a round on gradients written by hand."""

    def __init__(
        self, link: Link | None = None, compressor: Compressor | None = None, *, dtype=torch.float32, d=D, **rest
    ) -> None:
        rest |= {"link": link or Direct(), "compressor": compressor or Identity()}
        self.noting = Noting(rest.pop("aggregator", CoordinateMedian()))
        attackers = Attackers(rest.pop("attackers", ()), rest.pop("attack", None))
        plan = Plan(
            rest.pop("estimator", Gradient()),
            attackers,
            rest.pop("arrivals", Synchronous()),
            **rest,
        )
        self.round: Any = plan.round(Defence(N, F, self.noting, share=plan.share))
        self.memory, self.placement = Memory(), Local().place(N)
        self.wire = Local().open(d, dtype=dtype, device=torch.device("cpu"), placement=self.placement)

    def step(self, rows, **rest):
        sent = {}
        for turn in self.round.turns(self.memory, self.placement, (0, self.memory.step)):
            self.wire.row(turn.worker).copy_(rows[turn.worker])
            sent[turn.worker] = Sent([self.wire.row(turn.worker)], [True])
        outcome = self.round.take(self.memory, sent, self.wire, parameters=1, **rest)
        self.memory = outcome.memory
        return outcome

    def own(self, worker) -> Any:
        """What the worker's end remembers."""
        return self.memory.workers[worker]["link"][type(self.round.channel.link).__name__]

    def at_rules(self, worker, played=False):
        """What the rules' end does, as it is or as it is played."""
        of = "played for" if played else "of"
        return self.memory.rules["link"].values[f"{type(self.round.channel.link).__name__} {of} worker {worker}"]


def rows_of(step: int, *, size: float = 1.0, d: int = D, dtype=torch.float32) -> torch.Tensor:
    draws = torch.Generator().manual_seed(step)
    return (torch.randn(N, d, generator=draws, dtype=torch.float64) * size + 1.0).to(dtype)


def kept(memory: Memory) -> dict[str, torch.Tensor]:
    """All that links, estimators and rules remember, by name, in memory of its own."""
    workers = {
        f"{worker} {stage} {name}": torch.as_tensor(value).clone()
        for worker, stages in memory.workers.items()
        for stage, values in stages.items()
        for name, value in values.items()
    }
    rules = {
        f"{stage} {name}": value.clone() for stage, own in memory.rules.items() for name, value in own.values.items()
    }
    return workers | rules


def require_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


# ---------------------------------------------------------------------------------------------------------------- honest workers


@pytest.mark.parametrize("compressor", [TopK(k=2), ScaledSign(), RandomK(k=4, scaled=False), Identity()], ids=str)
def test_error_feedback_loses_nothing(compressor) -> None:
    run, total = Channelled(ErrorFeedback(), compressor), torch.zeros(N, D, dtype=torch.float64)
    seen = torch.zeros(N, D, dtype=torch.float64)
    for step in range(100):
        run.step(rows_of(step))
        total += rows_of(step).double()
        seen += run.noting.seen[-1].vectors.double()
        for worker in range(N):
            waits = run.own(worker).double()
            torch.testing.assert_close(seen[worker] + waits, total[worker], rtol=1e-5, atol=1e-4)
    assert isinstance(compressor, Identity) or max(float(run.own(worker).abs().max()) for worker in range(N)) > 0.1


@pytest.mark.parametrize(**NAMED, argvalues=BOTH_ENDS)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_mirrors_are_equal_at_both_ends_after_many_steps_with_attackers(link, compressor, attack) -> None:
    many = isinstance(attack, ALIE) and not isinstance(compressor, ScaledSign)
    steps = 1000 if many else 100
    run = Channelled(link, compressor, attackers=[1], attack=attack, estimator=WorkerMomentum(0.9))
    for step in range(steps):
        assert run.step(rows_of(step, size=2.0)).report.taken
        run.noting.seen.clear()
    for worker in range(N):
        if worker != 1 or not isinstance(attack, NonFinite):
            assert torch.equal(run.own(worker), run.at_rules(worker))
            assert run.own(worker).abs().sum() > 0
    if isinstance(attack, NonFinite):
        assert "link" not in run.memory.workers.get(1, {}), "nothing of a worker that was never accepted"
        assert not [name for name in run.memory.rules["link"].values if "worker 1" in name]
        return
    played = run.at_rules(1, played=True)
    assert played.isfinite().all()
    assert not torch.equal(played, run.at_rules(1))
    if isinstance(attack, ReverseGradient) and isinstance(link, EF21):
        assert played.mean() < -5, "it follows what the attacker sends"


@pytest.mark.parametrize(**NAMED, argvalues=WAYS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_states_are_single_precision_or_wider(link, compressor, dtype) -> None:
    run = Channelled(link, compressor, dtype=dtype, attackers=[1], attack=SignFlip())
    for step in range(20):
        assert run.step(rows_of(step, dtype=dtype)).report.taken
        assert run.noting.seen[-1].vectors.dtype == dtype
    wide = torch.promote_types(dtype, torch.float32)
    stages = [run.memory.workers.get(worker, {}).get("link", {}) for worker in range(N)]
    states = [state for values in stages for state in values.values()]
    states += [*run.memory.rules["link"].values.values()] if link.at_rules or link.at_worker else []
    assert all(torch.as_tensor(state).dtype == wide for state in states)
    assert all(torch.equal(run.own(worker), run.at_rules(worker)) for worker in range(N) if link.mirrored)


# ---------------------------------------------------------------------------------------------------------------- refused messages


@pytest.mark.parametrize(**NAMED, argvalues=WAYS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_no_rule_can_use_is_a_fault_also_where_the_compressor_would_drop_it(link, compressor, bad) -> None:
    run = Channelled(link, compressor, estimator=WorkerMomentum(0.9))
    for step in range(3):
        run.step(rows_of(step))
    before, rows = kept(run.memory), rows_of(3)
    rows[2, 7] = bad
    rows[2, :2] = 1e6  # what the largest are, were it not for one that is none
    outcome = run.step(rows)
    assert outcome.report.taken
    assert outcome.report.status[2] == "broken"
    assert [word for word in outcome.report.status if word != "arrived"] == ["broken"]
    after = kept(run.memory)
    theirs = [name for name in before if name.startswith("2 ") or "worker 2" in name]
    assert theirs
    assert not [name for name in theirs if not torch.equal(before[name], after[name])], "nothing adopted"
    others = [name for name in before if name not in theirs]
    assert [name for name in others if torch.equal(before[name], after[name])] == []
    assert run.step(rows_of(4)).report.status[2] == "arrived"


def test_what_is_compressed_can_overflow_where_the_message_does_not() -> None:
    run = Channelled(EF21(), Identity())
    most = torch.finfo(torch.float32).max
    half = rows_of(0)
    half[3] = most * 0.7
    assert run.step(half).report.status == ("arrived",) * N
    mirror = run.own(3).clone()
    outcome = run.step(-half)
    assert outcome.report.status == ("arrived", "arrived", "arrived", "broken", "arrived")
    assert torch.equal(run.own(3), mirror)
    assert torch.equal(run.at_rules(3), mirror)
    assert run.step(half).report.status == ("arrived",) * N


def test_what_an_attacker_compresses_can_overflow_too() -> None:
    @dataclass(frozen=True)
    class Swings(Attack):
        def replace(self, sight):
            return torch.full_like(sight.own, 0.7 * torch.finfo(sight.own.dtype).max * (-1) ** sight.step)

    run = Channelled(EF21(), Identity(), attackers=[4], attack=Swings())
    assert run.step(rows_of(0)).report.status[4] == "arrived"
    mirror, honest = run.at_rules(4, played=True).clone(), run.at_rules(4).clone()
    assert run.step(rows_of(1)).report.status == ("arrived",) * 4 + ("broken",)
    assert torch.equal(run.at_rules(4, played=True), mirror)
    assert torch.equal(run.at_rules(4), honest), "its own end is as that of any refused worker"
    assert torch.equal(run.own(4), honest)
    assert run.step(rows_of(2)).report.status[4] == "arrived"


def test_an_overflow_of_float16_is_seen() -> None:
    """A message minus its mirror is computed in float32 and travels in float16."""
    run = Channelled(EF21(), Identity(), dtype=torch.float16)
    rows = rows_of(0, dtype=torch.float16)
    rows[3] = 60000.0
    run.step(rows)
    assert run.step(-rows).report.status[3] == "broken"


@pytest.mark.parametrize(**NAMED, argvalues=WAYS)
def test_a_step_that_is_not_taken_changes_no_state(link, compressor) -> None:
    back = Downlink(TopK(k=3), EF21())
    run = Channelled(link, compressor, estimator=WorkerMomentum(0.9), attackers=[1], attack=SignFlip(), downlink=back)
    for step in range(3):
        run.step(rows_of(step))
    before, rows = kept(run.memory), rows_of(3)
    rows[2:4] = float("nan")
    for _ in range(2):
        assert not run.step(rows).report.taken
        require_same(kept(run.memory), before)
    with pytest.raises(TooManyFaults):
        run.step(rows)
    assert run.step(rows_of(4)).report.taken
    assert any(not torch.equal(value, before[name]) for name, value in kept(run.memory).items())


@pytest.mark.parametrize("arrivals", [Synchronous(), Told(((0, 1), (2, 3, 4)))], ids=["all", "told"])
def test_an_aggregate_that_nobody_steps_on_leaves_the_way_back_as_it_was(arrivals) -> None:
    run = Channelled(EF21(), Identity(), downlink=Downlink(TopK(k=3), EF21()), arrivals=arrivals)
    for step in range(3):
        run.step(rows_of(step))
    before = run.memory
    after = run.step(rows_of(3)).memory
    known, left, gone = kept(before), kept(run.round.unstepped(before, after)), kept(after)
    names = [name for name in known if "downlink" in name]
    assert len(names) == 2, "its sending end and its receiving one"
    assert not [name for name in names if torch.equal(gone[name], known[name])]
    assert not [name for name in names if not torch.equal(left[name], known[name])]


def test_mirrors_of_workers_that_are_not_due_stand_still() -> None:
    run = Channelled(EF21(), TopK(k=2), arrivals=Told(((1, 2), (0,), (3, 4))), attackers=[1], attack=SignFlip())
    run.step(rows_of(0))
    for step in range(1, 30):
        before, due = kept(run.memory), run.round.due(step)
        run.step(rows_of(step))
        after = kept(run.memory)
        for worker in range(N):
            names = [
                name
                for name in after
                if name.endswith(f"link EF21 of worker {worker}") or name == f"{worker} link EF21"
            ]
            assert len(names) == 2
            for name in names:
                assert torch.equal(before[name], after[name]) == (worker not in due)
        assert torch.equal(before["link EF21 played for worker 1"], after["link EF21 played for worker 1"]) == (
            1 not in due
        )
    assert all(torch.equal(run.own(worker), run.at_rules(worker)) for worker in range(N))


# ---------------------------------------------------------------------------------------------------------------- attackers


@dataclass(frozen=True)
class Watching(Attack):
    """Sends a dense row, and writes down what it sees of mirrors."""

    seen: list[Any] = field(default_factory=list, compare=False)

    def replace(self, sight):
        self.seen.append(None if sight.mirrors is None else sight.mirrors.clone())
        return torch.randn(sight.own.shape, generator=sight.generator).to(sight.own.dtype) * 5


@pytest.mark.parametrize("arrivals", [Synchronous(), RandomArrivals("squared")], ids=["all", "some"])
def test_attackers_obey_the_format(arrivals) -> None:
    for k in (1, 3):
        run = Channelled(Direct(), TopK(k=k), attackers=[1, 3], attack=Watching(), arrivals=arrivals)
        for step in range(10):
            run.step(rows_of(step))
            assert (run.noting.seen[-1].vectors != 0).sum(1).max() <= k
            assert (run.noting.seen[-1].vectors != 0).sum(1).min() == k, "they use what they have"
        assert set(run.round.attackers.attack.seen) == {None}
        run = Channelled(EF21(), TopK(k=k), attackers=[1, 3], attack=Watching(), arrivals=arrivals)
        mirrors = {1: torch.zeros(D), 3: torch.zeros(D)}
        for step in range(10):
            run.step(rows_of(step))
            rows = run.noting.seen[-1].vectors
            for worker, mirror in mirrors.items():
                assert (rows[worker] != mirror).sum() <= k
                mirrors[worker] = rows[worker]
                assert torch.equal(run.at_rules(worker, played=True), rows[worker])


@pytest.mark.parametrize(**NAMED, argvalues=BOTH_ENDS)
def test_attackers_see_the_mirrors_as_the_rules_have_them(link, compressor) -> None:
    watching = Watching()
    run = Channelled(link, compressor, attackers=[1, 3], attack=watching)
    for step in range(5):
        known = [
            torch.zeros(D) if not step else run.at_rules(worker, played=worker in (1, 3)).clone() for worker in range(N)
        ]
        run.step(rows_of(step))
        assert torch.equal(watching.seen[-1], torch.stack(known))
    for other in (Direct(), ErrorFeedback(), HeavyBall()):
        watching.seen.clear()
        Channelled(other, TopK(k=2), attackers=[1], attack=watching).step(rows_of(0))
        assert watching.seen == [None]


def test_mirrors_are_not_attackers_to_write_to() -> None:
    class Writes(Attack):
        def replace(self, sight):
            assert sight.mirrors is not None
            sight.mirrors.zero_()
            return sight.own

    with pytest.raises(ValueError, match="Writes wrote to mirrors"):
        Channelled(EF21(), TopK(k=2), attackers=[1], attack=Writes()).step(rows_of(0))


@pytest.mark.parametrize(**NAMED, argvalues=WAYS)
def test_an_attacker_that_does_what_it_would_have_done_is_an_honest_worker(link, compressor) -> None:
    """Behind a link that sends all there is: an attack acts on rows as the rules rebuild them."""

    class Honest(Attack):
        def replace(self, sight):
            return sight.own

    alone, beside = Channelled(Direct(), compressor), Channelled(Direct(), compressor, attackers=[1], attack=Honest())
    if isinstance(compressor, TopK):
        for step in range(5):
            assert torch.equal(alone.step(rows_of(step)).vector.clone(), beside.step(rows_of(step)).vector)


def test_what_is_read_is_drawn_anew_by_step_worker_optimizer_and_seed() -> None:
    def masks(seed=0, optimizer=0, shared=False):
        run = Channelled(Direct(), RandomK(k=4, shared=shared))
        run.round = replace(run.round, channel=replace(run.round.channel, seed=seed, optimizer=optimizer))
        found = []
        for _ in range(3):
            run.step(torch.ones(N, D))
            found += [tuple((row != 0).tolist()) for row in run.noting.seen[-1].vectors]
            assert torch.equal(run.noting.seen[-1].vectors.unique(), torch.tensor([0.0, 3.0]))
        return found

    first = masks()
    assert first == masks()
    assert len(set(first)) > 12
    for other in (masks(seed=1), masks(optimizer=1)):
        assert sum(one == two for one, two in zip(first, other, strict=True)) <= 2
    together = masks(shared=True)
    assert [len(set(together[step * N : step * N + N])) for step in range(3)] == [1, 1, 1]
    assert len(set(together)) == 3


# ---------------------------------------------------------------------------------------------------------------- files


def saved(run: Channelled) -> Memory:
    return run.round.saved(run.memory)


def loaded(run: Channelled, memory: Memory) -> Memory:
    return run.round.loaded(memory, range(N), torch.device("cpu"))


@pytest.mark.parametrize(**NAMED, argvalues=WAYS)
def test_a_file_has_mirrors_once(link, compressor) -> None:
    run = Channelled(link, compressor, attackers=[1], attack=SignFlip(), downlink=Downlink(TopK(k=3), EF21()))
    for step in range(3):
        run.step(rows_of(step))
    file = saved(run)
    stages = {stage for values in file.workers.values() for stage in values}
    assert ("link" in stages) == (link.at_worker and not link.mirrored)
    assert "downlink" not in stages
    names = sorted(file.rules["link"].values) if "link" in file.rules else []
    kind = type(link).__name__
    honest = [f"{kind} of worker {worker}" for worker in range(N)] if link.at_rules else []
    played = [f"{kind} played for worker 1"] if link.at_rules or link.at_worker else []
    assert names == [*honest, *played], "n + a"
    assert list(file.rules["downlink"].values) == ["EF21"]
    require_same(kept(loaded(run, file)), kept(run.memory))


@pytest.mark.parametrize(
    "of", [Direct(), ErrorFeedback(), EF21(), Diana(), HeavyBall()], ids=lambda link: type(link).__name__
)
@pytest.mark.parametrize(
    "here", [Direct(), ErrorFeedback(), EF21(), Diana(), HeavyBall()], ids=lambda link: type(link).__name__
)
def test_the_memory_of_another_link_is_refused(of, here) -> None:
    first, second = Channelled(of, Identity()), Channelled(here, Identity())
    first.step(rows_of(0))
    if of == here:
        require_same(kept(loaded(second, saved(first))), kept(first.memory))
        return
    known = "whose link remembers nothing" if of == Direct() else rf"with the link {type(of).__name__}\(\)"
    said = (
        rf"^The checkpoint is of a run {known}, and this run has {type(here).__name__}\(\): resume with the same link"
    )
    with pytest.raises(ValueError, match=said):
        loaded(second, saved(first))


@pytest.mark.parametrize("of", [None, Direct(), ErrorFeedback(), EF21()], ids=lambda link: type(link).__name__)
@pytest.mark.parametrize("here", [None, Direct(), ErrorFeedback(), EF21()], ids=lambda link: type(link).__name__)
def test_the_memory_of_another_way_back_is_refused(of, here) -> None:
    back = [None if link is None else Downlink(ScaledSign(), link) for link in (of, here)]
    first, second = (Channelled(downlink=one) for one in back)
    first.step(rows_of(0))
    remembers = [None if link is None or link == Direct() else type(link).__name__ for link in (of, here)]
    if remembers[0] == remembers[1]:
        loaded(second, saved(first))
        return
    with pytest.raises(ValueError, match=r"^The checkpoint is of a run .*downlink.*: resume with the same downlink"):
        loaded(second, saved(first))


def test_a_file_from_before_the_first_message_is_anyones() -> None:
    first = Channelled(EF21(), TopK(k=2))
    first.memory = replace(first.memory, step=1)
    assert loaded(Channelled(Diana(), RandomK(k=2)), saved(first)).step == 1


# ---------------------------------------------------------------------------------------------------------------- the way back


@pytest.mark.parametrize("link", [Direct(), ErrorFeedback(), EF21()], ids=lambda link: type(link).__name__)
@pytest.mark.parametrize("compressor", [Identity(), TopK(k=3), ScaledSign()], ids=lambda one: type(one).__name__)
def test_what_comes_back_is_what_the_link_makes_of_the_aggregate(link, compressor) -> None:
    run, plain = Channelled(downlink=Downlink(compressor, link)), Channelled()
    whole, state = Coordinates([(D,)]), torch.zeros(D)
    for step in range(6):
        aggregate, vector = plain.step(rows_of(step)).vector.clone(), run.step(rows_of(step)).vector.clone()
        outgoing = link.outgoing(state, aggregate.clone())
        part = compressor.encode(outgoing, whole, generator=torch.Generator()).part(0, D)
        compressor.decode(part, whole, generator=torch.Generator(), out=(decoded := torch.empty(D)))
        row, after = link.receive(state, decoded)
        assert torch.equal(vector, row)
        state = after if after is not None else link.after(state, outgoing, decoded)
        assert isinstance(compressor, Identity) <= torch.allclose(vector, aggregate, atol=1e-6)


def test_rules_that_read_the_last_aggregate_read_what_came_back() -> None:
    class Reads(CoordinateMedian):
        uses_reference = True

        def __call__(self, stack, *, generator=None):
            seen.append(None if stack.reference is None else stack.reference.clone())
            return super().__call__(stack, generator=generator)

    seen: list[Any] = []
    run = Channelled(aggregator=Reads(), downlink=Downlink(TopK(k=3)))
    run.round = replace(run.round, defence=replace(run.round.defence, aggregator=Reads()))
    vectors = [run.step(rows_of(step)).vector.clone() for step in range(3)]
    assert seen[0] is None
    assert torch.equal(seen[1], vectors[0])
    assert torch.equal(seen[2], vectors[1])
    assert (vectors[0] != 0).sum() == 3


def test_bytes_of_a_message() -> None:
    sizes = {
        TopK(k=2): 2 * 8,
        ScaledSign(): None,
        RandomK(k=4, shared=True): 4 * 4,
        Quantize(4): None,
        Identity(): 4 * D,
    }
    for compressor, size in sizes.items():
        told = Channelled(Direct(), compressor).step(rows_of(0)).report
        expected = compressor.size(Coordinates([(D,)]), torch.float32)
        assert told.message_bytes == expected
        assert size is None or size == expected
        assert told.bytes_received == told.bytes_sent == 0, "nothing travels in one process"


def test_states_of_rules_are_of_the_kind_that_files_know() -> None:
    run = Channelled(EF21(), TopK(k=2))
    run.step(rows_of(0))
    assert isinstance(run.memory.rules["link"], Sliced)
    assert all(value.shape == (D,) for value in run.memory.rules["link"].values.values())
