"""A line between a gateway and an actor: what is asked is answered, errors arrive as raised, strangers get nothing."""

import asyncio
import dataclasses
import functools
import socket

import numpy as np
import pytest

from riverrun.actors import line as lines
from riverrun.actors.line import KEY_BYTES, Line, LineServer
from riverrun.models.base import BadRequest, Corrupt


def on_a_loop(test):
    @functools.wraps(test)
    def run(server):
        asyncio.run(test(server))

    return run


@pytest.fixture
def server():
    def answer(request):
        if isinstance(request, Exception):
            raise request
        if isinstance(request, str):
            raise BadRequest(request)
        return {key: 255 - array for key, array in request.items()}

    server = LineServer("here", answer)
    yield server
    server.close()


@on_a_loop
async def test_arrays_of_any_size_come_back(server):
    line = await Line.to(server.place)
    for shape in ((0,), (3, 5), (2, 480, 832, 3)):
        sent = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        got = (await line.call({"a": sent, "b": sent[..., ::-1]}))["a"]
        assert np.array_equal(got, 255 - sent)
        assert got.flags.writeable
    line.close()


@on_a_loop
async def test_an_error_arrives_as_it_was_raised_and_the_line_lasts(server):
    line = await Line.to(server.place)
    with pytest.raises(BadRequest, match="no such thing"):
        await line.call("no such thing")
    assert await line.call({}) == {}
    line.close()


@on_a_loop
async def test_a_caller_without_the_key_gets_nothing(server):
    line = await Line.to(dataclasses.replace(server.place, key=bytes(KEY_BYTES)))
    with pytest.raises(OSError, match=r"closed the line|reset|pipe"):
        await line.call({})


@on_a_loop
async def test_a_cancelled_call_breaks_the_line(server):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        line = await Line.to(dataclasses.replace(server.place, port=deaf.getsockname()[1]))
        call = asyncio.create_task(line.call({}))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    with pytest.raises(OSError, match="file descriptor"):
        await line.call({})


@on_a_loop
async def test_an_actor_that_is_gone_is_an_os_error(server):
    gone = LineServer("here", dict)
    gone.close()
    with pytest.raises(OSError, match="Connect call failed"):
        await Line.to(gone.place)


def test_a_key_that_comes_byte_by_byte_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(lines, "KEY_S", 0.3)
    with socket.create_connection(("127.0.0.1", server.place.port)) as slow:
        sent = 0
        slow.settimeout(0.2)
        while sent < KEY_BYTES:
            try:
                slow.sendall(server.place.key[sent : sent + 1])
                if not slow.recv(1):
                    break
            except TimeoutError:
                sent += 1
            except OSError:
                break
        assert sent < KEY_BYTES


@on_a_loop
async def test_of_those_without_a_key_only_so_many_are_heard(server):
    at = ("127.0.0.1", server.place.port)
    strangers = [socket.create_connection(at) for _ in range(lines.MAX_STRANGERS)]
    with socket.create_connection(at) as last:
        last.settimeout(60)
        assert last.recv(1) == b""
    for stranger in strangers:
        stranger.close()
    deadline = asyncio.get_running_loop().time() + 60
    while True:  # their threads leave
        line = await Line.to(server.place)
        try:
            assert await line.call({}) == {}
            break
        except OSError:
            assert asyncio.get_running_loop().time() < deadline
    line.close()


class Theirs(BadRequest):
    """Of a package that only the actor has."""


class Odd(Exception):
    """Of no kind that we know."""


@on_a_loop
async def test_errors_of_classes_that_only_the_actor_has_arrive_as_ours(server):
    line = await Line.to(server.place)
    for raised, cls, said in ((Theirs("too wide"), BadRequest, "too wide"), (Odd("hm"), Corrupt, "Odd: hm")):
        with pytest.raises(cls, match=said) as caught:
            await line.call(raised)
        assert type(caught.value) is cls
    line.close()


@on_a_loop
async def test_an_answer_that_can_not_be_read_is_said_so(server):
    class Gone:
        def __reduce__(self):
            return getattr, (Corrupt, "what_is_not_there")

    server._answer = lambda request: Gone()
    line = await Line.to(server.place)
    with pytest.raises(Corrupt, match=r"can't be read here: .*what_is_not_there"):
        await line.call({})
    line.close()
