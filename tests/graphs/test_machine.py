"""The session as a state machine: any order of what clients, stages and time may do to a `Runner`, its books checked
after each. Every frame that a reader is given is the next one with its own pixels; a session that has ended stays
ended, says why, and leaves neither States nor tasks."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.consumer import MAX_CREDITS, PortWish
from riverrun.graphs.graph import Edge, Endpoint, Graph, StageSpec
from riverrun.graphs.items import Event, EventType, Frame, InputAck, InputRefusal, Receipt, ReceiptStage
from riverrun.graphs.runner import SessionEnded
from riverrun.graphs.stage import InputRefused, StageGone, StepFailed
from riverrun.models.base import BadRequest, Chunk, Control, Corrupt, Unavailable
from riverrun.store.records import _NEXT, SessionState

SOURCE = Graph(
    "source",
    (StageSpec("a", "m"), StageSpec("b", "m")),
    {"big": Endpoint("b", "frames"), "small": Endpoint("a", "frames")},
    (Edge(Endpoint("a", "frames"), Endpoint("b", "frames")),),
)
FED = Graph(
    "fed",
    (StageSpec("a", "m"), StageSpec("b", "m")),
    {"big": Endpoint("b", "frames"), "small": Endpoint("a", "frames")},
    (Edge(Endpoint("a", "frames"), Endpoint("b", "frames")),),
    {"video": Endpoint("a", "frames")},
)
PORTS = ("big", "small")
PORT = st.sampled_from(PORTS)


class Reader:
    """A consumer, and what it was given."""

    def __init__(self, consumer, lossless: bool) -> None:
        self.consumer, self.lossless = consumer, lossless
        self.credit = dict.fromkeys(PORTS, 0)
        self.given = dict.fromkeys(PORTS, 0)
        self.over = False


class SessionMachine(RuleBasedStateMachine):
    """One session on two fake stages, on a loop and a clock of its own; between rules all is at rest."""

    graph = SOURCE
    lab: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.controller: Reader | None = None
        self.viewers: list[Reader] = []
        self.last = dict.fromkeys(PORTS, -1)  # the last frame that any controller was given
        self.revision = self.pushed = 0
        self.left_out: set[int] = set()  # values of frames that a stage refused
        self.settled: dict[int, list[ReceiptStage]] = {}
        self.seen = [SessionState.OPENING]
        self.has_failed = False
        fed = self.graph is FED
        inputs = {"inputs": ("frames",)} if fed else {}
        self.stages = {
            "a": self.lab.FakeStage(size=3, controls=("style",), **inputs),
            "b": self.lab.FakeStage(size=2, inputs=("frames",), controls=("style", "prompt"), latency=5),
        }
        self.encoder = self.lab.FakeEncoder()
        config = RunnerConfig(edge_chunks=2, ring_frames=16, idle_timeout_s=600)
        self.rig = self.lab.Rig(self.graph, self.stages, encoders={"b": self.encoder}, config=config)
        self.do(self.rig.open())

    def do(self, work):
        async def done():
            async with asyncio.timeout(20):
                result = await work
                await self.lab.settle()
                return result

        return self.loop.run_until_complete(done())

    def call(self, *wrong, work):
        """What `work` gives; None where it says that the session has ended, or one of `wrong`."""
        try:
            return self.do(work())
        except SessionEnded:
            assert self.runner.state.ended
        except wrong:
            pass
        return None

    @property
    def runner(self):
        return self.rig.runner

    # ---- readers ----

    @rule(big=st.integers(0, 9), small=st.integers(0, 9), back=st.integers(0, 3))
    def attach(self, big, small, back):
        """A controller comes (back), having had all but the last `back` frames."""

        async def attach():
            received = {port: max(-1, self.last[port] - back) for port in PORTS}
            wishes = [
                PortWish(p, c, received[p] if received[p] >= 0 else None)
                for p, c in ((PORTS[0], big), (PORTS[1], small))
            ]
            return received, self.rig.controller(0, *wishes)

        if (got := self.call(Corrupt, work=attach)) is None:
            return
        received, consumer = got
        if self.controller:
            self.controller.over = True
        self.controller = Reader(consumer, lossless=True)
        self.controller.credit = {"big": big, "small": small}
        for port in PORTS:  # who has received nothing begins at the first frame that is kept
            self.last[port] = received[port] if received[port] >= 0 else self.rings[port].cursor - 1

    @rule(credits=st.integers(0, 9))
    def watch(self, credits):
        async def attach():
            return self.rig.viewer(credits)

        if (consumer := self.call(work=attach)) is not None:
            self.viewers.append(Reader(consumer, lossless=False))
            self.viewers[-1].credit = dict.fromkeys(PORTS, credits)

    @precondition(lambda self: self.controller)
    @rule(port=PORT, frames=st.integers(0, 12))
    def credit(self, port, frames):
        reader = self.controller

        async def credit():
            reader.consumer.credit(port, frames)
            return True

        if self.call(BadRequest, work=credit) and not reader.consumer.is_over:
            reader.credit[port] += frames
            assert reader.credit[port] - reader.given[port] <= MAX_CREDITS

    @precondition(lambda self: self.controller)
    @rule(port=PORT, ahead=st.integers(-4, 2))
    def ack(self, port, ahead):
        """Of a frame that was given or, now and then, of one that was not."""
        frame = self.last[port] + ahead
        reader = self.controller

        async def ack():
            reader.consumer.ack(port, frame)
            return True

        if frame >= 0:
            taken = self.call(BadRequest, work=ack)
            assert ahead <= 0 or not taken or reader.consumer.is_over or frame < self.rings[port].cursor

    @property
    def rings(self):
        return self.runner._flow.audience.rings

    @precondition(lambda self: self.controller)
    @rule(count=st.integers(1, 8))
    def read(self, count):
        self.do(self._read(self.controller, count))

    @precondition(lambda self: self.viewers)
    @rule(count=st.integers(1, 8), data=st.data())
    def look(self, count, data):
        self.do(self._read(data.draw(st.sampled_from(self.viewers)), count))

    @precondition(lambda self: self.controller)
    @rule()
    def detach(self):
        async def close():
            self.controller.consumer.close()

        self.do(close())
        self.controller = None

    async def _read(self, reader, count):
        for _ in range(count):
            reading = asyncio.ensure_future(reader.consumer.next())
            await self.lab.settle()
            if not reading.done():
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                return
            self._got(reader, reading.result())

    def _got(self, reader, item):
        if isinstance(item, Frame):
            assert int(item.array[0, 0, 0]) == self._value_of(item.number)
            reader.given[item.port] += 1
            assert reader.given[item.port] <= reader.credit[item.port], "a frame without credit"
            if reader.lossless:
                assert item.number == self.last[item.port] + 1, "a gap or a frame twice"
                self.last[item.port] = item.number
        elif isinstance(item, Receipt) and item.revision:
            known = self.settled.setdefault(item.revision, [])
            if item.stage not in known:
                known.append(item.stage)
            assert ReceiptStage.RECEIVED not in known[1:], "received after its end"
            assert len(set(known) - {ReceiptStage.RECEIVED}) <= 1, "two ends of one control"
        elif isinstance(item, InputAck):
            assert item.frame < self.pushed
        elif isinstance(item, InputRefusal):
            assert (item.port, item.frame < self.pushed) == ("video", True)
        elif isinstance(item, Event) and item.type is EventType.ENDED:
            assert self.runner.state.ended
            assert item.failed == (self.runner.state is SessionState.FAILED)
        elif item is None:
            reader.over = True

    # ---- controls and input ----

    @rule(kind=st.sampled_from(["style", "prompt", "pause", "go on", "camera"]), step=st.integers(-1, 2))
    def control(self, kind, step):
        revision = max(0, self.revision + step)
        value = {"pause": True, "go on": False}.get(kind, "x" * revision)
        named = Control(revision, "pause" if kind == "go on" else kind, value)

        async def control():
            await self.runner.control(named)
            return True

        if self.call(BadRequest, Unavailable, work=control) and step > 0:
            self.revision = revision

    @precondition(lambda self: self.graph is FED)
    @rule(frames=st.integers(1, 4))
    def push(self, frames):
        """A chunk of numbered frames, if there is room."""
        edge = self.runner._flow.edges[self.graph.inputs["video"]]
        if not edge.takes_push and not edge.ended and not self.runner.state.ended:
            return
        data = self.lab.Ref(self._numbered(frames))

        async def push():
            chunk = Chunk("", data, self.pushed * self.lab.TICKS, self.lab.TICKS, frames)
            await self.runner.push("video", chunk)
            return True

        if self.call(BadRequest, work=push):
            self.pushed += frames

    def _numbered(self, frames):
        import numpy as np

        values = np.arange(self.pushed, self.pushed + frames)[:, None, None, None]
        return np.broadcast_to(values, (frames, 2, 2, 3))

    # ---- stages, time, and the end ----

    @rule(seconds=st.sampled_from([0.1, 6.0, 100.0]))
    def wait(self, seconds):
        self.do(self.rig.clock.advance(seconds))

    @rule(name=st.sampled_from("ab"), error=st.sampled_from([StepFailed, StageGone, BadRequest, RuntimeError]))
    def a_stage_fails(self, name, error):
        """Its next step does."""

        def fail(request):
            self.has_failed = True
            raise error("told to")

        self.stages[name].fail = fail

    @precondition(lambda self: self.graph is FED and not self.has_failed)
    @rule()
    def a_stage_refuses_input(self):
        """The next chunk that it is given is left out; those behind it go on."""

        def refuse(request):
            if request.inputs:
                self.stages["a"].fail = lambda request: None
                self.left_out |= set(request.inputs[0].data.array[:, 0, 0, 0].tolist())
                raise InputRefused("not this one")

        self.stages["a"].fail = refuse

    def _value_of(self, number):
        """The pixels of frame `number`: what was pushed, in order, but for what was left out."""
        if self.graph is SOURCE:
            return number
        return [value for value in range(self.pushed) if value not in self.left_out][number]

    @rule(fails=st.booleans())
    def the_encoder(self, fails):
        self.encoder.error = Unavailable("the encoder is away") if fails else None

    @rule()
    def finish(self):
        self.call(work=self.runner.finish)

    @rule()
    def close(self):
        self.do(self.runner.close("enough"))
        assert self.runner.state.ended

    # ---- what always holds ----

    @invariant()
    def the_books_add_up(self):
        self.runner.check()
        state = self.runner.state
        if state is not self.seen[-1]:
            assert state in _NEXT[self.seen[-1]] or state in {n for s in _NEXT[self.seen[-1]] for n in _NEXT[s]}
            self.seen.append(state)
        assert state is not SessionState.FAILED or self.has_failed
        if state.ended:
            assert self.runner.status().reason
            assert not any(stage.states for stage in self.stages.values())
        for port in PORTS:
            assert self.rings[port].sent <= self.rings[port].next_frame

    def teardown(self):
        self.do(self.rig.close())
        self.loop.close()


class FedMachine(SessionMachine):
    """The same, fed by its client."""

    graph = FED


def test_a_session_that_makes_its_own_frames(lab):
    _try(SessionMachine, lab)


def test_a_session_that_its_client_feeds(lab):
    _try(FedMachine, lab)


def _try(machine, lab):
    bound = type(machine.__name__, (machine,), {"lab": lab})
    run_state_machine_as_test(bound, settings=settings(max_examples=20, stateful_step_count=25, deadline=None))
