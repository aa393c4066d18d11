"""The asynchronous client: one class over the four services of `riverrun.proto`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

from riverrun.client import errors
from riverrun.client.credentials import Tls, credentials
from riverrun.client.link import trace_metadata
from riverrun.client.requests import duration, fill, length, sink_uri, uint64, wishes_for
from riverrun.client.stream import AsyncStream
from riverrun.client.types import Patience
from riverrun.protos import DEFAULT_PORT
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos import riverrun_pb2_grpc as rpc

CALL_SECONDS = 60.0  # opening a session may warm a model up
LOADING_SECONDS = 300.0  # for a model to load, where its frames a second must be known
LOADING_LOOK_SECONDS = 0.2  # the service itself waits, for 20 s
_OPTIONS = (
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),  # the stream has its own backoff; gRPC's must not add minutes to it
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


def default_address() -> str:
    """`RIVERRUN_ADDRESS`, or this machine at the default port."""
    return os.environ.get("RIVERRUN_ADDRESS") or f"127.0.0.1:{DEFAULT_PORT}"


class AsyncClient:
    """A service at `address` (host:port; by default `default_address()`); `async with AsyncClient() as rr`.

    token, tls: who it is to the service; what is None comes from the environment (`riverrun.client.credentials`).
    Nothing is sent before the first call. What is listed comes as the messages of `riverrun.proto`. Every method
    raises `riverrun.Error` with one clear line.
    """

    def __init__(
        self,
        address: str | None = None,
        patience: Patience | None = None,
        *,
        token: str | None = None,
        tls: Tls | bool | None = None,
    ) -> None:
        self.address = address or default_address()
        self._credentials = credentials(token, tls)
        self._patience = patience or Patience()
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._streams: list[AsyncStream] = []

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the streams that are still open, and the connections."""
        streams, self._streams = self._streams, []
        for stream in streams:
            await stream.close()
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    # ---- streams ----

    async def stream(
        self,
        graph: str,
        *,
        prompt: str | None = None,
        seed: int = 0,
        frames: int | None = None,
        seconds: float | None = None,
        ports: Sequence[str] | None = None,
        codec: str = "raw",
        quality: int = 0,
        buffer: int | None = None,
        lead: float | None = None,
        **params: Any,
    ) -> AsyncStream:
        """Opens a session of `graph` and streams its frames.

        frames or seconds: where it stops by itself (of the graph's first output); neither: it goes on until closed.
        ports: outputs wanted, all by default. codec: "raw", "jpeg" or "png" for pictures (other ports are raw).
        buffer: most frames of a port that may wait here, two chunks by default. lead: seconds of media
        that may be made ahead of a player at 1x which starts with the first frame sent (0: no limit, as fast as it can
        be made); by default the service's. params: the graph's parameters.
        """
        if prompt is not None:
            params["prompt"] = prompt
        request = pb.CreateSessionRequest(
            graph=graph,
            seed=uint64("seed", seed),
            client_id=uuid.uuid4().hex,
            max_frames=await self._length(graph, frames, seconds),
        )
        if lead is not None:
            request.lead.CopyFrom(duration("lead", lead))
        fill(request.params, params)
        session = await self._create(request)
        return self._open(session, pb.ROLE_CONTROLLER, ports, codec, quality, buffer)

    async def attach(
        self,
        session_id: str,
        resume_token: str = "",
        *,
        ports: Sequence[str] | None = None,
        codec: str = "raw",
        quality: int = 0,
        buffer: int | None = None,
    ) -> AsyncStream:
        """Streams a running session: with its resume token as its controller, else as a viewer."""
        session = await self.session(session_id)
        session.resume_token = resume_token
        role = pb.ROLE_CONTROLLER if resume_token else pb.ROLE_VIEWER
        return self._open(session, role, ports, codec, quality, buffer)

    # ---- what there is ----

    async def sessions(self, include_ended: bool = False) -> list[pb.Session]:
        found: list[pb.Session] = []
        request = pb.ListSessionsRequest(include_ended=include_ended)
        while True:
            page = await self._call(rpc.SessionsStub(self.channel()).List(request, timeout=CALL_SECONDS))
            found += page.sessions
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def session(self, session_id: str) -> pb.Session:
        request = pb.GetSessionRequest(session_id=session_id)
        return await self._call(rpc.SessionsStub(self.channel()).Get(request, timeout=CALL_SECONDS))

    async def close_session(self, session_id: str, reason: str = "") -> pb.Session:
        request = pb.CloseSessionRequest(session_id=session_id, reason=reason)
        return await self._call(rpc.SessionsStub(self.channel()).Close(request, timeout=CALL_SECONDS))

    async def suspend_session(self, session_id: str, reason: str = "") -> pb.Session:
        """Saves a session and frees what it holds; `attach` with its token goes on, days later if need be."""
        request = pb.SuspendSessionRequest(session_id=session_id, reason=reason)
        return await self._call(rpc.SessionsStub(self.channel()).Suspend(request, timeout=CALL_SECONDS))

    async def resume_session(self, session_id: str, resume_token: str) -> pb.Session:
        """Takes a session up before its client connects."""
        request = pb.ResumeSessionRequest(session_id=session_id, resume_token=resume_token)
        return await self._call(rpc.SessionsStub(self.channel()).Resume(request, timeout=CALL_SECONDS))

    async def migrate_session(self, session_id: str, stage: str = "", actor: str = "") -> pb.Session:
        """Moves a stage (all of them if none is named) to `actor`, or wherever there is room."""
        request = pb.MigrateSessionRequest(session_id=session_id, stage=stage, actor=actor)
        return await self._call(rpc.SessionsStub(self.channel()).Migrate(request, timeout=CALL_SECONDS))

    async def drain(self, target: str, deadline: float = 60.0, undo: bool = False) -> pb.DrainResponse:
        """Moves all sessions away from an actor or a node; after `deadline` seconds they are suspended. undo: sessions
        may be placed everywhere again."""
        request = pb.DrainRequest(target=target, deadline=duration("deadline", deadline), undo=undo)
        stub = rpc.ClusterStub(self.channel())
        return await self._call(stub.Drain(request, timeout=deadline + CALL_SECONDS))

    async def upgrade(self, actor: str, deadline: float = 60.0) -> pb.UpgradeResponse:
        """Starts a new life of an actor, from the code and weights there are now, and moves all sessions to it."""
        request = pb.UpgradeRequest(actor=actor, deadline=duration("deadline", deadline))
        stub = rpc.ClusterStub(self.channel())
        return await self._call(stub.Upgrade(request, timeout=LOADING_SECONDS + deadline + CALL_SECONDS))

    async def freeze(self, thaw: bool = False) -> None:
        """From now on no session is moved and nothing scaled, until it is thawed."""
        await self._call(rpc.ClusterStub(self.channel()).Freeze(pb.FreezeRequest(thaw=thaw), timeout=CALL_SECONDS))

    async def why(self, session_id: str) -> list[pb.Decision]:
        """The last decisions about a session, oldest first."""
        stub = rpc.ClusterStub(self.channel())
        answer = await self._call(stub.Why(pb.WhyRequest(session_id=session_id), timeout=CALL_SECONDS))
        return list(answer.decisions)

    async def models(self, start: Sequence[str] = ()) -> list[pb.Model]:
        """start: models to be started if they don't run, so that their ports and parameters are known."""
        request = pb.ListModelsRequest(start=start)
        return list(
            (await self._call(rpc.ClusterStub(self.channel()).ListModels(request, timeout=CALL_SECONDS))).models
        )

    async def graphs(self) -> list[pb.Graph]:
        stub = rpc.ClusterStub(self.channel())
        return list((await self._call(stub.ListGraphs(pb.ListGraphsRequest(), timeout=CALL_SECONDS))).graphs)

    async def graph(self, name: str) -> pb.Graph:
        """One graph by name. Raises NotFound naming those there are."""
        graphs = await self.graphs()
        for graph in graphs:
            if graph.name == name:
                return graph
        names = ", ".join(sorted(graph.name for graph in graphs)) or "none"
        raise errors.NotFound(f"unknown graph {name!r}; there are {names}", "NOT_FOUND")

    async def status(self, timeout: float = CALL_SECONDS) -> pb.StatusResponse:
        return await self._call(rpc.ClusterStub(self.channel()).Status(pb.StatusRequest(), timeout=timeout))

    # ---- jobs ----

    async def submit(
        self,
        graph: str,
        out: str | Path | Mapping[str, str | Path],
        *,
        prompt: str | None = None,
        seed: int = 0,
        frames: int | None = None,
        seconds: float | None = None,
        at: Sequence[tuple[int, str]] = (),
        port: str | None = None,
        **params: Any,
    ) -> pb.Job:
        """Renders to a file of the service's machine with no client attached: `out` is an .mp4, or a folder for PNGs;
        or one for each port.

        at: (frame, prompt) switches. port: the output written, the graph's first by default.
        """
        if prompt is not None:
            params["prompt"] = prompt
        if not isinstance(out, Mapping):
            out = {port or (await self.graph(graph)).outputs[0].port: out}
        request = pb.SubmitJobRequest(
            graph=graph,
            seed=uint64("seed", seed),
            client_id=uuid.uuid4().hex,
            frames=await self._length(graph, frames, seconds),
            sinks={name: sink_uri(path) for name, path in out.items()},
            controls=[
                pb.TimedControl(at_frame=frame, control=pb.Control(revision=revision, prompt=text))
                for revision, (frame, text) in enumerate(sorted(at), start=1)
            ],
        )
        fill(request.params, params)
        return await self._call(rpc.JobsStub(self.channel()).Submit(request, timeout=CALL_SECONDS))

    async def jobs(self) -> list[pb.Job]:
        stub = rpc.JobsStub(self.channel())
        return list((await self._call(stub.List(pb.ListJobsRequest(), timeout=CALL_SECONDS))).jobs)

    async def job(self, job_id: str) -> pb.Job:
        stub = rpc.JobsStub(self.channel())
        return await self._call(stub.Get(pb.GetJobRequest(job_id=job_id), timeout=CALL_SECONDS))

    async def cancel_job(self, job_id: str) -> pb.Job:
        stub = rpc.JobsStub(self.channel())
        return await self._call(stub.Cancel(pb.CancelJobRequest(job_id=job_id), timeout=CALL_SECONDS))

    async def watch_job(self, job_id: str) -> AsyncIterator[pb.Job]:
        """The job now and after each change, until it has ended."""
        call = rpc.JobsStub(self.channel()).Watch(pb.GetJobRequest(job_id=job_id))
        try:
            async for job in call:
                yield job
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc(error, self.address) from None
        finally:
            call.cancel()

    # ---- inside ----

    def _open(
        self,
        session: pb.Session,
        role: pb.Role,
        ports: Sequence[str] | None,
        codec: str,
        quality: int,
        buffer: int | None,
    ) -> AsyncStream:
        wishes = wishes_for(session, ports, codec, quality, buffer)
        addresses = [self.address, *(g for g in session.gateways if g != self.address)]
        stream = AsyncStream(self, addresses, session, wishes, role, self._patience)
        self._streams = [*(s for s in self._streams if not s.done), stream]
        return stream

    async def end_session(self, session_id: str, reason: str) -> None:
        """Closes a session if that can be done."""
        # A session that is forgotten or out of reach needs no closing: it ends by its idle timeout.
        with contextlib.suppress(errors.NotFound, errors.Unavailable):
            await self.close_session(session_id, reason)

    async def _create(self, request: pb.CreateSessionRequest) -> pb.Session:
        """Tried twice: if only the answer was lost, the client id finds the session that was made."""
        stub = rpc.SessionsStub(self.channel())
        try:
            return await self._call(stub.Create(request, timeout=CALL_SECONDS, metadata=trace_metadata()))
        except errors.Unavailable:
            return await self._call(stub.Create(request, timeout=CALL_SECONDS, metadata=trace_metadata()))

    async def _length(self, graph: str, frames: int | None, seconds: float | None) -> int:
        fps = await self._fps(graph) if seconds is not None else 0.0
        return length(frames, seconds, fps)

    async def _fps(self, name: str) -> float:
        """Of a graph's first output, which is known when its model is loaded; 0.0 if it has none."""
        clock = asyncio.get_running_loop().time
        until = clock() + LOADING_SECONDS
        while True:
            graph = await self.graph(name)
            models = {stage.model for stage in graph.stages}
            is_loading = any(not actor.up and actor.model in models for actor in (await self.status()).actors)
            if graph.outputs[0].fps or not is_loading:
                return graph.outputs[0].fps
            if clock() > until:
                said = f"a model of graph {name!r} has been loading for {LOADING_SECONDS:g} s"
                raise errors.Unavailable(said, "DEADLINE_EXCEEDED")
            await asyncio.sleep(LOADING_LOOK_SECONDS)

    def channel(self, address: str | None = None) -> grpc.aio.Channel:
        """The connection to a gateway, by default the one the client was given; made at its first use."""
        address = address or self.address
        if address not in self._channels:
            self._channels[address] = self._credentials.channel(address, _OPTIONS)
        return self._channels[address]

    async def _call(self, call: Any) -> Any:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc(error, self.address) from None
