"""A service of one process, written from `riverrun.proto` alone, that a test can make misbehave."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from riverrun.client.loop import LoopThread
from riverrun.client.sync import Client
from riverrun.client.types import Patience
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos import riverrun_pb2_grpc as rpc
from riverrun.protos.wire import Header, split

CHUNK, FPS, SIZE = 4, 16, 16
FAILURE = "stage generate failed at step 3"
QUICK = Patience(reconnect=10, first_wait=0.01, longest_wait=0.05, ping=0.2, silence=5)


def picture(port: str, number: int, prompt: str) -> np.ndarray:
    """A grey level for the frame number, and the prompt's first byte in the corner."""
    array = np.full((SIZE, SIZE, 3), (number + (100 if port == "second" else 0)) % 256, np.uint8)
    array[0, 0, 0] = ord(prompt[0])
    return array


@dataclass
class FakeSession:
    record: pb.Session
    max_frames: int
    prompt: str
    revision: int = 0
    paused: bool = False
    controls: dict[int, pb.Receipt] = field(default_factory=dict)
    log: list[tuple[int, pb.Control]] = field(default_factory=list)
    made: dict[str, list[list[pb.FramePart]]] = field(default_factory=dict)
    acked: dict[str, int] = field(default_factory=dict)


class FakeService(rpc.SessionsServicer, rpc.StreamsServicer, rpc.JobsServicer, rpc.ClusterServicer):
    """Frames are made as credits ask for them and kept, so that a connection can be cut at any frame.

    cuts: after how many frames of a connection it is cut with UNAVAILABLE (one entry a connection). faults: what to
    do wrong. ports: the outputs of every session. laters: when to come back, seconds, as the session says that is
    suspended at a cut and as those say who are refused after that. called: when each connection began, and that cut.
    loading: its model is, for so many looks at the graphs.
    """

    def __init__(self) -> None:
        self.sessions: dict[str, FakeSession] = {}
        self.created: dict[str, pb.Session] = {}
        self.leads: list[float | None] = []
        self.jobs: dict[str, pb.Job] = {}
        self.cuts: list[int] = []
        self.laters: list[float] = []
        self.called: list[float] = []
        self.loading = 0
        self.faults: set[str] = set()
        self.ports = ["video"]
        self.opens: list[pb.Open] = []
        self.most_uncredited = 0
        self.pings = 0

    # ---- sessions ----

    async def Create(self, request, context):
        if request.graph != "generate":
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown graph {request.graph!r}; there are generate")
        if request.params["prompt"] == "":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "prompt must not be empty")
        if "no room" in self.faults:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "all 4 sessions are taken")
        if request.client_id in self.created:
            return self.created[request.client_id]
        self.leads.append(request.lead.ToMicroseconds() / 1e6 if request.HasField("lead") else None)
        record = pb.Session(
            session_id=f"s{len(self.sessions)}",
            graph=request.graph,
            state=pb.SESSION_STATE_RUNNING,
            resume_token="token",
            outputs=[
                pb.OutputPort(
                    port=p, kind="frames", fps=FPS, height=SIZE, width=SIZE, chunk_frames=CHUNK, first_frames=CHUNK
                )
                for p in self.ports
            ],
            stages=[pb.StageStatus(stage="generate", model="fake", steps=1, compute_ms_p50=3, compute_ms_p99=9)],
        )
        self.sessions[record.session_id] = FakeSession(record, request.max_frames, request.params["prompt"])
        self.created[request.client_id] = record
        if "lose the answer" in self.faults:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")
        return record

    async def _session(self, session_id, context) -> FakeSession:
        if session_id not in self.sessions:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown session {session_id!r}")
        return self.sessions[session_id]

    async def Get(self, request, context):
        if isinstance(request, pb.GetJobRequest):
            return await self._job(request.job_id, context)
        public = pb.Session()
        public.CopyFrom((await self._session(request.session_id, context)).record)
        public.resume_token = ""
        return public

    async def List(self, request, context):
        if isinstance(request, pb.ListJobsRequest):
            return pb.ListJobsResponse(jobs=self.jobs.values())
        live = [s.record for s in self.sessions.values() if request.include_ended or s.record.state == 2]
        start = int(request.page_token or 0)
        more = str(start + 2) if len(live) > start + 2 else ""
        return pb.ListSessionsResponse(sessions=live[start : start + 2], next_page_token=more)

    async def Close(self, request, context):
        session = await self._session(request.session_id, context)
        session.record.state, session.record.reason = pb.SESSION_STATE_CLOSED, request.reason
        return session.record

    # ---- streams ----

    async def Connect(self, requests, context):
        first = await context.read()
        if first is grpc.aio.EOF:
            return  # the client left before it said what it wants
        session = await self._session(first.open.session_id, context)
        if first.open.role == pb.ROLE_CONTROLLER and first.open.resume_token != "token":
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "wrong resume token")
        self.called.append(asyncio.get_running_loop().time())
        if len(self.called) > 2 and self.laters:
            info = any_pb2.Any()
            info.Pack(error_details_pb2.RetryInfo(retry_delay=seconds(self.laters.pop(0))))
            status = status_pb2.Status(code=8, message="all places are taken", details=[info])
            trailing = (("grpc-status-details-bin", status.SerializeToString()),)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "all places are taken", trailing)
        self.opens.append(first.open)
        await FakeConnection(self, session, first.open, context).serve()

    # ---- jobs and cluster ----

    async def Submit(self, request, context):
        job = pb.Job(job_id=f"j{len(self.jobs)}", graph=request.graph, state=pb.JOB_STATE_RUNNING)
        job.frames_total = request.frames
        job.sinks.update(request.sinks)
        self.jobs[job.job_id] = job
        self.submitted = request
        return job

    async def _job(self, job_id, context):
        if job_id not in self.jobs:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown job {job_id!r}")
        return self.jobs[job_id]

    async def Cancel(self, request, context):
        job = await self._job(request.job_id, context)
        job.state = pb.JOB_STATE_CANCELLED
        return job

    async def Watch(self, request, context):
        job = await self._job(request.job_id, context)
        yield job
        job.frames_done, job.state = job.frames_total, pb.JOB_STATE_SUCCEEDED
        yield job

    async def Status(self, request, context):
        actors = [pb.ActorStatus(actor="fake-0", model="fake", up=not self.loading)]
        return pb.StatusResponse(version="fake", sessions=len(self.sessions), actors=actors)

    async def ListModels(self, request, context):
        return pb.ListModelsResponse(models=[pb.Model(name="fake", stage="generate", fps=FPS, controls=["prompt"])])

    async def ListGraphs(self, request, context):
        self.loading = max(0, self.loading - 1)
        outputs = [pb.OutputPort(port=p, kind="frames", fps=0 if self.loading else FPS) for p in self.ports]
        stages = [pb.GraphStage(stage="generate", model="fake")]
        return pb.ListGraphsResponse(graphs=[pb.Graph(name="generate", stages=stages, outputs=outputs)])


def seconds(value: float) -> duration_pb2.Duration:
    return duration_pb2.Duration(nanos=int(value % 1 * 1e9), seconds=int(value))


class FakeConnection:
    """One call of `Streams.Connect`."""

    def __init__(self, service: FakeService, session: FakeSession, opening: pb.Open, context) -> None:
        self.service, self.session, self.context = service, session, context
        self.viewer = opening.role == pb.ROLE_VIEWER
        self.credits = {wish.port: wish.credits for wish in opening.ports}
        self.wishes = {wish.port: wish for wish in opening.ports}
        self.next = {w.port: w.last_received + 1 if w.HasField("last_received") else 0 for w in opening.ports}
        if "resend" in service.faults:
            self.next = {port: max(0, frame - 3) for port, frame in self.next.items()}
        self.cut = service.cuts.pop(0) if service.cuts else None
        self.sent = 0
        self.moved = asyncio.Event()
        self.writing = asyncio.Lock()

    async def serve(self) -> None:
        self.reader = asyncio.ensure_future(self.read())
        try:
            opened = pb.Opened(session=self.session.record, epoch=1)
            await self.write(pb.ServerMessage(opened=opened))
            while await self.send_what_may_be_sent():
                await self.moved.wait()
                self.moved.clear()
                if self.reader.done():
                    return
        finally:
            self.reader.cancel()

    async def send_what_may_be_sent(self) -> bool:
        """False when the session has ended."""
        session = self.session
        if "replaced" in self.service.faults:
            await self.event(pb.Event.TYPE_REPLACED, "taken over by another client")
            return False
        while any(self.may_send(port) for port in self.credits):
            for port in filter(self.may_send, self.credits):
                await self.send_frame(port)
        if session.max_frames and min(self.next.values()) >= session.max_frames:
            session.record.state, session.record.reason = pb.SESSION_STATE_CLOSED, "all frames were made"
        if session.record.state != pb.SESSION_STATE_RUNNING:
            await self.end()
        return session.record.state == pb.SESSION_STATE_RUNNING

    async def end(self) -> None:
        if "fail" in self.service.faults:
            self.session.record.state, self.session.record.reason = pb.SESSION_STATE_FAILED, FAILURE
        await self.event(pb.Event.TYPE_ENDED, self.session.record.reason)
        if "hang up" not in self.service.faults:
            await self.reader
        if "fail" in self.service.faults:
            await self.context.abort(grpc.StatusCode.INTERNAL, FAILURE)

    def may_send(self, port: str) -> bool:
        session = self.session
        if session.paused or self.ended_before(port):
            return False
        if session.max_frames and self.next[port] >= session.max_frames:
            return False
        return self.credits[port] > 0 or "greedy" in self.service.faults

    def ended_before(self, port: str) -> bool:
        """An ended session still sends what it has made and this client has not received."""
        session = self.session
        made = len(session.made.get(port, ()))
        return session.record.state != pb.SESSION_STATE_RUNNING and (not session.max_frames or self.next[port] >= made)

    async def send_frame(self, port: str) -> None:
        made = self.session.made.setdefault(port, [])
        number = self.next[port]
        if number % CHUNK == 0 and number == len(made):
            await self.apply_controls(number)
        if number == len(made):
            made.append(self.make(port, number))
        if self.cut is not None and self.sent >= self.cut:
            if "go away" in self.service.faults:
                await self.write(pb.ServerMessage(go_away=pb.GoAway(reason="draining")))
                await asyncio.Event().wait()
            if self.service.laters:
                self.service.called.append(asyncio.get_running_loop().time())
                event = pb.Event(type=pb.Event.TYPE_SUSPENDED, reason="its place was needed")
                event.retry_after.CopyFrom(seconds(self.service.laters.pop(0)))
                await self.write(pb.ServerMessage(event=event))
                await self.reader
            await self.context.abort(grpc.StatusCode.UNAVAILABLE, "the gateway is going down")
        for part in made[number]:
            await self.write(pb.ServerMessage(frame=part))
        self.sent += 1
        self.credits[port] -= 1
        self.next[port] += 2 if "gap" in self.service.faults and number == 3 else 1
        if self.next[port] > len(made):  # the gap
            made.append(self.make(port, number + 1))

    def make(self, port: str, number: int) -> list[pb.FramePart]:
        header = Header(
            port=port,
            frame=number,
            chunk=number // CHUNK,
            index_in_chunk=number % CHUNK,
            pts=number * 90_000 // FPS,
            epoch=1,
            revision=self.session.revision,
        )
        wish = self.wishes[port]
        return split(picture(port, number, self.session.prompt), header, wish.codec, wish.quality)

    async def apply_controls(self, frame: int) -> None:
        for revision, receipt in self.session.controls.items():
            if receipt.stage == pb.Receipt.STAGE_RECEIVED:
                self.session.prompt = next(c.prompt for r, c in self.session.log if r == revision)
                self.session.revision = revision
                receipt.stage, receipt.chunk, receipt.frame = pb.Receipt.STAGE_APPLIED, frame // CHUNK, frame
                if "lose receipts" not in self.service.faults:
                    await self.write(pb.ServerMessage(receipt=receipt))

    async def read(self) -> None:
        while (message := await self.context.read()) is not grpc.aio.EOF:
            kind = message.WhichOneof("message")
            if kind == "credit":
                self.credits[message.credit.port] += message.credit.frames
            elif kind == "ack":
                self.session.acked[message.ack.port] = message.ack.frame
            elif kind == "control":
                await self.control(message.control)
            elif kind == "ping":
                self.service.pings += 1
                if "mute" not in self.service.faults:
                    await self.write(pb.ServerMessage(pong=pb.Pong(nonce=message.ping.nonce)))
            self.moved.set()

    async def control(self, control: pb.Control) -> None:
        session = self.session
        receipt = session.controls.get(control.revision)
        if receipt is None:
            receipt = pb.Receipt(revision=control.revision, stage=pb.Receipt.STAGE_RECEIVED)
            if control.WhichOneof("kind") == "prompt" and not control.prompt:
                receipt.stage, receipt.message = pb.Receipt.STAGE_REJECTED, "prompt must not be empty"
            elif control.WhichOneof("kind") == "pause":
                session.paused = control.pause
                receipt.stage = pb.Receipt.STAGE_APPLIED
            else:
                session.log.append((control.revision, control))
            session.controls[control.revision] = receipt
        if "lose receipts" not in self.service.faults:
            await self.write(pb.ServerMessage(receipt=receipt))

    async def write(self, message: pb.ServerMessage) -> None:
        async with self.writing:  # grpc.aio takes one write at a time
            await self.context.write(message)

    async def event(self, kind: int, reason: str) -> None:
        await self.write(pb.ServerMessage(event=pb.Event(type=kind, reason=reason)))


class Running:
    """A fake service on a loop thread, at `address`; it can be stopped and started again at the same port."""

    def __init__(self) -> None:
        self.service = FakeService()
        self.loop = LoopThread("fake service and client")
        self.port = 0
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self.loop.run(self._start())

    def stop(self) -> None:
        self.loop.run(self._server.stop(0))

    def client(self, patience: Patience = QUICK) -> Client:
        return Client(self.address, patience, self.loop)

    def wait_for(self, condition) -> None:
        """Returns when the condition holds. Raises TimeoutError after 30 s."""
        self.loop.run(_until(condition), timeout=30)

    async def _start(self) -> None:
        self._server = grpc.aio.server()
        service = self.service
        rpc.add_SessionsServicer_to_server(service, self._server)
        rpc.add_StreamsServicer_to_server(service, self._server)
        rpc.add_JobsServicer_to_server(service, self._server)
        rpc.add_ClusterServicer_to_server(service, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()


async def _until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@pytest.fixture
def running():
    fake = Running()
    yield fake
    fake.stop()
    fake.loop.stop()
