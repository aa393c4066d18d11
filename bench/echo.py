"""The least a gRPC service can do: `python -m riverrun.bench.echo` prints its port and sends back what it is sent.

What the service adds is measured against it, so it speaks the same messages: a frame's parts come back as they came;
credits make it send its last frame so many times, as a source would.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from riverrun.actors.gateway import OPTIONS
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos import riverrun_pb2_grpc as rpc


class Echo(rpc.StreamsServicer):
    """`Streams.Connect` without sessions."""

    async def Connect(self, requests: AsyncIterator[pb.ClientMessage], context: grpc.aio.ServicerContext) -> None:
        last: list[pb.FramePart] = []
        async for message in requests:
            kind = message.WhichOneof("message")
            if kind == "frame":
                last = [message.frame] if not message.frame.part else [*last, message.frame]
                await context.write(pb.ServerMessage(frame=message.frame))
            elif kind == "credit":
                for _ in range(message.credit.frames):
                    for part in last:
                        await context.write(pb.ServerMessage(frame=part))


async def main() -> None:
    """Serves until its standard input is closed."""
    server = grpc.aio.server(options=OPTIONS)
    rpc.add_StreamsServicer_to_server(Echo(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.to_thread(input_closed)
    await server.stop(0)


def input_closed() -> None:
    """Returns when whoever started this process closes its standard input, or is gone."""
    import sys

    sys.stdin.read()


if __name__ == "__main__":
    asyncio.run(main())
