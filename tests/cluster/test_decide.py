"""The whole decision for one model's workers: each row is one fleet and what becomes of it."""

from __future__ import annotations

import math

import pytest

from riverrun.cluster.autoscale import ScaleMemory, ScaleRule
from riverrun.cluster.bottleneck import Floor
from riverrun.cluster.decide import Settings, decide
from riverrun.cluster.fleet import Move, Session, Worker
from riverrun.cluster.latency import Formula

RULE = ScaleRule(least=1, most=4, places=4, full=((math.inf, 1.0),), spare=None, hold_s=0.0)
FIXED = Settings(scales=False)
SCALING = Settings(RULE)


def floor_of(*held: str, cordoned: tuple[int, ...] = ()) -> Floor:
    """Workers by the sessions on them, one a letter."""
    each = [tuple(Session(name, 60.0) for name in names) for names in held]
    return Floor([Worker(f"w{i}", 4, those, i in cordoned) for i, those in enumerate(each)], Formula())


def told(floor: Floor, settings: Settings, waiting: str = "", idle: int = 0, memory: ScaleMemory | None = None):
    sessions = [Session(name, 60.0) for name in waiting]
    return decide(floor, sessions, 0.0, memory or ScaleMemory(), settings, idle)[0]


@pytest.mark.parametrize(
    ("held", "settings", "waiting", "moves"),
    [
        (("abc", ""), FIXED, "", 1),  # 3 + 0 becomes 2 + 1
        (("ab", "c"), FIXED, "", 0),
        (("abcd", "efgh"), FIXED, "", 0),  # overload: nobody has room
        (("abcd", ""), Settings(scales=False, most_moves=1), "", 1),
        (("abc", ""), Settings(scales=False, least_share=0.9), "", 0),  # it gains, but not most of the bottleneck
        (("abc", ""), Settings(scales=False, moves=False), "", 0),
        (("abcd", "", ""), FIXED, "x", 3),  # the one that waits is placed, and still two move
    ],
)
def test_moves(held, settings, waiting, moves):
    plan = told(floor_of(*held), settings, waiting)
    assert len(plan.moves) == moves
    assert (plan.workers, plan.released) == (len(held), ())


@pytest.mark.parametrize(
    ("held", "waiting", "idle", "workers", "released"),
    [
        (("abcd",), "e", 0, 2, ()),  # one has no place: a worker more
        (("abcd",), "efghijklmnopqrstuvwxyz", 0, 4, ()),  # never more than the most
        (("abcd",), "", 2, 2, ()),  # those that want nothing hold places too
        (("abc", "d"), "", 0, 1, ("w1",)),  # the lighter one goes
        (("ab", "cd", "e"), "", 0, 2, ("w2",)),
        (("", ""), "", 0, 1, ("w0",)),  # never fewer than the least
    ],
)
def test_scale(held, waiting, idle, workers, released):
    plan = told(floor_of(*held), SCALING, waiting, idle)
    assert (plan.workers, plan.released) == (workers, released)
    left = {name for name in released if held[int(name[1])]}
    assert left <= {move.source for move in plan.moves}


def test_a_cordoned_worker_is_not_counted_and_gets_nobody():
    plan = told(floor_of("abcd", "", cordoned=(1,)), SCALING, "e")
    assert plan.workers == 2  # besides the one that is being left
    assert plan.moves == ()


def test_a_worker_stays_where_its_sessions_find_no_room():
    floor = floor_of("abcd", "efg")
    tight = Settings(ScaleRule(least=1, most=4, places=8, full=((math.inf, 1.0),), spare=None, hold_s=0.0))
    plan = told(floor, tight)
    assert (plan.workers, plan.released, plan.moves) == (2, (), ())


def test_placing_is_where_the_slowest_stays_quickest():
    plan = told(floor_of("abc", "d"), FIXED, "x")
    assert plan.moves[0] == Move("x", None, "w1")


def test_workers_on_their_way_are_counted_and_go_first():
    floor = floor_of("abcd")
    plan = decide(floor, [Session("e", 60.0)], 0.0, ScaleMemory(), SCALING, starting=1)[0]
    assert (plan.workers, plan.released) == (2, ())
    plan = decide(floor_of("ab", "cd"), [], 0.0, ScaleMemory(), SCALING, starting=2)[0]
    assert (plan.workers, plan.released) == (1, ("w0",))
    plan = decide(floor_of("abcd", "cd"), [], 0.0, ScaleMemory(), SCALING, starting=2)[0]
    assert (plan.workers, plan.released) == (2, ())
