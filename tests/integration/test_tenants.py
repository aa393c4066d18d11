"""Two tenants on one actor that can't keep up, one of them greedy: judged by what each is made, not by the clock."""

import pytest

from .conftest import eventually
from .guarded import FRAMES, guarded

GREEDY = 6
WANTS = {"step_ms": 100, "batch": False, "chunk_frames": 1, "fps": 100}
"""A frame is shown for 10 ms, and takes 100 ms of waiting: all are late, always."""


@pytest.fixture
def own(running, tmp_path):
    with guarded(running, tmp_path, "ray_address=local") as service:
        yield service


def made(stubs, sessions) -> int:
    return sum(stubs.get(session.session_id).stages[0].steps for session in sessions)


def test_a_tenant_has_its_half_however_many_sessions_the_other_has(own):
    ann, bob = own.stubs("ann"), own.stubs("bob")
    greedy = [ann.create(params=WANTS, seed=n) for n in range(GREEDY)]
    streams = [ann.connect(session, ports=FRAMES) for session in greedy]
    eventually(lambda: all(made(ann, [session]) for session in greedy))
    modest = [bob.create(params=WANTS)]
    reader = bob.connect(modest[0], ports=FRAMES)
    assert reader.frames(4)[3].frame == 3
    theirs, its = made(ann, greedy), made(bob, modest)
    numbers = [frame.frame for frame in reader.frames(24)]
    theirs, its = made(ann, greedy) - theirs, made(bob, modest) - its
    assert numbers == list(range(4, 28))
    assert theirs <= GREEDY / 2 * its  # as much each; by sessions it would be GREEDY times as much
    assert made(ann, greedy[:1]) > 1  # nor are they starved
    for stream in [*streams, reader]:
        stream.cancel()
    for stubs, sessions in ((ann, greedy), (bob, modest)):  # the store is shared with other tests
        for session in sessions:
            stubs.close(session.session_id)
