"""Exceptions become codes: a table."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import StatusCode as Code

from riverrun.actors.errors import Denied, NotFound, SessionFailed, mapped, meaning, status
from riverrun.actors.sessions import NoRoom
from riverrun.graphs.runner import SessionEnded
from riverrun.graphs.stage import StageGone, StaleEpoch, StepFailed, UnknownSession
from riverrun.models.base import BadRequest, Corrupt, Unavailable
from riverrun.protos.wire import WireError


@pytest.mark.parametrize(
    ("error", "code", "retry"),
    [
        (BadRequest("x"), Code.INVALID_ARGUMENT, False),
        (WireError("x"), Code.INVALID_ARGUMENT, False),
        (NotFound("x"), Code.NOT_FOUND, False),
        (Denied("x"), Code.PERMISSION_DENIED, False),
        (SessionEnded("x"), Code.FAILED_PRECONDITION, False),
        (NoRoom("x"), Code.RESOURCE_EXHAUSTED, True),
        (Unavailable("x"), Code.UNAVAILABLE, True),
        (StageGone("x"), Code.UNAVAILABLE, True),
        (UnknownSession("x"), Code.UNAVAILABLE, True),
        (StaleEpoch("x"), Code.ABORTED, True),
        (Corrupt("x"), Code.DATA_LOSS, False),
        (StepFailed("x"), Code.INTERNAL, False),
        (SessionFailed("x"), Code.INTERNAL, False),
        (KeyError("x"), Code.INTERNAL, False),
    ],
)
def test_codes(error, code, retry):
    assert meaning(error).code is code
    rich = status(error)
    assert rich.code == code.value[0]
    assert (len(rich.details) == 2) == retry
    info = error_details_pb2.ErrorInfo()
    assert rich.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("riverrun", meaning(error).reason)


def test_messages_are_one_line():
    assert status(BadRequest("a\n  b")).message == "a b"
    assert status(KeyError("k")).message == "internal error: KeyError: 'k'"


async def _fails(context):
    raise Unavailable("x")


async def _writes(context):
    while True:
        await context.write(b"x")


@pytest.mark.parametrize("goes_on", [_fails, _writes])
def test_a_client_that_has_left_is_no_fault_to_log(caplog, goes_on):
    async def body():
        over = asyncio.Event()

        async def method(requests, context):
            try:
                async with mapped(context):
                    await context.write(b"x")
                    try:
                        await asyncio.Event().wait()
                    except asyncio.CancelledError:  # the client has left; what a call still does then must not matter
                        await goes_on(context)
            finally:
                over.set()

        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(method)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", {"m": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream("/t/m")()
            await call.read()
            call.cancel()
            await asyncio.wait_for(over.wait(), 60)
        await server.stop(None)

    asyncio.run(body())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
