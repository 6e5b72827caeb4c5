"""The server of workers at their own pace, without processes: its rounds, and what strangers and malformed frames do to it."""

import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection

import numpy as np
import pytest
import torch

from lightning_byz.aggregators import CTMA, Bulyan, CoordinateMedian, Mean, TrimmedMean
from lightning_byz.attacks import SignFlip
from lightning_byz.census import Arrival
from lightning_byz.errors import ToleranceError
from lightning_byz.estimators import DM21, Gradient, Storm, WorkerMomentum
from lightning_byz.exchange import Placement
from lightning_byz.flat import Layout
from lightning_byz.rounds import Aggregation, Attackers, Defence, Report, Sent
from lightning_byz.serving import Engine, OneByOne, Seat, Service
from lightning_byz.serving.door import connection_of, knock
from lightning_byz.serving.events import refused
from lightning_byz.serving.frames import SIZE, Header, Kind, header_of
from lightning_byz.serving.messages import Remembered, Sizes, memory_of, notes_of, packed_memory, packed_notes
from lightning_byz.serving.serving import AsTheyCome, Desk, ServingPlan

LAYOUT = Layout(("weight",), ((3,),), torch.float32)
D = LAYOUT.total


class Table:
    """A server's round, fed by hand."""

    def __init__(self, workers: int, f: float, aggregator=None, **rest) -> None:
        self.desk = Desk()
        plan = ServingPlan(weights="counts", desk=self.desk, **{"arrivals": AsTheyCome(), **rest})
        defence = Defence(workers, f, aggregator or CTMA(CoordinateMedian()), share=plan.share)
        self.parameter = torch.nn.Parameter(torch.zeros(D))
        round = plan.round(defence)
        self.aggregation = Aggregation(round, OneByOne(), Placement(workers, 1, 0), device=torch.device("cpu"))
        self.aggregation.fit([("weight", self.parameter)])

    def arrives(self, worker: int, value: float, *, version: int | None = None, ruled: bool = True) -> Report:
        desk = self.desk
        desk.worker, desk.version = worker, desk.updates if version is None else version
        desk.ruled, desk.turn = ruled, desk.turn + 1
        report = self.aggregation.step({worker: Sent([torch.full((D,), value)], [True])})
        if report.taken:
            self.aggregation.stepped()
            desk.updates += 1
        return report


def test_weights_are_counts_and_ages_are_updates() -> None:
    table = Table(3, 0, Mean())
    table.arrives(0, 1.0)
    table.arrives(0, 2.0)
    report = table.arrives(1, 5.0, version=0)
    assert report.taken
    assert list(report.census.weights) == [2.0, 1.0, 0.0]
    assert list(report.census.ages) == [1, 2, 0]  # made at the points of updates 1 and 0; there are 2
    assert table.parameter.grad is not None
    torch.testing.assert_close(table.parameter.grad, torch.full((D,), 3.0))  # (2 * 2 + 1 * 5) / 3


def test_no_update_while_a_rule_does_not_tolerate_the_heaviest() -> None:
    """With rates 20 : 1 : 1 and f = 1, one worker has more than half of the weight for ever."""
    table = Table(3, 1)
    reports = [table.arrives(0 if turn % 22 < 20 else turn % 22 - 19, 1.0) for turn in range(66)]
    assert not reports[-1].taken
    assert "f = 60" in reports[-1].reason or "60" in reports[-1].reason
    assert reports[-1].census.weights[0] == 60.0
    stated = Table(3, 1, arrivals=AsTheyCome(0.2))
    assert [stated.arrives(0 if turn % 22 < 20 else turn % 22 - 19, 1.0) for turn in range(66)][-1].taken


def test_rules_wait_for_every_so_many_arrivals() -> None:
    table = Table(3, 0)
    reports = [table.arrives(worker, 1.0, ruled=worker == 2) for worker in range(3)]
    assert [report.taken for report in reports] == [False, False, True]
    assert "every=" in reports[0].reason
    assert list(reports[2].census.weights) == [1.0, 1.0, 1.0]


def test_what_is_not_finite_leaves_the_table_as_it_is() -> None:
    table = Table(4, 1)
    for worker in range(4):
        table.arrives(worker, float(worker))
    report = table.arrives(3, float("nan"))
    assert report.census.arrival[3] is Arrival.BROKEN
    assert list(report.census.weights) == [1.0, 1.0, 1.0, 1.0]
    assert not report.taken  # nothing new to see
    rows = table.aggregation.memory.rules["arrivals"].values["rows"]
    assert rows[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert table.arrives(2, 2.5).taken


def test_attackers_rows_change_when_they_arrive() -> None:
    table = Table(4, 1, TrimmedMean(), attackers=Attackers([3], SignFlip()))
    for worker in (0, 1, 3, 2):
        report = table.arrives(worker, 1.0)
    rows = table.aggregation.memory.rules["arrivals"].values["rows"]
    assert rows[:, 0].tolist() == [1.0, 1.0, 1.0, -1.0]
    assert report.taken
    torch.testing.assert_close(table.parameter.grad, torch.ones(D))


def test_rules_of_equal_weights_are_refused() -> None:
    with pytest.raises(ToleranceError, match="Bulyan"):
        ServingPlan(weights="counts", arrivals=AsTheyCome()).check(Defence(4, 0, Bulyan()), None)


@pytest.mark.parametrize("estimator", [Gradient(), WorkerMomentum(beta=0.9), Storm(beta=0.1), DM21(eta=0.1)])
def test_memories_travel_whole(estimator) -> None:
    sizes = Sizes(LAYOUT, 0, estimator)
    blank = sizes.blank()
    memory = {name: torch.randn(D) if torch.is_tensor(value) else type(value)(7) for name, value in blank.items()}
    point = torch.randn(D) if estimator.points > 1 else None
    data = packed_memory(Remembered(memory, 5, point), sizes)
    assert len(data) == sizes.memory
    again = memory_of(data, sizes)
    assert again.adopted == 5
    assert all(torch.equal(torch.as_tensor(again.memory[name]), torch.as_tensor(memory[name])) for name in memory), (
        again,
        memory,
    )
    assert (again.point is None) == (point is None)


def test_notes_are_read_whatever_they_are() -> None:
    assert notes_of(packed_notes({"loss": [0.5, True, None]})) == {"loss": (0.5, [True, None])}
    for wrong in (b"", b"[1]", b"\xff" * 9, b'{"a": 1}', b'{"a": [[]]}', b'{"a": [true]}', b'{"a":[1,2]}', b"[" * 9000):
        assert notes_of(wrong) == {}
    assert notes_of(b'{"a": [' + b"9" * 400 + b"]}")["a"][0] == float("inf")


def test_headers_are_read_whatever_they_are() -> None:
    generator = np.random.default_rng(0)
    header = Header(Kind.GRADIENT, 3, True, 1, 2, 3, 0.5)
    assert header_of(header.packed()) == header
    for _ in range(2000):
        data = bytearray(header.packed())
        data[generator.integers(len(data))] = generator.integers(256)
        header_of(bytes(data[: generator.integers(len(data) + 1)]))
        assert header_of(generator.bytes(SIZE)) is None


# ---------------------------------------------------------------------------- at the port


class Nobody(Engine):
    """Starts no process: the test is the workers."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.seats: dict[int, Seat] = {}

    def start(self, seat: Seat) -> None:
        self.seats[seat.worker] = seat

    def ended(self) -> Mapping[int, str]:
        return {}

    def close(self) -> None:
        self.seats = {}


@pytest.fixture
def served() -> Iterator[tuple[Service, Nobody, list[str]]]:
    said: list[str] = []
    engine = Nobody(2)
    limits = {"deadline": 2.0, "restarts": 0}
    service = Service(engine, Sizes(LAYOUT, 0, Gradient()), (1, 2), tell=said.append, **limits)
    service.publish(torch.arange(3.0), version=0, epoch=0, step=0)
    for worker in range(2):
        engine.start(service._seat(worker, None))
    service._door.open()
    yield service, engine, said
    service.close()


def came(engine: Nobody, worker: int) -> Connection:
    """Connect as a worker, and fetch parameters."""
    seat = engine.seats[worker]
    connection = knock(seat.address, worker, seat.key, patience=5.0)
    connection.send_bytes(Header(Kind.HELLO, worker, first=1, second=2).packed())
    assert header_of(connection.recv_bytes(SIZE)).kind is Kind.POINT
    assert connection.recv_bytes(4 * D) == struct.pack("3f", 0, 1, 2)
    return connection


def delivered(connection: Connection, worker: int, row: bytes, version: int = 0) -> None:
    connection.send_bytes(Header(Kind.GRADIENT, worker, first=version).packed())
    assert header_of(connection.recv_bytes(SIZE)).kind is Kind.GO
    connection.send_bytes(row + b"\1{}" if len(row) == 4 * D else row)


def awaited(service: Service, seconds: float = 5.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (message := service.next()) is not None:
            return message
    return None


def test_a_message_and_the_next_parameters(served) -> None:
    service, engine, _ = served
    connection = came(engine, 1)
    delivered(connection, 1, struct.pack("3f", 1, 2, 3))
    message = awaited(service)
    assert message.worker == 1
    assert message.row.tolist() == [1.0, 2.0, 3.0]
    service.publish(torch.ones(3), version=1, epoch=0, step=1)
    service.answer(1, accepted=True)
    header = header_of(connection.recv_bytes(SIZE))
    assert (header.kind, header.flag, header.first) == (Kind.POINT, True, 1)
    assert connection.recv_bytes(4 * D) == struct.pack("3f", 1, 1, 1)


def test_strangers_and_malformed_frames_change_nothing_but_a_count(served) -> None:
    service, engine, said = served
    honest = came(engine, 0)
    for attempt in range(50):  # no key, another worker's key, no worker at all, nothing said
        stranger = connection_of(socket.create_connection(service.address), 1.0)
        if attempt % 5:
            stranger.send_bytes(struct.pack("<H", attempt % 5))
            with suppress(OSError, EOFError):
                stranger.recv_bytes(64)
                stranger.send_bytes(os.urandom(16))
                assert stranger.recv_bytes(64) == b"#FAILURE#"
        stranger.close()
    with pytest.raises(OSError, match="did not take"):
        knock(service.address, 0, engine.seats[1].key, patience=2.0)
    generator = np.random.default_rng(0)
    liar = came(engine, 1)
    for attempt in range(10_000):
        try:
            if attempt % 100 == 99:  # longer than a header: the connection ends
                liar.send_bytes(generator.bytes(SIZE + 1 + int(generator.integers(4000))))
                with suppress(OSError, EOFError):
                    liar.recv_bytes(1)
                liar = came(engine, 1)
            else:
                liar.send_bytes(generator.bytes(int(generator.integers(SIZE + 1))))
        except (OSError, EOFError):
            liar = came(engine, 1)
    delivered(honest, 0, struct.pack("3f", 4, 5, 6))
    message = awaited(service)
    assert message.worker == 0
    assert message.row.tolist() == [4.0, 5.0, 6.0]
    service.answer(0, accepted=True)
    until = time.monotonic() + 10
    while service.malformed < 10_000 and time.monotonic() < until:
        time.sleep(0.05)
    assert service.malformed == 10_000
    assert service.strangers >= 51
    assert awaited(service, 0.3) is None
    assert not [text for text in said if "Worker 0" in text]


def test_payloads_of_another_size_or_of_the_future_are_refused(served) -> None:
    service, engine, _ = served
    connection = came(engine, 1)
    delivered(connection, 1, b"\0" * (4 * D - 1))
    delivered(connection, 1, b"\0" * 4 * D, version=7)
    delivered(connection, 1, struct.pack("3f", 1, 2, 3))
    assert awaited(service).row.tolist() == [1.0, 2.0, 3.0]
    assert service.malformed == 2


def test_a_worker_that_differs_is_not_used(served) -> None:
    service, engine, _ = served
    seat = engine.seats[0]
    connection = knock(seat.address, 0, seat.key, patience=5.0)
    connection.send_bytes(Header(Kind.HELLO, 0, first=1, second=3).packed())
    with pytest.raises((OSError, EOFError)):
        connection.recv_bytes(SIZE)
    awaited(service, 1.0)
    told = next(event for _, event in service.events if event.word == "differs")
    assert service.words[0] == "differs"
    assert "Worker 0 has another library than the server" in refused(told)
    assert service._common.inbox.empty()


def test_the_server_holds_few_messages_beside_its_table() -> None:
    """Of twelve messages announced at once, four are received; the others stay with their workers until there is room."""
    engine = Nobody(12)
    limits = {"deadline": 5.0, "restarts": 0}
    service = Service(engine, Sizes(LAYOUT, 0, Gradient()), (1, 2), tell=print, **limits)
    service.publish(torch.arange(3.0), version=0, epoch=0, step=0)
    try:
        for worker in range(12):
            engine.start(service._seat(worker, None))
        service._door.open()
        connections = [came(engine, worker) for worker in range(12)]
        for worker, connection in enumerate(connections):
            connection.send_bytes(Header(Kind.GRADIENT, worker).packed())
        time.sleep(0.5)
        assert sum(connection.poll(0) for connection in connections) == 4
    finally:
        service.close()


def test_silence_is_named_and_may_end(served) -> None:
    service, engine, said = served
    connection = came(engine, 1)
    until = time.monotonic() + 5
    while service.away != [1] and time.monotonic() < until:
        awaited(service, 0.1)
    assert service.away == [1]
    awaited(service, 0.2)
    assert "Worker 1 has sent nothing for 2 s" in said[0]
    delivered(connection, 1, b"\0" * 4 * D)
    assert awaited(service).worker == 1
    assert service.away == []
