"""Decisions for one model over a pool that is not there: who goes where, how many there are, who moves, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest

from riverrun.actors.decisions import Decisions
from riverrun.actors.health import Look, Measured, Resident, StageHealth
from riverrun.actors.member import Member, PlaceWish, Seen
from riverrun.actors.planner import REST_S, Planner
from riverrun.actors.pool import Pool
from riverrun.actors.sessions import Growing, NoRoom
from riverrun.configs import ActorConfig, ModelConfig
from riverrun.graphs.stage import Epoch

PLACES = 4


class FakePool(Pool):
    """Members that are looked at without Ray. held: by actor, the sessions there and what their steps take."""

    def __init__(self, held: dict[str, dict[str, float]], **limits) -> None:
        limits = {"count": len(held), "max_sessions": PLACES, **limits}
        super().__init__(ModelConfig("m", "a:B", "generation", actor=ActorConfig(**limits)), start=None)
        self.held, self.measured, self.idle = held, {}, set()
        self._members = {name: self._start_one(name, loaded=True) for name in list(held)}
        self.wanted = len(held)
        self.is_used = True

    def _start_one(self, name, loaded=False):
        self.held.setdefault(name, {})
        return Member(name, f"{name}-life", None, None, loaded=loaded)

    def load_all(self):
        for member in self._members.values():
            member.loaded = True

    def looks(self, timeout_s=0.0):
        return [self._seen(member) for member in self._members.values() if member.loaded]

    def _seen(self, member):
        there = self.held[member.name]
        health = StageHealth(member.incarnation, len(there), PLACES, 0, 0, 1, 0.0, 1.0)
        residents = tuple(
            Resident(name[:-2], name[-1], Epoch(1, "n"), 60.0 if name in self.idle else 0.0, alone_ms=ms)
            for name, ms in there.items()
        )
        return Seen(member, Look(health, residents, self.measured.get(member.name, ())))


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Rig:
    pool: FakePool
    clock: Clock = field(default_factory=Clock)
    decisions: Decisions = field(default_factory=Decisions)

    def __post_init__(self):
        self.planner = Planner(self.pool, self.decisions, self.clock)

    def place(self, session, stage="s", **wish):
        return self.planner.place(PlaceWish(session=session, stage=stage, **wish)).actor

    def tick(self, is_frozen=False):
        self.clock.now += 1
        self.planner.tick(self.pool.looks(), is_frozen)


def sessions(*names, ms=100.0):
    return {f"{name}/s": ms for name in names}


def lived(rig, *samples):
    """What steps took: (sessions, ms each)."""
    figures = tuple(Measured(n, 10, 100.0, took) for n, took in samples)
    rig.pool.measured = dict.fromkeys(rig.pool.held, figures)
    rig.tick(is_frozen=True)


def test_before_anything_is_measured_the_one_with_most_room():
    rig = Rig(FakePool({"m-0": sessions("a"), "m-1": sessions()}))
    assert rig.place("x") == "m-1"


def test_then_where_the_slowest_chunk_stays_quickest():
    """m-1 has fewer sessions, but one whose steps are slow."""
    rig = Rig(FakePool({"m-0": sessions("a", "b"), "m-1": sessions("slow", ms=2000.0)}))
    lived(rig, (1, 100.0), (2, 200.0), (3, 300.0))
    assert rig.place("x") == "m-0"
    (why,) = rig.decisions.about("x")
    assert why.kind == "place"
    assert set(why.inputs) == {"m-0", "m-1"}
    assert "1 of 4 sessions, 1 active, slowest chunk" in why.inputs["m-1"]


def test_what_the_controller_before_had_learned_is_known_at_once():
    """Nothing was measured since: it goes on by the slowest chunk, not by who has most room."""
    learned = {1: (10.0, 1.0), 2: (10.0, 1.2), 3: (10.0, 1.4)}
    pool = FakePool({"m-0": sessions("a", "b"), "m-1": sessions("slow", ms=2000.0)})
    planner = Planner(pool, Decisions(), Clock(), learned)
    assert planner.place(PlaceWish(session="x", stage="s")).actor == "m-0"
    assert planner.learned == learned


def test_sessions_left_alone_take_a_place_and_no_time():
    rig = Rig(FakePool({"m-0": sessions("a", "b"), "m-1": sessions("c")}))
    lived(rig, (1, 100.0), (2, 200.0))
    rig.pool.idle = {"a/s", "b/s"}
    assert rig.place("x") == "m-0"


def test_a_place_that_was_promised_is_not_given_twice():
    rig = Rig(FakePool({"m-0": sessions("a", "b", "c"), "m-1": sessions("d", "e", "f", "g")}))
    assert rig.place("x") == "m-0"
    with pytest.raises(NoRoom, match="all 8 places of model 'm' are taken; one must end first"):
        rig.place("y")
    assert [each.kind for each in rig.decisions.about("y")] == ["refuse"]
    rig.clock.now += 11  # it did not come
    assert rig.place("y") == "m-0"
    rig.pool.held["m-0"].update(sessions("y"))  # it did: it is counted once
    with pytest.raises(NoRoom):
        rig.place("z")


def test_who_has_opened_or_will_not_keeps_no_place():
    rig = Rig(FakePool({"m-0": sessions("a", "b", "c")}))
    for refused in ("v", "w", "x"):  # as many as would fill it, all refused for what they asked
        assert rig.place(refused) == "m-0"
        rig.planner.settle(refused)
    rig.pool.held["m-0"].update(sessions("y"))
    rig.planner.settle("y")
    with pytest.raises(NoRoom):
        rig.place("z")


def test_who_came_and_has_ended_keeps_no_place():
    """As one that was brought back here: nobody settles it."""
    rig = Rig(FakePool({"m-0": sessions("a", "b", "c")}))
    assert rig.place("x", avoid="another-life") == "m-0"
    rig.pool.held["m-0"].update(sessions("x"))
    rig.tick()
    del rig.pool.held["m-0"]["x/s"]
    assert rig.place("y") == "m-0"


def test_a_cordoned_actor_gets_only_who_asks_for_it():
    rig = Rig(FakePool({"m-0": sessions(), "m-1": sessions("a")}))
    rig.pool.cordon({"m-0-life": 2000.0})
    assert rig.pool.leaving() == {"m-0-life": 2000.0}
    assert rig.place("x") == "m-1"
    assert rig.place("y", actor="m-0") == "m-0"
    rig.pool.cordon({})
    assert rig.place("z") == "m-0"


def test_moves_are_ordered_until_they_are_made_and_then_is_rest():
    rig = Rig(FakePool({"m-0": sessions("a", "b", "c"), "m-1": sessions()}))
    lived(rig, (1, 100.0), (2, 200.0), (3, 300.0))
    rig.tick()
    (order,) = rig.planner.orders()
    assert (order.source, order.target, order.stage) == ("m-0-life", "m-1", "s")
    assert "is to move from m-0-life to m-1" in rig.decisions.about(order.session)[-1].line
    rig.tick()
    assert rig.planner.orders() == [order]  # nobody has made it yet
    name = f"{order.session}/s"
    rig.pool.held["m-1"][name] = rig.pool.held["m-0"].pop(name)
    rig.tick()
    assert rig.planner.orders() == []
    rig.pool.held["m-0"].update(sessions("d", "e"))
    rig.tick()
    assert rig.planner.orders() == []  # what the move changed is not known yet
    rig.clock.now += REST_S
    rig.tick()
    assert rig.planner.orders() != []
    rig.tick(is_frozen=True)
    assert rig.planner.orders() == []


def test_an_order_that_no_gateway_carries_out_is_given_up():
    rig = Rig(FakePool({"m-0": sessions("a", "b", "c"), "m-1": sessions()}))
    lived(rig, (1, 100.0), (2, 200.0), (3, 300.0))
    rig.tick()
    rig.clock.now += 20
    rig.tick(is_frozen=True)
    assert rig.planner.orders() == []


def growing(**limits):
    return Rig(FakePool({"m-0": sessions("a", "b", "c", "d")}, count=1, max_count=3, shrink_s=5.0, **limits))


def test_who_finds_no_place_makes_the_pool_grow():
    rig = growing()
    rig.tick()
    assert rig.pool.wanted == 2  # four of four places: restless or not, one more session would find none
    with pytest.raises(Growing, match="another actor is being started"):
        rig.place("e")
    rig.pool.fill()
    assert rig.pool.names == ["m-0", "m-1"]
    rig.tick()
    assert (rig.pool.wanted, rig.pool.starting) == (2, 1)  # the one that is coming is counted
    rig.pool.load_all()
    assert rig.place("e") == "m-1"


def test_a_frozen_pool_neither_grows_nor_says_so():
    rig = growing()
    rig.tick(is_frozen=True)
    assert rig.pool.wanted == 1
    with pytest.raises(NoRoom, match="one must end first"):
        rig.place("e")


def test_a_pool_shrinks_when_fewer_have_done_for_a_while():
    rig = Rig(FakePool({"m-0": sessions("a"), "m-1": sessions("b")}, count=1, max_count=3, shrink_s=5.0))
    for _ in range(5):
        rig.tick()
        assert rig.pool.wanted == 2
    rig.tick()
    assert rig.pool.wanted == 1
    assert rig.pool.leaving() == {"m-0-life": math.inf}
    assert rig.place("x") == "m-1"
    rig.tick()
    assert rig.pool.names == ["m-1"]
    rig.pool.held["m-1"].update(sessions("c", "d", "e"))
    rig.tick()  # it is wanted again, and still there
    assert rig.pool.names == ["m-0", "m-1"]
    assert rig.pool.leaving() == {}
    kinds = [each.line for each in rig.decisions.about("x") if each.kind == "scale"]
    assert kinds[0].startswith("1 actors after 2: ")


def test_a_cordoned_actor_is_replaced_where_the_pool_may_grow():
    rig = Rig(FakePool({"m-0": sessions("a"), "m-1": sessions("b")}, count=2, max_count=3))
    rig.pool.cordon({"m-0-life": 2000.0})
    rig.tick()
    assert rig.pool.wanted == 3
    assert len(rig.pool.bundles()) == 0  # nothing that Ray counts


@pytest.mark.parametrize("most", [None, 4])
def test_an_actor_that_dies_is_one_too_few(most):
    rig = Rig(FakePool({"m-0": sessions("a"), "m-1": sessions("b")}, max_count=most))
    del rig.pool.held["m-1"], rig.pool._members["m-1"]
    rig.tick()
    assert rig.pool.wanted == 2
    rig.pool.fill()
    assert {member.name for member in rig.pool._members.values()} == {"m-0", "m-1"}
