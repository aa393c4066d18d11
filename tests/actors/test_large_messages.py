"""Messages that are too large are refused in our words, up to a size that gRPC does not read at all."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from riverrun.actors.errors import mapped
from riverrun.actors.malformed import MAX_BYTES, UNREAD_BYTES, RefuseMalformed
from riverrun.client import errors
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos import riverrun_pb2_grpc as rpc


class Both(rpc.SessionsServicer, rpc.StreamsServicer):
    async def Get(self, request, context):
        return pb.Session()

    async def Connect(self, requests, context):
        async with mapped(context):
            async for _ in requests:
                pass


async def refused(size: int) -> list[grpc.aio.AioRpcError]:
    """What a call and a stream end with that send a text of so many bytes."""
    options = (("grpc.max_receive_message_length", UNREAD_BYTES),)
    server = grpc.aio.server(interceptors=[RefuseMalformed()], options=options)
    rpc.add_SessionsServicer_to_server(Both(), server)
    rpc.add_StreamsServicer_to_server(Both(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    found = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rpc.SessionsStub(channel).Get(pb.GetSessionRequest(session_id="x" * size), timeout=60)
        found.append(caught.value)
        call = rpc.StreamsStub(channel).Connect(timeout=60)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await send(call, pb.ClientMessage(control=pb.Control(prompt="x" * size)))
        found.append(caught.value)
    await server.stop(None)
    return found


async def send(call, message):
    await call.write(message)
    await call.done_writing()
    async for _ in call:
        pass


def test_in_our_words():
    for error in asyncio.run(refused(MAX_BYTES + 1)):
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details().startswith("a message has 4,194,3")
        assert error.details().endswith("at most 4,194,304; frames go in parts of 1 MiB")


def test_what_is_not_read_at_all_our_client_says_in_ours():
    for error in asyncio.run(refused(UNREAD_BYTES + 1)):
        told = errors.from_rpc(error, "here:1")
        assert isinstance(told, errors.BadRequest)
        assert str(told).startswith("a message has 16,777,2")
