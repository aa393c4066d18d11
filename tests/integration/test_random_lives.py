"""Nothing is left of sessions that lived at random: moved, put away, taken over, their actors killed, ended at last."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter

import pytest

from riverrun.protos import riverrun_pb2 as pb

from .balance import RESIDENT_SLACK, left_over, steady
from .census import Census, forget_ended, tasks
from .conftest import DEADLINE_S, eventually
from .lives import GRAPHS, Life
from .pair import two_gateways

AT_ONCE = 4


@pytest.fixture(scope="module")
def gateways(tmp_path_factory, ray_cluster):
    """Two of one cluster, and the folder of their checkpoints."""
    folder = tmp_path_factory.mktemp("lives")
    quick = ("checkpoints.grace_s=0.1", "checkpoints.reap_s=1", "idle_timeout_s=600")
    with two_gateways(folder, GRAPHS, *quick) as (one, two):
        eventually(lambda: all_up(one[1]))
        yield one, two, folder / "checkpoints"


@pytest.fixture(autouse=True)
def _nothing_is_captured():
    """What pytest keeps of a log line would hold the error it is about, whose frames hold a whole session."""
    make = logging.getLogRecordFactory()

    def said(*values, **more):
        record = make(*values, **more)
        record.msg, record.args, record.exc_info = record.getMessage(), (), None
        return record

    logging.setLogRecordFactory(said)
    yield
    logging.setLogRecordFactory(make)


def all_up(stubs):
    return [actor.up for actor in stubs.status().actors] == [True, True]


def lived(stubs, draw, sessions, crash_every):
    """So many sessions, some of them at once; how often each step was made. crash_every: steps between two crashes."""
    made, lives, opened, calm = Counter(), [], 0, 0
    while opened < sessions or lives:
        if opened < sessions and len(lives) < AT_ONCE:
            lives.append(Life(stubs, draw))
            opened += 1
        life, calm = draw.choice(lives), calm + 1
        step = life.live(may_crash=calm >= crash_every)
        if step == "crashed":
            calm = 0
            eventually(lambda: all_up(stubs[0]), 2 * DEADLINE_S)
        made[step] += 1
        lives = [each for each in lives if not each.has_ended]
    return made


@pytest.mark.parametrize(
    ("sessions", "crash_every"),
    [
        pytest.param(30, 25, marks=[pytest.mark.timeout(600)]),
        pytest.param(500, 60, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_nothing_is_left_of_sessions_of_random_life(gateways, sessions, crash_every):
    (one, first), (two, second), folder = gateways
    draw = random.Random(7)
    lived((first, second), draw, AT_ONCE, 1_000_000)

    def reaped():
        """A blob that was being written when its session ended is found by the next round of the reaper; a runner whose
        session was taken over finds out when it writes its record, which must not be gone by then."""
        return not any(path.is_file() for path in folder.rglob("*")) and not any(g.service.sessions for g in (one, two))

    def counted():
        eventually(reaped)  # the reaper goes by the records, so they must still be there
        forget_ended(one.service.store_url)
        for stubs in (first, second):
            stubs.sessions.List(pb.ListSessionsRequest(), timeout=DEADLINE_S)
        others = {f"task of the other: {name}": count for name, count in two.call(tasks()).items()}
        return Census(one, first, ["pair"]).now() | others

    before = eventually(lambda: steady(counted))
    resident, began = Census(one, first, ["pair"]).resident(), time.monotonic()
    made = lived((first, second), draw, sessions, crash_every)
    took = time.monotonic() - began
    left = left_over(before, counted, killed=made["crashed"])
    assert not left, left
    now = Census(one, first, ["pair"]).resident()
    growth = {name: now[name] - bytes_ for name, bytes_ in resident.items()}
    print(f"{sessions} sessions in {took:.0f} s: {dict(made)}; resident bytes more: {growth}")
    assert made["crashed"] >= 1
    assert max(growth.values()) < RESIDENT_SLACK, growth
    for each in (one, two):
        each.call(each.service.check())
