"""One real service for the whole folder: real gRPC port, real Ray, real store server. Started once."""

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import grpc
import pytest
import ray

from riverrun.actors.serve import Service
from riverrun.client.sync import Client
from riverrun.configs import load_service
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos import riverrun_pb2_grpc as rpc

from . import own_model, wrong_model
from .collector import Collector

DEADLINE_S = 60
"""Of every wait. A machine may be busy; none of them lasts when it is not."""


def eventually(what: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """The first truthy value of `what()`, asked again and again."""
    until = time.monotonic() + deadline_s
    pause = threading.Event()
    while not (value := what()):
        assert time.monotonic() < until, f"not true after {deadline_s} s: {what}"
        pause.wait(0.02)
    return value


@dataclasses.dataclass
class Stubs:
    """The four services of one address."""

    channel: grpc.Channel

    def __post_init__(self) -> None:
        self.sessions = rpc.SessionsStub(self.channel)
        self.streams = rpc.StreamsStub(self.channel)
        self.jobs = rpc.JobsStub(self.channel)
        self.cluster = rpc.ClusterStub(self.channel)

    def create(self, graph: str = "synthetic", **fields: Any) -> pb.Session:
        params = fields.pop("params", {})
        request = pb.CreateSessionRequest(graph=graph, **fields)
        request.params.update(params)
        return self.sessions.Create(request, timeout=DEADLINE_S)

    def get(self, session: str) -> pb.Session:
        return self.sessions.Get(pb.GetSessionRequest(session_id=session), timeout=DEADLINE_S)

    def close(self, session: str) -> pb.Session:
        return self.sessions.Close(pb.CloseSessionRequest(session_id=session), timeout=DEADLINE_S)

    def status(self) -> pb.StatusResponse:
        return self.cluster.Status(pb.StatusRequest(), timeout=DEADLINE_S)

    def connect(self, session: pb.Session, **fields: Any) -> "Stream":
        return Stream(self, session, **fields)


class Running:
    """A service on a loop and thread of its own. here: those that run now."""

    here: ClassVar[list["Running"]] = []

    def __init__(self, config: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.service = Service(config)

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    def start(self) -> None:
        self.call(self.service.__aenter__())
        self.here.append(self)

    def stop(self) -> None:
        self.here.remove(self)
        self.call(self.service.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@contextlib.contextmanager
def serving(*settings: str) -> Iterator[Running]:
    """A service of these settings on a Ray of its own, for a module that wants other models than the folder's one."""
    running = Running(load_service(None, ["port=0", "ray_address=local", "drain_s=1", *settings]))
    running.start()
    yield running
    running.stop()


def end_controller() -> None:
    """Ends the controller of the Ray of this process, which outlives its gateways, and its actors, which outlive it."""
    ray.kill(ray.get_actor("riverrun-controller", namespace="riverrun"))
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == "riverrun-actors":
            with contextlib.suppress(ValueError):  # it has just died
                ray.kill(ray.get_actor(**actor))


@contextlib.contextmanager
def client_of(running: Running, *models: str) -> Iterator[Client]:
    """A client, when these models are there; they are started if need be."""
    with Client(running.service.address) as client:
        eventually(lambda: set(models) <= {m.name for m in client.models(start=models) if m.outputs}, 4 * DEADLINE_S)
        yield client


class Stream:
    """One connection, read and written by the test's own hand. Every wait has a deadline."""

    def __init__(self, stubs: Stubs, session: pb.Session, **fields: Any) -> None:
        fields.setdefault("role", pb.ROLE_CONTROLLER)
        fields.setdefault("resume_token", session.resume_token)
        self._outbox: list[pb.ClientMessage | None] = []
        self._news = threading.Condition()
        self.say(open=pb.Open(session_id=session.session_id, **fields))
        self._call = stubs.streams.Connect(self._requests(), timeout=DEADLINE_S)

    def say(self, **message: Any) -> None:
        with self._news:
            self._outbox.append(pb.ClientMessage(**message))
            self._news.notify()

    def half_close(self) -> None:
        with self._news:
            self._outbox.append(None)
            self._news.notify()

    def credit(self, frames: int, port: str = "frames") -> None:
        self.say(credit=pb.Credit(port=port, frames=frames))

    def control(self, revision: int, **kind: Any) -> None:
        self.say(control=pb.Control(revision=revision, **kind))

    def next(self) -> pb.ServerMessage | None:
        """The next message; None at the end. Raises grpc.RpcError."""
        return next(self._call, None)

    def until(self, kind: str) -> Any:
        """The next message of this kind; what comes before is dropped."""
        while (message := self.next()) is not None:
            if message.WhichOneof("message") == kind:
                return getattr(message, kind)
        raise AssertionError(f"the stream ended before a message {kind!r}")

    def frames(self, count: int) -> list[pb.FramePart]:
        return [self.until("frame") for _ in range(count)]

    def receipts(self, revision: int) -> list[pb.Receipt]:
        """All receipts of a control, to its last one. Frames on the way are dropped, with credit for another each: a
        control waits for a step, and a step for room."""
        found: list[pb.Receipt] = []
        while not found or found[-1].stage == pb.Receipt.STAGE_RECEIVED:
            message = self.next()
            assert message is not None, "the stream ended before the receipt"
            if message.WhichOneof("message") == "frame":
                self.credit(1, message.frame.port)
            elif message.HasField("receipt") and message.receipt.revision == revision:
                found.append(message.receipt)
        return found

    def rest(self) -> list[pb.ServerMessage]:
        """Everything to the end of the call."""
        found = []
        while (message := self.next()) is not None:
            found.append(message)
        return found

    def cancel(self) -> None:
        self._call.cancel()
        self.half_close()

    def _requests(self):
        sent = 0
        while True:
            with self._news:
                self._news.wait_for(lambda: len(self._outbox) > sent, timeout=DEADLINE_S)  # noqa: B023
                message = self._outbox[sent] if len(self._outbox) > sent else None
            sent += 1
            if message is None:
                return
            yield message


def own_models(folder: Path) -> None:
    """A user's package with a model, two YAMLs that name it (one wrongly), and their graphs."""
    (folder / "greys").mkdir()
    (folder / "greys" / "mod.py").write_text(own_model.MODEL)
    for name, arg in (("grey", "factor"), ("broken", "faktor")):
        (folder / f"{name}.yaml").write_text(own_model.YAML.format(name=name, arg=arg))
        graph = f"name: {name}\nstages: {{make: {{model: {name}}}}}\noutputs: {{frames: make.frames}}\n"
        (folder / f"{name}-graph.yaml").write_text(graph)


@pytest.fixture(scope="session")
def collector():
    """Where the service sends its spans."""
    kept = Collector()
    yield kept
    kept.stop()


@pytest.fixture(scope="session")
def running(tmp_path_factory, collector):
    folder = tmp_path_factory.mktemp("service")
    (folder / "chain.yaml").write_text(
        "name: chain\nstages: {make: {model: synthetic}, turn: {model: synthetic}}\n"
        "edges: [{from: make.frames, to: turn.frames}]\noutputs: {frames: turn.frames}\n"
    )
    (folder / "turn.yaml").write_text(
        "name: turn\nstages: {turn: {model: synthetic}}\ninputs: {video: turn.frames}\noutputs: {frames: turn.frames}\n"
    )
    own_models(folder)
    wrong, of_wrong = wrong_model.wrong_models(folder)
    graphs = ",".join(
        [*(f"{folder}/{name}.yaml" for name in ("chain", "turn", "grey-graph", "broken-graph")), *of_wrong]
    )
    models = ",".join(["synthetic", f"{folder}/grey.yaml", f"{folder}/broken.yaml", *wrong])
    overrides = ["port=0", f"models=[{models}]", f"graphs=[{graphs}]", "ray_address=local"]
    overrides += ["checkpoints.chunks=0"]  # sessions end with their actors here; test_survival has those that do not
    overrides += ["drain_s=1", "step_timeout_s=3", "metrics_port=0", f"trace.endpoint={collector.address}"]
    service = Running(load_service(None, overrides))
    service.start()
    yield service
    service.stop()


@pytest.fixture(scope="session")
def stubs(running):
    with grpc.insecure_channel(running.service.address) as channel:
        yield Stubs(channel)


@pytest.fixture
def code():
    """Runs a call that must fail: its code and its one line."""

    def run(call: Callable[[], Any]) -> tuple[str, str]:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert "\n" not in caught.value.details()
        return caught.value.code().name, caught.value.details()

    return run


@pytest.fixture(scope="session", autouse=True)
def _one_ray(ray_cluster):
    """All services of this folder that run in this process share it."""


@pytest.fixture(autouse=True)
def _nothing_is_left():
    """After each test no session runs that did not before, and every service's books add up, its actors' and store's
    too."""
    before = {id(running): running.service.sessions for running in Running.here}
    yield
    for running in list(Running.here):
        eventually(lambda running=running: running.service.sessions <= before.get(id(running), 0))
        running.call(running.service.check())


__all__ = ["DEADLINE_S", "Running", "Stream", "Stubs", "eventually"]
