"""A session that moves leaves nothing behind: not on the actor it leaves, and not in store, files or processes."""

from __future__ import annotations

import time

import grpc
import pytest

from riverrun.configs import load_service
from riverrun.protos import riverrun_pb2 as pb

from .balance import RESIDENT_SLACK, left_over, steady
from .census import Census, forget_ended
from .conftest import DEADLINE_S, Running, Stubs, eventually

PAIR = "name: pair\nclass: riverrun.models.synthetic:Synthetic\nstage: generation\nactor: {count: 2}\n"
GRAPH = "name: one\nstages: {a: {model: pair}}\noutputs: {frames: a.frames}\n"
STATE = {"state_bytes": 2_000_000}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A service of this module's own with two actors, and the folder of its checkpoints."""
    folder = tmp_path_factory.mktemp("moves")
    (folder / "pair.yaml").write_text(PAIR)
    (folder / "one.yaml").write_text(GRAPH)
    kept = ["checkpoints.chunks=3", "checkpoints.grace_s=0.1", f"checkpoints.uri={folder}/checkpoints"]
    about = [f"models=[{folder}/pair.yaml]", f"graphs=[{folder}/one.yaml]", "ray_address=local"]
    service = Running(load_service(None, ["port=0", "drain_s=0.2", *about, *kept]))
    service.start()
    with grpc.insecure_channel(service.service.address) as channel:
        stubs = Stubs(channel)
        eventually(lambda: [a.up for a in stubs.status().actors] == [True, True])
        yield service, stubs, folder / "checkpoints"
    service.stop()


class Moving:
    """A session that is read while it moves; its frames come once and in order."""

    def __init__(self, stubs):
        self.stubs, self.frames = stubs, 0
        self.session = stubs.create(graph="one", params=STATE)
        self.connect()

    def connect(self):
        wish = pb.PortWish(port="frames", credits=8)
        if self.frames:
            wish.last_received = self.frames - 1
        self.stream = self.stubs.connect(self.session, ports=[wish])

    def read(self, count):
        for _ in range(count):
            assert self.stream.until("frame").frame == self.frames
            self.stream.credit(1)
            self.stream.say(ack=pb.Ack(port="frames", frame=self.frames))
            self.frames += 1

    def move(self):
        """To the other actor; on the one it leaves nothing of it stays."""
        before = self.at()
        request = pb.MigrateSessionRequest(session_id=self.session.session_id, stage="a")
        self.stubs.sessions.Migrate(request, timeout=DEADLINE_S)
        assert self.at() != before
        source = eventually(lambda: self._empty(before))
        assert (source.held_bytes, source.reserved_bytes) == (0, 0)

    def at(self):
        return self.stubs.get(self.session.session_id).stages[0].actor

    def _empty(self, actor):
        found = next(a for a in self.stubs.status().actors if a.actor == actor)
        return found if found.sessions == 0 else None

    def close(self):
        self.stubs.close(self.session.session_id)
        self.stream.cancel()


def moved(stubs, count):
    """One session that moves so often. A connection lives as long as a test may wait, so it takes several."""
    moving = Moving(stubs)
    for number in range(1, count + 1):
        moving.read(8)
        moving.move()
        if number % 20 == 0:
            moving.stream.cancel()
            moving.connect()
    moving.read(8)
    moving.close()


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_nothing_is_left_of_a_session_that_moved(pair, count):
    service, stubs, folder = pair
    moved(stubs, 4)
    census = Census(service, stubs, ["pair"])

    def counted():
        forget_ended(service.service.store_url)
        stubs.sessions.List(pb.ListSessionsRequest(), timeout=DEADLINE_S)  # takes what was forgotten out of the index
        blobs = sum(path.is_file() for path in folder.rglob("*"))
        return census.now() | ({"blobs": blobs} if blobs else {})

    before = eventually(lambda: steady(counted))
    resident, began = census.resident(), time.monotonic()
    moved(stubs, count)
    took = time.monotonic() - began
    assert not left_over(before, counted)
    growth = {name: census.resident()[name] - bytes_ for name, bytes_ in resident.items()}
    print(f"{count} moves in {took:.0f} s; resident bytes more: {growth}")
    assert max(growth.values()) < RESIDENT_SLACK, growth
    service.call(service.service.check())
