"""What the server makes of an actor's answers, and what is refused of Ray, without Ray."""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from lightning_byz.estimators import Gradient
from lightning_byz.flat import Layout
from lightning_byz.serving import Engine, Ray, Seat, Service
from lightning_byz.serving import ray_engine as engine_module
from lightning_byz.serving.messages import Sizes
from lightning_byz.serving.ray_engine import RayEngine, refuse_without_ray
from lightning_byz.serving.ray_line import RayLine

LAYOUT = Layout(("weight",), ((3,),), torch.float32)
GOOD = np.frombuffer(np.array([1, 2, 3], np.float32).tobytes() + b"\1{}", np.uint8)


class Told(Exception):
    """What Ray raises."""


class Unavailable(Told):
    """Likewise."""


FAKE = SimpleNamespace(
    exceptions=SimpleNamespace(
        RayError=Told, RayActorError=type("Died", (Told,), {}), RayTaskError=type("Task", (Told,), {})
    ),
    wait=lambda answers, timeout: (answers, []),
    kill=lambda actor: None,
)
FAKE.exceptions.ActorUnavailableError = type("Away", (FAKE.exceptions.RayActorError,), {})


def got(answer):
    if isinstance(answer, Exception):
        raise answer
    return answer


FAKE.get = got


class Scripted:
    """An actor that answers what a test says, call by call; without more to say it has died."""

    def __init__(self, **answers) -> None:
        self.calls: list[tuple] = []
        for name in ("greet", "begin", "turn", "message", "memory"):
            setattr(self, name, SimpleNamespace(remote=self._say(name, list(answers.get(name, [])))))

    def _say(self, name: str, answers: list):
        def remote(*given):
            self.calls.append((name, *given))
            return answers.pop(0) if answers else FAKE.exceptions.RayActorError("because its node has died")

        return remote


class Actors(Engine):
    knocks: ClassVar[bool] = False

    def __init__(self, actor: Scripted) -> None:
        self.workers, self.actor, self.how = 1, actor, {}

    def start(self, seat: Seat) -> None:
        pass

    def line(self, seat, common) -> RayLine:
        told = {"known": lambda pid: None, "ended": lambda how: self.how.update({0: how})}
        return RayLine(FAKE, self.actor, {}, seat, common, **told)

    def ended(self) -> Mapping[int, str]:
        return self.how

    def close(self) -> None:
        pass


@pytest.fixture
def serve() -> Iterator:
    services = []

    def served(**answers) -> tuple[Service, Scripted, list[str]]:
        said, actor = [], Scripted(**answers)
        limits = {"deadline": 2.0, "restarts": 0, "tell": said.append}
        service = Service(Actors(actor), Sizes(LAYOUT, 0, Gradient()), (1, 2), **limits)
        services.append(service)
        service.publish(torch.arange(3.0), version=0, epoch=0, step=0)
        service._begin(0, None)
        return service, actor, said

    yield served
    for service in services:
        service.close()


def words(service: Service, count: int) -> list[str]:
    for _ in range(50):
        service._looked = 0.0
        try:
            service.next()
        except Exception:
            break
        if len(service.events) >= count:
            break
    return [event.word for _, event in service.events]


def test_a_message_and_the_next_turn(serve) -> None:
    service, actor, _ = serve(greet=[(2, 77)], begin=[1], turn=[(5, 0.25)], message=[GOOD])
    message = None
    while message is None:
        message = service.next()
    assert (message.worker, message.version, message.turn, message.loss) == (0, 0, 5, 0.25)
    assert message.row.tolist() == [1.0, 2.0, 3.0]
    service.answer(0, accepted=True)
    assert words(service, 3) == ["came", "ready", "ended"]
    turns = [call for call in actor.calls if call[0] == "turn"]
    assert [call[1] for call in turns] == [False, True]
    assert turns[0][4].tobytes() == np.arange(3, dtype=np.float32).tobytes()


def test_what_is_no_message_is_counted(serve) -> None:
    wrong = [GOOD[:5], GOOD.astype(np.int16), b"1", np.zeros(99_999, np.uint8), GOOD.reshape(5, -1), None]
    turns = [None, (1,), (1, 2), ("1", 0.5), (-1, 0.5), *[(1, 0.5)] * len(wrong)]
    service, _, _ = serve(greet=[(2, 77)], begin=[1], turn=turns, message=[GOOD, *wrong])
    assert words(service, 3) == ["came", "ready", "ended"]
    assert service.malformed == len(turns)
    assert service._common.inbox.empty()


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"greet": [(3, 77)]}, ["differs", "ended"]),
        ({"greet": [(2, 77)], "begin": [9]}, ["differs", "ended"]),
        ({"greet": [(2, 77)], "begin": ["no module"]}, ["error", "ended"]),
        ({"greet": [FAKE.exceptions.RayTaskError("it cannot be unpickled")]}, ["error", "ended"]),
        ({"greet": [(2, 77)], "begin": [1], "turn": ["a bad sample"]}, ["came", "error", "ended"]),
        (
            {"greet": [(2, 77)], "begin": [1], "turn": [FAKE.exceptions.ActorUnavailableError(), (0, 0.5)]},
            ["came", "unreachable", "back", "ready", "ended"],
        ),
    ],
)
def test_what_happens_is_named(serve, answers, expected) -> None:
    service, _, _ = serve(**answers)
    assert words(service, len(expected)) == expected


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_cpus": -1}, "num_cpus=-1: give how much"),
        ({"resources": {"site": float("nan")}}, "site=nan: give how much"),
        ({"address": "ray://there:10001"}, "outside the cluster: run the script on a node of it"),
    ],
)
def test_options_are_refused(options, match) -> None:
    with pytest.raises(ValueError, match=match):
        Ray(**options)


def test_without_ray_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setattr(engine_module, "find_spec", lambda name: None)
    for call in (refuse_without_ray, lambda: RayEngine({}, Ray(), threads=1)):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-byz\[ray\]'"):
            call()
