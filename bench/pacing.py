"""What clients that read nothing cost: the gateway's memory, and a neighbour's frames/s beside 0, 1 and 8 of them.

`python -m riverrun.bench.pacing [--quick] [--json FILE]`

A stalled client gives all the credits it may, and reads and acks nothing. Each has a session of large frames and a
connection of its own. The counts take turns, round by round, since the machine may be shared: a ratio is the median of
the rounds' ratios to the turn without stalled clients.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import grpc

from riverrun.bench.options import parsed
from riverrun.bench.report import tables, write_json
from riverrun.bench.service import Service, serving
from riverrun.client.aio import AsyncClient
from riverrun.graphs.consumer import most_credits
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos import riverrun_pb2_grpc as rpc

GRAPH, GATEWAY = "synthetic", "serve: gateway and runners"
HEIGHT, WIDTH, CHUNK_FRAMES = 480, 832, 12
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """rounds: turns of each count. frames: of the neighbour, a turn. still_s: a session that made nothing for so long
    has stalled."""

    rounds: int = 7
    frames: int = 3000
    counts: tuple[int, ...] = (0, 1, 8)
    still_s: float = 1.0


QUICK = Plan(rounds=2, frames=600)


@dataclass(frozen=True)
class Turn:
    """fps: the neighbour's. gateway_bytes: its own resident memory. delivered: frames that gRPC took for the stalled
    clients, all of them. steps: of their stages."""

    fps: float
    gateway_bytes: int
    delivered: int
    steps: int


def figures_of(turns: Mapping[int, Sequence[Turn]]) -> list[dict[str, Any]]:
    """A row for each count of stalled clients; turns[0] is what the others are compared with, round by round.

    What one costs in memory is taken from the first round: what was freed since may stay with the allocator.
    """
    rows = []
    for count, own in turns.items():
        alone = turns[0]
        each = max(count, 1)
        more = own[0].gateway_bytes - alone[0].gateway_bytes
        rows.append(
            {
                "stalled": count,
                "fps": statistics.median(turn.fps for turn in own),
                "ratio": statistics.median(a.fps / b.fps for a, b in zip(own, alone, strict=True)),
                "gateway_mib": own[0].gateway_bytes / MIB,
                "gateway_last_mib": own[-1].gateway_bytes / MIB,
                "each_mib": more / MIB / each if count else None,
                "each_frames": max(turn.delivered for turn in own) / each,
                "each_steps": max(turn.steps for turn in own) / each,
            }
        )
    return rows


COLUMNS = {
    "stalled clients": "stalled",
    "neighbour frames/s": "fps",
    "of alone": "ratio",
    "gateway MiB": "gateway_mib",
    "more a client": "each_mib",
    "MiB in the last round": "gateway_last_mib",
    "frames taken each": "each_frames",
    "steps each": "each_steps",
}


async def measure(service: Service, plan: Plan) -> list[dict[str, Any]]:
    async with AsyncClient(service.address) as rr:
        await _neighbour(rr, plan.frames)  # warm
        turns: dict[int, list[Turn]] = {count: [] for count in plan.counts}
        for _ in range(plan.rounds):
            for count in plan.counts:
                turns[count].append(await _turn(service, rr, count, plan))
    return figures_of(turns)


async def _turn(service: Service, rr: AsyncClient, count: int, plan: Plan) -> Turn:
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(_stalled(service.address)) for _ in range(count)]
        before = await _still(rr, sessions, plan.still_s)
        fps = await _neighbour(rr, plan.frames)
        after = await _looked(rr, sessions)
        if before != after:
            raise RuntimeError(f"a stalled session moved: {before} to {after}")
        return Turn(fps, _gateway_bytes(service, await rr.status()), *after)


async def _neighbour(rr: AsyncClient, frames: int) -> float:
    """Frames a second of a session of small frames whose steps cost nothing."""
    stream = await rr.stream(GRAPH, frames=frames, buffer=64)
    times = [time.perf_counter() async for _ in stream]
    if len(times) != frames:
        raise RuntimeError(f"the neighbour got {len(times)} of {frames} frames")
    return (frames - 1) / (times[-1] - times[0])


@asynccontextmanager
async def _stalled(address: str) -> AsyncIterator[str]:
    """A client that reads nothing: the id of its session, which ends with it."""
    async with grpc.aio.insecure_channel(address, options=OWN_CONNECTION) as channel:
        request = pb.CreateSessionRequest(graph=GRAPH)
        request.params.update({"height": HEIGHT, "width": WIDTH, "chunk_frames": CHUNK_FRAMES})
        sessions = rpc.SessionsStub(channel)
        session = await sessions.Create(request)
        wish = pb.PortWish(port="frames", credits=most_credits(HEIGHT * WIDTH * 3, CHUNK_FRAMES))
        opening = pb.Open(
            session_id=session.session_id,
            role=pb.ROLE_CONTROLLER,
            resume_token=session.resume_token,
            ports=[wish],
        )
        call = rpc.StreamsStub(channel).Connect()
        await call.write(pb.ClientMessage(open=opening))
        try:
            yield session.session_id
        finally:
            call.cancel()
            await sessions.Close(pb.CloseSessionRequest(session_id=session.session_id))


async def _still(rr: AsyncClient, sessions: Sequence[str], still_s: float) -> tuple[int, int]:
    """Waits until none of the sessions moves any more: the chunk at its client and the next one are made."""
    seen = (-1, -1)
    while (now := await _looked(rr, sessions)) != seen or now[1] < 2 * len(sessions):
        seen = now
        await asyncio.sleep(still_s)
    return now


async def _looked(rr: AsyncClient, sessions: Sequence[str]) -> tuple[int, int]:
    """Frames taken and steps made, of all of them."""
    found = [await rr.session(session) for session in sessions]
    return sum(s.frames_delivered for s in found), sum(s.stages[0].steps for s in found)


def _gateway_bytes(service: Service, status: pb.StatusResponse) -> int:
    names, memory = service.names(status), service.memory()
    return next(memory[pid].own for pid, name in names.items() if name == GATEWAY)


def main(argv: Sequence[str] | None = None) -> int:
    options = parsed("pacing", __doc__, argv)
    plan = QUICK if options.quick else Plan()
    with serving("models=[synthetic]", "stall_s=0") as service:
        rows = asyncio.run(measure(service, plan))
    print(tables({"rows": COLUMNS}, {"rows": rows}))
    if options.json:
        write_json(options.json, "pacing", asdict(plan), {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
