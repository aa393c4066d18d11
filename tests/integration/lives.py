"""Sessions of random life over two gateways of one cluster: each step of a life as a function, each frame checked."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Sequence

import grpc

from riverrun.models.synthetic import frame_number
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos.wire import Joiner

from .conftest import DEADLINE_S, Stubs

GRAPHS = {
    "one": "stages: {a: {model: pair}}\noutputs: {frames: a.frames}\n",
    "two": "stages: {a: {model: pair}, b: {model: pair}}\nedges: [{from: a.frames, to: b.frames}]\n"
    "outputs: {frames: b.frames}\n",
}
PARAMS = {
    "one": {"state_bytes": 1 << 20},
    "two": {"a.state_bytes": 1 << 20, "b.state_bytes": 1 << 18, "b.takes": 4},
}


class Life:
    """One session. gateways: where it may be reached; home: the one it is at."""

    def __init__(self, gateways: Sequence[Stubs], draw: random.Random) -> None:
        self._gateways, self._draw = gateways, draw
        self.home = draw.choice(gateways)
        self.graph = draw.choice(list(GRAPHS))
        self.session = self.home.create(graph=self.graph, params=PARAMS[self.graph], seed=5)
        self.frames, self.is_suspended, self.has_ended = 0, False, False

    def live(self, may_crash: bool) -> str:
        """One more step of it, drawn; what it was."""
        steps = ["resumed", "taken up", "closed while suspended"] if self.is_suspended else self._running(may_crash)
        name = self._draw.choice(steps)
        getattr(self, name.replace(" ", "_"))()
        return name

    def _running(self, may_crash: bool) -> list[str]:
        usual = ["streamed", "streamed", "moved", "suspended", "taken over", "finished", "closed", "closed"]
        return [*usual, "crashed"] if may_crash else usual

    # ---- while it runs ----

    def streamed(self) -> None:
        with self._watching() as reader:
            reader.read(self._draw.randrange(1, 40))

    def moved(self) -> None:
        with self._watching() as reader:
            reader.read(8)
            move = pb.MigrateSessionRequest(session_id=self.session.session_id, stage="a")
            _done(lambda: self.home.sessions.Migrate(move, timeout=DEADLINE_S))
            reader.read(12)

    def crashed(self) -> None:
        with self._watching() as reader:
            reader.read(8)
            os.kill(self._actor().pid, signal.SIGKILL)
            reader.read(60)

    def taken_over(self) -> None:
        self.home = self._other()
        self.streamed()

    def suspended(self) -> None:
        with self._watching() as reader:
            reader.read(8)
            away = pb.SuspendSessionRequest(session_id=self.session.session_id)
            put = _done(lambda: self.home.sessions.Suspend(away, timeout=DEADLINE_S))
        if put:
            assert put.state == pb.SESSION_STATE_SUSPENDED
            self.is_suspended = True

    def finished(self) -> None:
        with self._watching() as reader:
            reader.read(4)
            reader.stream.say(finish=pb.Finish())
            reader.rest()
        self.has_ended = True

    def closed(self) -> None:
        assert self.home.close(self.session.session_id).state == pb.SESSION_STATE_CLOSED
        self.has_ended = True

    # ---- while it is put away ----

    def resumed(self) -> None:
        self.home, self.is_suspended = self._draw.choice(self._gateways), False
        again = pb.ResumeSessionRequest(session_id=self.session.session_id, resume_token=self.session.resume_token)
        assert self.home.sessions.Resume(again, timeout=2 * DEADLINE_S).state == pb.SESSION_STATE_RUNNING

    def taken_up(self) -> None:
        """By connecting to it."""
        self.home, self.is_suspended = self._draw.choice(self._gateways), False
        self.streamed()

    def closed_while_suspended(self) -> None:
        self.home = self._draw.choice(self._gateways)
        self.closed()

    # ---- its own ----

    def _watching(self) -> Reader:
        return Reader(self)

    def _other(self) -> Stubs:
        return next(each for each in self._gateways if each is not self.home)

    def _actor(self) -> pb.ActorStatus:
        stage = self.home.get(self.session.session_id).stages[0]
        return next(a for a in self.home.status().actors if a.incarnation == stage.incarnation)


def _done(call: Callable[[], pb.Session]) -> pb.Session | None:
    """What it answers; None where an actor was killed, and a stage is being brought back."""
    try:
        return call()
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return None


class Reader:
    """A connection for one step of a life: every frame comes once, in order, with its own number in its pixels."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def __enter__(self) -> Reader:
        life = self._life
        wish = pb.PortWish(port="frames", credits=8)
        if life.frames:
            wish.last_received = life.frames - 1
        self.stream = life.home.connect(life.session, ports=[wish])
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.cancel()

    def read(self, count: int) -> None:
        for _ in range(count):
            self._take(self.stream.until("frame"))

    def rest(self) -> None:
        """To the end of the session."""
        while (message := self.stream.next()) is not None:
            if message.WhichOneof("message") == "frame":
                self._take(message.frame)
            if message.HasField("event") and message.event.type == pb.Event.TYPE_ENDED:
                self.stream.half_close()

    def _take(self, part: pb.FramePart) -> None:
        life = self._life
        pixels = Joiner().add(part).array
        number = frame_number(pixels if life.graph == "one" else 255 - pixels)
        assert (part.frame, number) == (life.frames, life.frames)
        life.frames += 1
        self.stream.credit(1)
        self.stream.say(ack=pb.Ack(port="frames", frame=part.frame))
