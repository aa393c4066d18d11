"""Any message at all, through the real port: never INTERNAL, never UNKNOWN, never a hang, and a neighbour streams on.

The gateway is the real one; its stages are in this process, without Ray, so that hundreds of clients take seconds.
"""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from riverrun.actors.directory import Placed
from riverrun.actors.gateway import Gateway
from riverrun.actors.host import SessionHost, SessionWish
from riverrun.actors.stage import StageWorker
from riverrun.configs import ServiceConfig
from riverrun.graphs.consumer import ConsumerSpec
from riverrun.graphs.consumer import Role as Reads
from riverrun.graphs.graph import Endpoint, Graph, StageSpec
from riverrun.graphs.items import Frame
from riverrun.graphs.waiting import SystemClock
from riverrun.models.base import param_infos
from riverrun.models.synthetic import Synthetic, SyntheticParams, source_frame
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos.wire import Header, split
from riverrun.store.memory import MemoryStore
from riverrun.store.records import Placement, SessionState

WAIT_S = 60
REFUSALS = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND", "RESOURCE_EXHAUSTED", "PERMISSION_DENIED"}
STAGE = (StageSpec("turn", "synthetic"),)
OUT = {"frames": Endpoint("turn", "frames")}
GRAPHS = {
    "source": Graph("source", STAGE, OUT),
    "turn": Graph("turn", STAGE, OUT, inputs={"video": Endpoint("turn", "frames")}),
}
TURN = {"takes": 1, "chunk_frames": 1, "height": 4, "width": 4}
QUICK = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class Local:
    """A stage in this process: a worker's blocking calls on threads."""

    def __init__(self, worker, threads) -> None:
        self._worker, self._threads = worker, threads

    def __getattr__(self, name):
        method = getattr(self._worker, name)

        async def call(*args):
            return await asyncio.get_running_loop().run_in_executor(self._threads, method, *args)

        return call

    async def fetch(self, data):
        return data


class House:
    """A gateway on a loop and thread of its own, with a neighbour whose session streams all the while."""

    SEED = 9

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.threads = ThreadPoolExecutor(64)
        self.worker = StageWorker(Synthetic(), "i1", max_sessions=32, max_bytes=1 << 26)
        self.threads.submit(self.worker.run)
        stages = {"turn": Local(self.worker, self.threads)}
        fields = {"turn": frozenset(p.name for p in param_infos(SyntheticParams))}
        placed = Placed(stages, {}, {"turn": Placement("a", "synthetic", "i1")}, fields)
        directory = SimpleNamespace(
            graph=self.graph, place=lambda *_, **__: asyncio.sleep(0, placed), settled=lambda session: None
        )
        clock = SystemClock()
        self.host = SessionHost(directory, MemoryStore(now=clock.now), clock, ServiceConfig(), "here")
        self.call(self._start(directory))
        self.channel = grpc.insecure_channel(self.gateway.address)
        self.number = 0
        self.neighbour = self.call(self._neighbour())

    def graph(self, name):
        return GRAPHS.get(name) or GRAPHS["source"]

    def call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT_S)

    async def _start(self, directory):
        self.gateway = Gateway(self.host, directory, "memory")
        await self.gateway.start("127.0.0.1", 0)

    async def _neighbour(self):
        hosted = await self.host.create(SessionWish("source", {"prompt": "n", "height": 4, "width": 4}, seed=self.SEED))
        return hosted.runner.attach(ConsumerSpec(Reads.CONTROLLER, credits=16))

    def streams_on(self, frames: int = 4) -> None:
        """The neighbour's next frames are the right ones, and the books of all add up."""
        self.call(self._read(frames))
        self.worker.check()

    async def _read(self, frames):
        while frames:
            item = await self.neighbour.next()
            if isinstance(item, Frame):
                assert item.number == self.number
                assert np.array_equal(item.array, source_frame(self.SEED, "n", item.number // 4, item.number, 4, 4))
                self.neighbour.credit("frames", 1)
                self.number, frames = self.number + 1, frames - 1

    def create(self):
        return self.call(self.host.create(SessionWish("turn", TURN)))

    def end(self, hosted) -> None:
        """Whatever was said, the session did not fail of it."""
        state = hosted.runner.state
        hosted.runner.check()
        self.call(hosted.runner.close("test over"))
        assert state in (SessionState.RUNNING, SessionState.DRAINING, SessionState.CLOSED), hosted.runner.record.reason

    def leave(self) -> None:
        self.channel.close()
        self.call(self.gateway.stop(0.0, "test over"))
        self.worker.stop()
        self.worker.check()
        assert self.worker.health().sessions == 0
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.threads.shutdown()


@pytest.fixture(scope="module")
def house():
    made = House()
    yield made
    made.leave()


# ---- what clients may say ----

TEXT = st.text(max_size=3) | st.sampled_from(["frames", "video", "turn", "prompt", "step_ms"])
U64 = st.integers(0, 4) | st.sampled_from([2**32 - 1, 2**63, 2**64 - 1])
U32 = st.integers(0, 20) | st.sampled_from([512, 513, 2**31, 2**32 - 1])
NUMBERS = st.sampled_from([0.0, 1, 4, -1, 0.5, 1e308, float("nan"), float("inf"), 2.0**63])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
PARAMS = [
    "prompt",
    "state_bytes",
    "takes",
    "chunk_frames",
    "height",
    "width",
    "fps",
    "batch",
    "turn.height",
    "a.b",
    "x",
]


def structs(names):
    return st.dictionaries(names, VALUES, max_size=4)


def with_struct(message, field, values):
    if values is not None:
        getattr(message, field).update(values)
    return message


def frame(number, shape, dtype, change):
    header = Header("video", frame=number, chunk=0, index_in_chunk=0, pts=number * 100, epoch=0, revision=0)
    (part,) = split(np.zeros(shape, dtype), header)
    for name, value in change.items():
        setattr(part, name, value)
    return pb.ClientMessage(frame=part)


FRAMES = st.builds(
    frame,
    st.integers(0, 3),
    st.sampled_from([(4, 4, 3), (4, 4, 3), (4, 4, 3), (2, 4, 3), (4, 4), (0,)]),
    st.sampled_from([np.uint8, np.uint8, np.float32]),
    st.fixed_dictionaries(
        {},
        optional={
            "port": TEXT,
            "frame": U64,
            "pts": st.integers(-(2**63), 2**63 - 1),
            "codec": st.integers(-1, 9),
            "part": U32,
            "parts": U32,
            "data": st.binary(max_size=100),
        },
    )
    | st.just({}),
)
CONTROLS = st.builds(
    lambda fields, parameters: pb.ClientMessage(
        control=pb.Control(**fields)
        if parameters is None
        else with_struct(pb.Control(**fields), "parameters", parameters)
    ),
    st.fixed_dictionaries({"revision": U64}, optional={"prompt": TEXT, "stage": TEXT, "pause": st.booleans()}),
    st.none() | structs(TEXT),
)
MESSAGES = st.one_of(
    FRAMES,
    FRAMES,
    CONTROLS,
    st.builds(lambda port, n: pb.ClientMessage(credit=pb.Credit(port=port, frames=n)), st.just("frames") | TEXT, U32),
    st.builds(lambda port, n: pb.ClientMessage(ack=pb.Ack(port=port, frame=n)), st.just("frames") | TEXT, U64),
    st.just(pb.ClientMessage(ping=pb.Ping(nonce=1))),
    st.just(pb.ClientMessage(finish=pb.Finish())),
    st.just(pb.ClientMessage()),
    st.builds(lambda session: pb.ClientMessage(open=pb.Open(session_id=session)), TEXT),
)
WISHES = st.builds(
    lambda port, codec, quality, credits, last: pb.PortWish(
        port=port, codec=codec, quality=quality, credits=credits, last_received=last
    ),
    st.just("frames") | TEXT,
    st.integers(0, 4),
    st.integers(0, 101),
    U32,
    st.none() | U64,
)
LAST = 2**64 - 1


def answer(call) -> str:
    """Makes a call: the code it ends with."""
    try:
        call()
    except grpc.RpcError as error:
        return f"{error.code().name}{': two lines' if chr(10) in error.details() else ''}"
    return "OK"


def talk(house, messages) -> str:
    """Says all that; the code with which the service ends the call, or OK where it answers a last ping first."""
    heard = threading.Event()

    def requests():
        yield from messages
        yield pb.ClientMessage(ping=pb.Ping(nonce=LAST))
        heard.wait(WAIT_S)

    stub = house.channel.stream_stream(
        "/riverrun.v1.Streams/Connect",
        request_serializer=pb.ClientMessage.SerializeToString,
        response_deserializer=pb.ServerMessage.FromString,
    )
    call = stub(requests(), timeout=WAIT_S)

    def over(message):
        return message.pong.nonce == LAST or message.event.type == pb.Event.TYPE_ENDED

    code = answer(lambda: next(filter(over, call), None))
    heard.set()
    call.cancel()
    return code


GOOD = st.just([pb.PortWish(port="frames", credits=8)])


@given(st.lists(MESSAGES, max_size=8), GOOD | GOOD | st.lists(WISHES, max_size=2), st.sampled_from([1, 1, 1, 1, 2, 7]))
@QUICK
def test_any_conversation_is_answered_or_refused(house, messages, wishes, role):
    hosted = house.create()
    session = hosted.runner.record.id
    opening = pb.Open(session_id=session, role=role, resume_token=hosted.token, ports=wishes)
    code = talk(house, [pb.ClientMessage(open=opening), *messages])
    assert code in {"OK", *REFUSALS}
    house.streams_on()
    house.end(hosted)


@given(st.lists(MESSAGES, max_size=3))
@QUICK
def test_a_conversation_without_an_opening_is_refused(house, messages):
    assert talk(house, messages) in REFUSALS
    house.streams_on()


@given(structs(st.sampled_from(PARAMS) | st.text(max_size=3)), U64, st.text(max_size=140), st.integers(-5, 5))
@example({"chunk_frames": 1e308}, 0, "", 0)
@QUICK
def test_any_parameters_open_a_session_or_are_refused(house, params, seed, client, idle):
    request = pb.CreateSessionRequest(graph="source", seed=seed, client_id=client, max_frames=seed)
    request.params.update(params)
    request.idle_timeout.seconds = idle
    create = house.channel.unary_unary(
        "/riverrun.v1.Sessions/Create",
        request_serializer=pb.CreateSessionRequest.SerializeToString,
        response_deserializer=pb.Session.FromString,
    )
    code = answer(lambda: house.call(house.host.close(create(request, timeout=WAIT_S).session_id, "test over")))
    assert code in {"OK", *REFUSALS}
    house.streams_on()


METHODS = [f"Sessions/{name}" for name in ("Create", "Get", "List", "Close")]
METHODS += [f"Jobs/{name}" for name in ("Submit", "Get", "Cancel", "Watch")]


@given(st.sampled_from(METHODS), st.binary(max_size=40))
@QUICK
def test_any_bytes_are_answered_or_refused(house, method, data):
    path = f"/riverrun.v1.{method}"
    if method == "Jobs/Watch":
        code = answer(lambda: list(house.channel.unary_stream(path)(data, timeout=WAIT_S)))
    else:
        code = answer(lambda: house.channel.unary_unary(path)(data, timeout=WAIT_S))
    assert code in {"OK", *REFUSALS}
    house.streams_on(1)


@given(st.text(max_size=20), U32)
@QUICK
def test_any_page_token_is_answered_or_refused(house, token, size):
    stub = house.channel.unary_unary("/riverrun.v1.Sessions/List", pb.ListSessionsRequest.SerializeToString)
    code = answer(lambda: stub(pb.ListSessionsRequest(page_token=token, page_size=size), timeout=WAIT_S))
    assert code in {"OK", *REFUSALS}
