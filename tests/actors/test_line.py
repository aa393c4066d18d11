"""A line between a gateway and an actor: what is asked is answered, errors arrive as raised, strangers get nothing."""

import asyncio
import dataclasses
import functools
import socket

import numpy as np
import pytest

from riverrun.actors.line import KEY_BYTES, Line, LineServer
from riverrun.models.base import BadRequest


def on_a_loop(test):
    @functools.wraps(test)
    def run(server):
        asyncio.run(test(server))

    return run


@pytest.fixture
def server():
    def answer(request):
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
