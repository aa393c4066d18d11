"""What a runner that has taken a session over does with a store, a stage or a client that is behind or ahead of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from grpc import StatusCode

from riverrun.actors.errors import SessionFailed, meaning
from riverrun.graphs.checkpoints import Cadence
from riverrun.graphs.config import RunnerConfig
from riverrun.graphs.consumer import ConsumerSpec, PortWish, Role
from riverrun.graphs.edge import EdgeQueue
from riverrun.graphs.graph import Edge, Endpoint, Graph, StageSpec
from riverrun.graphs.keeper import RecordKeeper
from riverrun.graphs.ring import OutputRing
from riverrun.graphs.saver import Saver
from riverrun.graphs.stage import Lost
from riverrun.graphs.steplog import StepLog
from riverrun.graphs.takeover import TakeOver
from riverrun.graphs.waiting import Signal, SystemClock
from riverrun.models.base import BadRequest, Control
from riverrun.store.checkpoints import Manifest, Mark
from riverrun.store.memory import MemoryStore
from riverrun.store.records import DECIDED, Conflict, ControlEntry, PortMark, SessionRecord, SessionState

DECISION = ControlEntry(0, DECIDED, 2, "b", 3)
CONFIG = RunnerConfig()
UNSAVED = RunnerConfig(edge_chunks=1, cadence=Cadence(chunks=10_000, seconds=1e9))
BOTH = Graph(
    "chain",
    (StageSpec("a", "m"), StageSpec("b", "m")),
    {"frames": Endpoint("b", "frames"), "raw": Endpoint("a", "frames")},
    (Edge(Endpoint("a", "frames"), Endpoint("b", "frames")),),
)


async def _committed(ours: SessionRecord, stored: SessionRecord) -> SessionRecord | None:
    store = MemoryStore()
    await store.create(stored)
    keeper = RecordKeeper(ours, store, SystemClock(), keep=8, timeout_s=60)
    await keeper.commit(state=SessionState.RUNNING)
    return await store.get(ours.id)


def test_a_store_that_forgot_a_take_over_is_told_again():
    """It failed over to a replica without that write; the runner before may not write any more."""
    before = SessionRecord("s1", "g", nonce="n1", epoch=1)
    stored = asyncio.run(_committed(SessionRecord("s1", "g", nonce="n2", epoch=2, version=2), before))
    assert stored is not None
    assert (stored.epoch, stored.nonce, stored.state) == (2, "n2", SessionState.RUNNING)


def test_a_store_that_granted_the_same_epoch_to_another_is_believed():
    other = SessionRecord("s1", "g", nonce="n3", epoch=2)
    with pytest.raises(Conflict):
        asyncio.run(_committed(SessionRecord("s1", "g", nonce="n2", epoch=2, version=2), other))


def test_a_log_that_was_not_read_yet_is_left_as_it_is():
    """The store forgot the take-over, and the runner fails before it comes to read what its predecessor logged."""

    async def body() -> tuple[ControlEntry, ...]:
        store, before = MemoryStore(), SessionRecord("s1", "g", nonce="n1")
        stored = await store.create(before)
        await store.log(stored, DECISION)
        ours = SessionRecord("s1", "g", nonce="n2", epoch=2, version=2)
        keeper = RecordKeeper(ours, store, SystemClock(), keep=8, timeout_s=60)
        await keeper.commit(state=SessionState.SUSPENDED)
        return await store.read_log("s1")

    assert asyncio.run(body()) == (DECISION,)


def test_an_end_that_is_known_late_takes_nothing_from_what_a_client_has(w, clock, run):
    """Its other output went on while the one that counts the frames was behind; now that one says where the end is."""

    async def body():
        world = w.World(clock)
        b = {"height": 4, "width": 4, "takes": 1, "chunk_frames": 2}  # at twice the rate it says it has
        params = {"a": {"height": 4, "width": 4, "chunk_frames": 2}, "b": b}
        runner = await world.open(BOTH, CONFIG, params=params, max_frames=6)
        await world.crash(runner)
        runner = await world.take_over(BOTH, CONFIG, {"frames": 0, "raw": 6})
        client = w.Client()
        await client.read(runner)
        assert client.numbers == list(range(6))
        assert (await runner.ended()).state is SessionState.CLOSED

    run(body())


def test_more_frames_than_there_are_are_nobodys(w, clock, run):
    """A client that says so is refused, and the session is none the worse for it."""

    async def body():
        world = w.World(clock)
        size = {"height": 4, "width": 4}
        params = {"a": size, "b": {**size, "takes": 1, "chunk_frames": 1}}
        runner = await world.open(w.CHAIN, CONFIG, params=params, max_frames=6)
        await world.crash(runner)
        runner = await world.take_over(w.CHAIN, CONFIG, {"frames": 501})
        wrong = ConsumerSpec(Role.CONTROLLER, (PortWish("frames", 8, 500),))
        with pytest.raises(BadRequest, match="port 'frames': frame 500 was never sent, the session has 6 frames"):
            runner.attach(wrong)
        client = w.Client()
        await client.read(runner)
        assert client.numbers == list(range(6))
        assert (await runner.ended()).state is SessionState.CLOSED

    run(body())


def test_what_is_made_again_for_a_stage_that_is_lost_after_a_take_over_has_room(w, clock, run):
    """The stage before it begins again, too: it does not wait for room that only its own chunks can make."""

    async def body():
        world, size = w.World(clock), {"height": 4, "width": 4}
        params = {"a": size, "b": {**size, "takes": 1, "chunk_frames": 1}}
        runner = await world.open(w.CHAIN, UNSAVED, params=params)
        client = w.Client()
        await client.read(runner, 14)
        await world.crash(runner)
        world.kill("a0")
        runner = await world.take_over(w.CHAIN, UNSAVED, {"frames": 14})
        makers, b = runner.record.placement["a"].actor, runner._flow.drivers["b"]
        lost = b.handle

        async def late(what: str) -> None:
            while what in (f"to {makers}", f"from {makers}") and b.handle is lost:
                await asyncio.sleep(0)

        world.hop = late
        world.kill("a1")
        await client.read(runner, 32)
        assert client.numbers == list(range(32))
        await runner.close("over")

    run(body())


def test_a_stage_that_is_lost_is_data_loss_to_the_client():
    lost = Lost("stage 'a' is lost; the first of its frames that was not made yet is 7")
    assert meaning(SessionFailed(str(lost), lost)).code is StatusCode.DATA_LOSS


def test_a_ring_is_behind_until_it_has_what_its_client_was_sent():
    ring = OutputRing("frames", 4, None, None, Signal(), None)  # type: ignore[arg-type]
    ring.begin_at(chunk=0, frame=0, sent=3)
    assert ring.is_behind
    ring.next_frame = 3
    assert not ring.is_behind
    ring.cursor = 4  # where its client comes back
    assert ring.is_behind
    ring.set_lossless(False)
    assert not ring.is_behind


def test_input_that_is_forgotten_unseen_is_counted_by_frames():
    """Of a session that was taken over, its chunks were taken under the runner before."""
    edge = EdgeQueue(Endpoint("a", "in"), 4, from_client=True)
    edge.begin_at(0, 0, 5, 10)
    edge.commit(3, 6)
    assert (edge.base, edge.base_frame) == (3, 6)


def test_what_a_log_has_forgotten_stays_forgotten():
    log = StepLog(controls={5: (Control(1, "prompt", "p"),)})
    log.forget(4)
    log.forget(2)
    assert log.base == 4


def _manifest(seq: int) -> Manifest:
    return Manifest("s1", "a", 1, "n", "exact", Mark(seq), path=str(seq))


@pytest.mark.parametrize(("at", "kept"), [(1, [2, 4]), (3, [4]), (9, [])])
def test_a_stage_that_has_begun_again_keeps_what_it_has_yet_to_make(at: int, kept: list[int]):
    """Two later checkpoints became usable meanwhile: those behind it have saved what it made before it was lost."""
    forgotten: dict[str, int] = {}
    about: Any = SimpleNamespace(forget=lambda stage, before: forgotten.update({stage: before}))
    nothing: Any = None
    saver = Saver(about, nothing, nothing, SystemClock(), Cadence(), 0.0, nothing, nothing)
    controls = {step: (Control(step, "prompt", "p"),) for step in (2, 4)}
    driver: Any = SimpleNamespace(
        name="a", next_seq=at, acked=8, fault=None, inputs={}, log=StepLog(done=9, controls=controls)
    )
    saver.follow({"a": driver}, [_manifest(5), _manifest(7)])
    saver.forget()
    assert sorted(driver.log.controls) == kept
    assert forgotten["a"] == min(at, 5)


def test_frames_after_a_sessions_end_hold_no_checkpoint_back():
    """An output beside the one that counts the frames was cut where that ends; its stage has made more."""
    record = SessionRecord("s1", "g", ports={"raw": PortMark(chunks=27, emitted=11, sent=11, acked=11)})
    nothing: Any = None
    take = TakeOver(record, nothing, nothing, nothing, nothing, nothing, nothing, [], [], {})
    assert [take.cut("raw", chunks, frames) for chunks, frames in ((9, 9), (11, 11), (20, 20), (28, 28))] == [
        9,
        11,
        11,
        28,  # the record is behind: it can't be known
    ]
    assert take.cut("frames", 20, 20) == 20


def _taken(found: list[Manifest], **record: Any) -> TakeOver:
    nothing: Any = None
    graph = Graph("g", (StageSpec("a", "m"),), {"frames": Endpoint("a", "frames")}, (), {"in": Endpoint("a", "in")})
    about = SessionRecord("s1", "g", ports={"frames": PortMark(acked=99)}, **record)
    return TakeOver(about, nothing, graph, nothing, nothing, nothing, nothing, found, [], {})


def test_input_that_its_client_forgot_is_not_asked_for_though_a_checkpoint_was_set_aside_since():
    """Two counted when it was acked, and the newer one was found damaged: what was acked stands in the record."""
    six, nine = (Manifest("s1", "a", 1, "n", "exact", Mark(n, consumed={"in": n}), path=str(n)) for n in (6, 9))
    for forgotten, least in ((6, six), (9, nine)):
        take = _taken([six, nine], forgotten={"a.in": forgotten})
        assert take._floor("a", {}, nine.mark) == least.mark
        assert (six in take._sources("a", {})) == (least is six)


def test_a_record_names_the_checkpoints_that_a_take_over_leaves():
    """Else it would be taken for that of a session that has ended, when they are deleted."""
    one, five = _manifest(1), _manifest(5)
    stands: Any = {"a": SimpleNamespace(mark=Mark(2), floor=Mark(1, consumed={"in": 1}))}
    take = _taken([one, five])
    assert take.kept(stands) == [one]
    assert take.acked(stands) == {"a.in": 1}


def test_a_take_over_relies_on_no_checkpoint_that_the_runner_before_may_be_about_to_delete():
    """It goes on from those that stay, counts them alone, and deletes the others itself."""
    one, three, five, nine = (_manifest(seq) for seq in (1, 3, 5, 9))
    stands: Any = {"a": SimpleNamespace(mark=Mark(6))}
    take = _taken([one, three, five], dropped=("3",))
    assert take._sources("a", {}) == [five, one]
    assert take._floor("a", {}, Mark(6)).seq == 1
    take = _taken([one, three, five, nine], dropped=("3",))
    assert take.kept(stands) == [one, five]
    assert take.dropped(stands) == [three, nine]
