"""Every exchange keeps every law in worlds of one to four ranks, and exchanges that are wrong on purpose are caught on every rank."""

import inspect
from collections.abc import Callable

import pytest

from lightning_byz import exchange
from lightning_byz.exchange import AllGather, AllToAll, Exchange, Local
from lightning_byz.testing import check_exchange
from lightning_byz.testing.laws import EXCHANGE_LAWS, Law
from tests.contracts.subjects import label, seed_of
from tests.contracts.wrong_exchanges import WRONG, seen_of, seen_of_wrong
from tests.ranks import RankPool

Ranks = Callable[[int], RankPool]

EXCHANGES: list[Exchange] = [
    kind()
    for kind in (getattr(exchange, name) for name in exchange.__all__)
    if inspect.isclass(kind) and issubclass(kind, Exchange) and not inspect.isabstract(kind)
]
AMONG_RANKS = [kind for kind in EXCHANGES if not isinstance(kind, Local)]


def test_the_librarys_own_are_among_them() -> None:
    assert [AllGather(), AllToAll(), Local()] == EXCHANGES


@pytest.mark.parametrize("law", EXCHANGE_LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("kind", EXCHANGES, ids=label)
def test_exchanges_alone(kind: Exchange, law: Law) -> None:
    check_exchange(kind, cases=60, seed=seed_of(kind), laws=[law.name])


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("kind", AMONG_RANKS, ids=label)
def test_exchanges_among_ranks(ranks: Ranks, kind: Exchange, world: int) -> None:
    assert ranks(world).run(seen_of_kept, kind, seed_of(kind) + world) == [""] * world


def seen_of_kept(kind: Exchange, seed: int) -> str:
    return seen_of(kind, cases=60, seed=seed, workers=7)


def test_one_worker_per_rank(ranks: Ranks) -> None:
    for kind in AMONG_RANKS:
        assert ranks(3).run(seen_of_few, kind, 3) == [""] * 3


def seen_of_few(kind: Exchange, workers: int) -> str:
    return seen_of(kind, cases=40, workers=workers)


@pytest.mark.parametrize(
    ("index", "kind", "law"),
    [pytest.param(index, kind, law, id=f"{type(kind).__name__}-{law}") for index, (kind, law) in enumerate(WRONG)],
)
def test_wrong_exchanges_are_caught_on_every_rank(ranks: Ranks, index: int, kind: Exchange, law: str) -> None:
    for text in ranks(2).run(seen_of_law, index, law):
        assert text.startswith(f"AssertionError: {type(kind).__name__}() breaks the law '{law}'"), text
        assert "ranks=2" in text


def seen_of_law(index: int, law: str) -> str:
    return seen_of_wrong(index, laws=[law], workers=5)


def test_every_law_has_a_wrong_exchange() -> None:
    assert {law for _, law in WRONG} == {law.name for law in EXCHANGE_LAWS}


def test_what_one_rank_sees_is_an_error_on_all(ranks: Ranks) -> None:
    index = next(index for index, (kind, _) in enumerate(WRONG) if type(kind).__name__ == "GathersFloats")
    first, second = ranks(2).run(seen_of_law, index, "exchange_first")
    assert "seen: nothing on this rank; the messages of ranks [0] say what they saw" in second
    assert "seen: what rank " in first


def test_a_world_that_an_exchange_cannot_serve_is_refused(ranks: Ranks) -> None:
    for text in ranks(2).run(seen_of_kept, Local(), 0):
        assert text.startswith("ValueError: exchange=Local() serves one process, and this run has 2 ranks")
    for text in ranks(3).run(seen_of_few, AllToAll(), 2):
        assert text.startswith("ValueError: workers=2 on 3 ranks leaves a rank without a worker")


def test_exceptions_are_data() -> None:
    class Relays(Local):
        def open(self, *arguments, **rest):
            wire = super().open(*arguments, **rest)
            wire.assemble = lambda vector, *, out=None: vector if out is None else out.copy_(vector)
            deliver = wire.deliver

            def relayed(due, facts):
                wire.received += 100
                return deliver(due, facts)

            wire.deliver = relayed
            return wire

    with pytest.raises(AssertionError, match=r"Relays.* breaks the law 'exchange_traffic'"):
        check_exchange(Relays(), laws=["exchange_traffic"])
    Relays.exceptions = frozenset({"traffic"})
    check_exchange(Relays(), cases=20)
