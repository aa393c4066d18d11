"""Every way in which a session may end, each as a function of a service: for the test that nothing is left of any."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import grpc
import numpy as np
import pytest

from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos.wire import Header, split

from .conftest import DEADLINE_S, Stream, Stubs, eventually

SOON = {"nanos": 200_000_000}
ONCE_GONE = {"seconds": 2}
"""Of sessions that somebody must have come to first, which takes its time on a busy machine."""
STATE = {"state_bytes": 2_000_000}
WIDE = {"height": 512, "width": 512}  # a chunk of 4 frames is 3 MiB and goes through the object store
INPUT = {"takes": 1, "chunk_frames": 1, "height": 512, "width": 1024}  # a frame takes two parts

HOLDS = '''
import threading, time
from pathlib import Path
from greys.mod import Grey

class Held(Grey):
    """Opens a session when its file has gone."""

    def __init__(self, factor, file):
        super().__init__(factor)
        self.file = Path(file)

    def open(self, params, seed):
        until = time.monotonic() + 60
        while self.file.exists() and time.monotonic() < until:
            threading.Event().wait(0.01)
        return super().open(params, seed)
'''


class Ender:
    """Ends sessions of one service. held: while this file is there, the model "held" opens none."""

    def __init__(self, address: str, stubs: Stubs, held: Path) -> None:
        self.address, self.stubs, self.held = address, stubs, held

    def create(self, graph: str = "synthetic", **fields) -> pb.Session:
        params = {} if graph == "chain" else STATE
        return self.stubs.create(graph, params=params | fields.pop("params", {}), **fields)

    def begin(self, credits: int = 8, **fields) -> tuple[pb.Session, Stream]:
        """A session that has given its first frames."""
        session = self.create(**fields)
        stream = self.stubs.connect(session, ports=[pb.PortWish(port="frames", credits=credits)])
        stream.frames(4)
        return session, stream

    def end(self, stream: Stream) -> str:
        """Reads to the end of the call: the reason of the session's end, "" if there was none."""
        reason = ""
        with contextlib.suppress(grpc.RpcError):
            while (message := stream.next()) is not None:
                if message.WhichOneof("message") == "event":
                    reason = message.event.reason
                    stream.half_close()
        stream.cancel()
        return reason

    # ---- by the client's word ----

    def finished(self) -> None:
        stream = self.begin()[1]
        stream.say(finish=pb.Finish())
        stream.credit(100)
        assert self.end(stream) == "finished"

    def closed(self) -> None:
        session, stream = self.begin()
        self.stubs.close(session.session_id)
        assert self.end(stream) == "closed by a client"

    def closed_before_it_was_read(self) -> None:
        self.stubs.close(self.create().session_id)

    def closed_while_paused(self) -> None:
        session, stream = self.begin(credits=500)
        stream.control(1, pause=True)
        stream.receipts(1)
        self.stubs.close(session.session_id)
        self.end(stream)

    def closed_with_controls_waiting(self) -> None:
        session, stream = self.begin(params={"step_ms": 300})
        for revision in range(1, 20):
            stream.control(revision, prompt=f"sand {revision}")
        stream.until("receipt")
        self.stubs.close(session.session_id)
        self.end(stream)

    def closed_amid_large_chunks(self) -> None:
        params = {f"{stage}.{name}": value for stage in ("make", "turn") for name, value in WIDE.items()}
        session, stream = self.begin(graph="chain", params=params | {"turn.takes": 4})
        self.stubs.close(session.session_id)
        self.end(stream)

    def max_frames(self) -> None:
        stream = self.begin(credits=100, max_frames=10)[1]
        assert "all 10 frames" in self.end(stream)

    def repeated(self) -> None:
        one, two = (self.create(client_id="the same") for _ in range(2))
        assert one.session_id == two.session_id
        self.stubs.close(one.session_id)

    # ---- with a client that is gone ----

    def client_cancels(self) -> None:
        session, stream = self.begin(credits=500, idle_timeout=ONCE_GONE)
        stream.cancel()
        self.has_ended(session, "idle")

    def client_vanishes_in_mid_frame(self) -> None:
        session = self.create(graph="turn", params=INPUT, idle_timeout=ONCE_GONE)
        frames = [_parts(number) for number in range(2)]
        with self.other() as stubs:
            stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=4)])
            for part in (*frames[0], frames[1][0]):
                stream.say(frame=part)
            stream.until("frame")
        stream.half_close()
        self.has_ended(session, "idle")

    def client_never_came(self) -> None:
        self.has_ended(self.create(idle_timeout=SOON), "idle")

    def client_comes_back(self) -> None:
        session, first = self.begin()
        first.cancel()
        again = self.stubs.connect(session, ports=[pb.PortWish(port="frames", credits=100, last_received=3)])
        again.frames(4)
        again.say(finish=pb.Finish())
        assert self.end(again) == "finished"

    def channel_drops(self) -> None:
        session = self.create(idle_timeout=ONCE_GONE)
        with self.other() as stubs:
            stream = stubs.connect(session, ports=[pb.PortWish(port="frames", credits=500)])
            stream.frames(4)
        stream.half_close()
        self.has_ended(session, "idle")

    # ---- with other readers ----

    def only_viewers(self) -> None:
        session = self.create(idle_timeout=ONCE_GONE)
        for stream in self.viewers(session, 2):
            stream.frames(4)
            stream.cancel()
        self.has_ended(session, "idle")

    def many_viewers(self) -> None:
        session, stream = self.begin(credits=500)
        viewers = self.viewers(session, 8)
        for viewer in viewers:
            viewer.frames(2)
        self.stubs.close(session.session_id)
        for each in (stream, *viewers):
            self.end(each)

    def controller_replaced(self) -> None:
        session, first = self.begin()
        second = self.stubs.connect(session, ports=[pb.PortWish(port="frames", credits=8)])
        second.frames(4)
        assert first.until("event").type == pb.Event.TYPE_REPLACED
        first.cancel()
        self.stubs.close(session.session_id)
        self.end(second)

    # ---- without ever being open ----

    def refused(self) -> None:
        for fields in ({"params": {"height": 0}}, {"params": {"state_bytes": 1e12}, "client_id": "never"}):
            with pytest.raises(grpc.RpcError):
                self.create(**fields)

    def given_up_while_opening(self) -> None:
        with self.opening() as (call, _):
            call.cancel()

    def closed_while_opening(self) -> None:
        with self.opening() as (call, session):
            closing = self.stubs.sessions.Close.future(pb.CloseSessionRequest(session_id=session), timeout=DEADLINE_S)
            with pytest.raises(grpc.RpcError, match="closed while opening"):
                call.result()
        assert closing.result().state == pb.SESSION_STATE_CLOSED

    # ---- by a failure ----

    def model_fails(self) -> None:
        stream = self.begin(credits=500, params={"fail_at": 3})[1]
        assert "told to fail at step 3" in self.end(stream)

    def model_fails_in_a_batch(self) -> None:
        session, stream = self.begin(credits=500)
        self.model_fails()
        self.stubs.close(session.session_id)
        self.end(stream)

    # ---- as a job ----

    def job_done(self) -> None:
        assert self.job(frames=8)[-1].state == pb.JOB_STATE_SUCCEEDED

    def job_fails(self) -> None:
        assert self.job(frames=40, fail_at=3)[-1].state == pb.JOB_STATE_FAILED

    def job_cancelled(self) -> None:
        assert self.job(frames=100_000, cancel=True)[-1].state == pb.JOB_STATE_CANCELLED

    # ---- what they share ----

    def viewers(self, session: pb.Session, count: int) -> list[Stream]:
        wish = [pb.PortWish(port="frames", credits=100)]
        return [self.stubs.connect(session, role=pb.ROLE_VIEWER, ports=wish) for _ in range(count)]

    def has_ended(self, session: pb.Session, why: str) -> None:
        ended = (pb.SESSION_STATE_CLOSED, pb.SESSION_STATE_FAILED)
        eventually(lambda: self.stubs.get(session.session_id).state in ended)
        assert why in self.stubs.get(session.session_id).reason

    @contextlib.contextmanager
    def other(self):
        """A client on a connection of its own, which drops at the end."""
        with grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            yield Stubs(channel)

    @contextlib.contextmanager
    def opening(self):
        """(call, session) of a session that opens until the block is left."""
        before = {session.session_id for session in self.live()}
        self.held.touch()
        request = pb.CreateSessionRequest(graph="held")
        request.params.update({"level": 1})
        call = self.stubs.sessions.Create.future(request, timeout=DEADLINE_S)
        try:
            (new,) = eventually(lambda: [s for s in self.live() if s.session_id not in before])
            yield call, new.session_id
        finally:
            self.held.unlink()

    def live(self) -> list[pb.Session]:
        return list(self.stubs.sessions.List(pb.ListSessionsRequest(page_size=200), timeout=DEADLINE_S).sessions)

    def job(self, frames: int, fail_at: int = -1, cancel: bool = False) -> list[pb.Job]:
        with tempfile.TemporaryDirectory() as folder:
            request = pb.SubmitJobRequest(graph="synthetic", frames=frames)
            request.params.update(STATE | {"fail_at": fail_at})
            request.sinks["frames"] = Path(folder, "film.mp4").as_uri()
            job = self.stubs.jobs.Submit(request, timeout=DEADLINE_S)
            seen = self.stubs.jobs.Watch(pb.GetJobRequest(job_id=job.job_id), timeout=DEADLINE_S)
            if cancel:
                next(seen)
                self.stubs.jobs.Cancel(pb.CancelJobRequest(job_id=job.job_id), timeout=DEADLINE_S)
            return list(seen)


def _parts(number: int) -> list[pb.FramePart]:
    header = Header(port="video", frame=number, chunk=0, index_in_chunk=0, pts=number * 5625, epoch=0, revision=0)
    return split(np.zeros((INPUT["height"], INPUT["width"], 3), np.uint8), header)


SHARED = ("create", "begin", "end", "viewers", "has_ended", "other", "opening", "live", "job")
WAYS: Mapping[str, Callable[[Ender], None]] = {
    name: way for name, way in vars(Ender).items() if not name.startswith("_") and name not in SHARED
}
