"""What breaks under a session: its model, its actor, its store, its client. Who is not concerned streams on."""

import asyncio
import contextlib

import numpy as np
import pytest
import redis
import torch
from safetensors.torch import save_file

from riverrun.graphs.stage import Epoch
from riverrun.models.synthetic import colour, frame_number
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos.wire import Joiner
from riverrun.store.sessions import SessionStore

from .bad_input import LARGE, PICTURES, TURN, parts_of
from .conftest import eventually
from .wrong_model import WAIT_S, Neighbour


@pytest.fixture
def neighbour(stubs):
    other = Neighbour(stubs)
    other.goes_on()
    yield other
    other.goes_on()
    other.leave()


def wish(credits: int = 500, **more) -> list[pb.PortWish]:
    return [pb.PortWish(port="frames", credits=credits, **more)]


def how_it_ends(stubs, session, code) -> tuple[str, str]:
    """Code and line of a session that fails; the event before them says the same."""
    stream = stubs.connect(session, ports=wish())
    event = stream.until("event")
    assert event.type == pb.Event.TYPE_ENDED
    stream.half_close()
    name, line = code(stream.rest)
    assert line == event.reason
    assert stubs.get(session.session_id).state == pb.SESSION_STATE_FAILED
    return name, line


# ---- models ----


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raise", "RuntimeError: the model gave up for good"),
        ("nothing", "NoneType"),
        ("shape", "port 'frames' takes"),
        ("dtype", "port 'frames' takes"),
        ("short", "port 'frames' takes"),
        ("port", "port 'film'"),
        ("many", "2 chunks"),
        ("results", "results for"),
    ],
)
def test_a_model_that_does_wrong_ends_its_session_alone(stubs, neighbour, code, how, words):
    beside = stubs.create(graph="wrong")
    stream = stubs.connect(beside, ports=wish())
    stream.frames(2)
    name, line = how_it_ends(stubs, stubs.create(graph="wrong", params={"how": how}), code)
    assert (name, line.startswith("stage 'make' "), words in line) == ("INTERNAL", True, True), line
    frames = [Joiner().add(part).array for part in stream.frames(20)]
    assert [int(frame[0, 0, 0]) for frame in frames] == [2 + n // 2 for n in range(20)]
    stream.cancel()
    stubs.close(beside.session_id)


@pytest.mark.parametrize("how", ["exit_at", "hang_at"])
def test_who_shares_the_actor_of_a_model_that_exits_or_hangs_gets_unavailable(stubs, code, how):
    elsewhere = stubs.create(graph="wrong")
    beside, stream = Neighbour(stubs), stubs.connect(elsewhere, ports=wish(8))
    beside.goes_on()
    stream.frames(8)
    name, line = how_it_ends(stubs, stubs.create(params={how: 3, "batch": False}), code)
    assert (name, "actor synthetic-0" in line, "died" in line) == ("UNAVAILABLE", True, True), line
    assert beside.ended() == (name, line)
    stream.credit(8)
    assert len(stream.frames(8)) == 8
    stream.cancel()
    stubs.close(elsewhere.session_id)
    after = Neighbour(stubs)  # another actor is there
    after.goes_on()
    after.leave()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing", r"no such file or folder: .*weights.safetensors"),
        ("truncated", "weights.safetensors is no whole safetensors file"),
        ("noise", "weights.safetensors is no whole safetensors file"),
        ("keys", "the weights don't fit Linear: 1 missing: bias; 1 unexpected: bais"),
        ("shapes", r"the weights don't fit Linear: 1 of another shape: weight is \[4, 5\], not \[4, 4\]"),
    ],
)
def test_weights_that_are_damaged_or_of_another_model_are_named(tmp_path, damage, words):
    from riverrun.models.base import BadRequest
    from riverrun.models.weights import load_strict, read

    file = tmp_path / "weights.safetensors"
    write_weights(file, damage)
    with pytest.raises(BadRequest, match=words) as caught:
        load_strict(torch.nn.Linear(4, 4), read(file))
    assert "\n" not in str(caught.value)


def write_weights(file, damage: str) -> None:
    tensors = {"weight": torch.zeros(4, 5 if damage == "shapes" else 4), "bias": torch.zeros(4)}
    if damage == "keys":
        tensors["bais"] = tensors.pop("bias")
    if damage != "missing":
        save_file(tensors, file)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-7])
    if damage == "noise":
        file.write_bytes(np.random.default_rng(0).bytes(4096))


def test_a_model_whose_weights_are_not_there_is_unavailable(stubs, neighbour, code):
    name, line = code(lambda: stubs.create(graph="weighed"))
    assert (name, "model 'weighed' can't be loaded: " in line, "weights.safetensors" in line) == (
        "UNAVAILABLE",
        True,
        True,
    ), line


# ---- clients ----


def test_a_client_that_vanishes_in_the_middle_of_its_frame(stubs, neighbour):
    session = stubs.create(graph="turn", params=TURN)
    stream = stubs.connect(session, ports=wish())
    stream.until("opened")
    stream.say(frame=parts_of(LARGE)[0])
    stream.say(ping=pb.Ping(nonce=1))
    stream.until("pong")  # so the part has arrived
    stream.cancel()
    again = stubs.connect(session, ports=wish())
    again.say(frame=parts_of(PICTURES.right)[0])
    assert again.until("input_ack").frame == 0
    assert len(again.frames(1)) == 1
    again.cancel()
    stubs.close(session.session_id)


def test_a_client_that_vanishes_in_the_middle_of_ours(stubs, neighbour):
    session = stubs.create(params={"height": 1024, "width": 1024, "chunk_frames": 1})
    stream = stubs.connect(session, ports=wish(1))
    assert stream.frames(1)[0].parts == 3
    stream.cancel()
    again, joiner, whole = stubs.connect(session, ports=wish(2)), Joiner(), []
    while len(whole) < 2:
        whole += [joined.array for joined in [joiner.add(again.until("frame"))] if joined]
    assert [frame_number(array) for array in whole] == [0, 1]
    again.cancel()
    stubs.close(session.session_id)


def test_a_controller_that_was_replaced_steers_no_more(stubs, neighbour):
    session = stubs.create(params={"prompt": "sea"}, seed=5)
    first = stubs.connect(session, ports=wish(4))
    first.frames(4)
    second = stubs.connect(session, ports=wish(4, last_received=3))
    assert first.until("event").type == pb.Event.TYPE_REPLACED
    first.control(1, prompt="stolen")
    first.credit(100)
    first.half_close()
    assert first.rest() == []
    second.control(1, prompt="sand")
    second.credit(100)
    applied = second.receipts(1)[-1]
    assert applied.stage == pb.Receipt.STAGE_APPLIED
    part = second.frames(1)[0]
    assert part.revision == 1
    assert (Joiner().add(part).array[1, 1] == colour(5, "sand", part.chunk)).all()
    second.cancel()
    stubs.close(session.session_id)


# ---- the store, and other gateways ----


def test_a_session_that_another_gateway_has_taken_is_aborted_here(stubs, running, neighbour, code):
    session = stubs.create()
    stream = stubs.connect(session, ports=wish(4))
    stream.frames(4)

    async def take() -> int:
        store = SessionStore(running.service.store_url)
        record = await store.get(session.session_id)
        taken = await store.take(record.id, record.version, record.epoch + 1, "another")
        await store.close()
        return taken.epoch

    assert asyncio.run(take()) == 2
    event = stream.until("event")
    assert (event.type, event.reason) == (pb.Event.TYPE_SUSPENDED, "another gateway goes on with it")
    assert event.HasField("retry_after")
    stream.half_close()
    assert stream.rest() == []

    async def delete() -> None:
        host = running.service._gateway._host
        stage, placement = next(iter((await host.elsewhere.record(session.session_id)).placement.items()))
        handle = await host.directory.placer(host.directory.graph("synthetic")).find(stage, placement)
        await handle.close(session.session_id, Epoch(2, "another"))
        await host.store.delete(session.session_id)

    running.call(delete())


@contextlib.contextmanager
def refusing(store: redis.Redis, how: str):
    """The store takes no writes inside."""
    if how == "replica":
        store.execute_command("REPLICAOF", "127.0.0.1", "1")
        yield
        store.execute_command("REPLICAOF", "NO", "ONE")
        return
    name, value = {"full": ("maxmemory", "1"), "lonely": ("min-replicas-to-write", "1")}[how]
    before = store.config_get(name)[name]
    store.config_set(name, value)
    yield
    store.config_set(name, before)


@pytest.mark.parametrize(
    ("how", "words"), [("full", "maxmemory"), ("lonely", "NOREPLICAS"), ("replica", "read only replica")]
)
def test_a_store_that_refuses_writes_stops_no_stream(stubs, running, neighbour, code, how, words):
    store = redis.Redis.from_url(running.service.store_url)
    ending = stubs.create()
    with refusing(store, how):
        name, line = code(stubs.create)
        assert name == "UNAVAILABLE"
        assert line.startswith("the session store refuses: ")
        assert words in line
        neighbour.goes_on(20)
        stubs.close(ending.session_id)
    session = stubs.create()
    assert len(stubs.connect(session, ports=wish(4)).frames(4)) == 4
    stubs.close(session.session_id)
    read = pb.GetSessionRequest(session_id=ending.session_id)
    assert eventually(
        lambda: stubs.sessions.Get(read, timeout=WAIT_S).reason == "closed by a client", deadline_s=WAIT_S
    )
    store.close()
