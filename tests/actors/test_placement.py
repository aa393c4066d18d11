"""Placement: the actor with most room, by places and by bytes."""

import pytest

from riverrun.cluster.fleet import Session
from riverrun.cluster.latency import Formula
from riverrun.cluster.placement import Load, keeps_headroom, least_bottleneck, least_loaded, shared_node


def full(actor: str, sessions: int, reserved: int, limit: int | None = 100) -> Load:
    """Sessions keep 10 bytes and have 30 during a step."""
    return Load(actor, sessions, 8, reserved, limit, retained_bytes=10, peak_bytes=30)


@pytest.mark.parametrize(
    ("loads", "chosen"),
    [
        ([], None),
        ([Load("a", 2, 2, 0)], None),
        ([Load("a", 2, 2, 0), Load("b", 1, 2, 9)], "b"),
        ([Load("a", 3, 8, 0), Load("b", 0, 4, 0)], "a"),
        ([Load("a", 1, 2, 9), Load("b", 1, 2, 3)], "b"),
        ([Load("b", 1, 2, 3), Load("a", 1, 2, 3)], "a"),
        ([full("a", 1, 95), full("b", 5, 70)], "b"),  # more places, no bytes
        ([full("a", 1, 30), full("b", 2, 70)], "a"),
        ([full("a", 3, 60), full("b", 3, 900, None)], "b"),  # room for four by bytes, against five places
        ([full("a", 1, 99), full("b", 1, 95)], "b"),  # nothing fits: the one with most bytes left says so
        ([full("a", 8, 20)], None),
    ],
)
def test_least_loaded(loads, chosen):
    assert least_loaded(loads) == chosen


@pytest.mark.parametrize(
    ("load", "room"),
    [
        (full("a", 0, 0), 8),  # 100 - 20 for a step, 10 each
        (full("a", 0, 0, 49), 2),
        (full("a", 1, 30), 7),
        (full("a", 1, 85), 1),  # the step of another is set aside already
        (full("a", 1, 95), 0),
        (full("a", 1, 30, None), 7),
        (Load("a", 1, 8, 30, 40), 7),  # nothing is known of its sessions
    ],
)
def test_room(load, room):
    assert load.room == room


@pytest.mark.parametrize(
    ("sessions", "chosen", "kept"),
    [
        ((0, 0), "a", True),
        ((1, 1), "a", True),
        ((2, 1), "b", True),
        ((3, 1), "b", False),
        ((2, 2), "a", False),  # three and two on actors of four: the three would find two places
        ((3, 1), "a", False),
        ((0,), "a", False),
        ((2, 2, 2), "a", True),
    ],
)
def test_headroom_for_the_fullest_actor(sessions, chosen, kept):
    loads = [Load(name, count, 4, 0) for name, count in zip("abc", sessions, strict=False)]
    assert keeps_headroom(loads, chosen) is kept


def at(node, *sessions, places=4):
    """Actors of one model on a node, by the sessions they have."""
    return [Load(f"{node}{n}", taken, places, 0, node=node) for n, taken in enumerate(sessions)]


@pytest.mark.parametrize(
    ("stages", "node"),
    [
        ([at("x", 0) + at("y", 0), at("y", 3)], "y"),  # the first stage is no freer there, but the second is only there
        ([at("x", 3) + at("y", 2), at("x", 0) + at("y", 1)], "y"),  # the tightest stage counts
        ([at("x", 2) + at("y", 2), at("x", 2) + at("y", 2)], "x"),
        ([at("x", 4) + at("y", 0), at("x", 0)], ""),  # no node has room for both
        ([at("x", 0), at("y", 0)], ""),
        ([at("x", 0), at("x", 0), at("x", 0) + at("y", 0)], "x"),
        ([at("x", 0)], ""),  # alone, a stage goes where most room is
        ([at("", 0), at("", 0)], ""),
    ],
)
def test_stages_of_a_chain_are_kept_on_one_node(stages, node):
    assert shared_node(stages) == node


def test_the_node_of_the_chain_comes_first_while_it_has_room():
    loads = at("x", 0, 0) + at("y", 3, 2)
    assert least_loaded(loads) == "x0"
    assert least_loaded(loads, node="y") == "y1"
    assert least_loaded(at("x", 3) + at("y", 4), node="y") == "x0"


def active(*slow: float) -> list[Session]:
    return [Session(f"{ms}-{n}", ms) for n, ms in enumerate(slow)]


@pytest.mark.parametrize(
    ("loads", "busy", "node", "chosen"),
    [
        ([Load("a", 2, 8, 0), Load("b", 1, 8, 0)], {}, "", "b"),  # all are idle: more room
        ([Load("a", 1, 8, 0), Load("b", 2, 8, 0)], {"a": active(60)}, "", "b"),  # fewer sessions, but they want chunks
        ([Load("a", 1, 8, 0), Load("b", 2, 8, 0)], {"a": active(500), "b": active(60, 60)}, "", "b"),
        ([Load("a", 1, 1, 0), Load("b", 2, 8, 0)], {"b": active(60, 60)}, "", "b"),  # a is full
        ([Load("a", 0, 8, 0, node="x"), Load("b", 1, 8, 0, node="y")], {"b": active(60)}, "y", "b"),
        ([Load("a", 0, 8, 0, node="x"), Load("b", 1, 1, 0, node="y")], {"b": active(60)}, "y", "a"),
        ([Load("a", 1, 1, 0)], {}, "", None),
        ([full("a", 1, 99), full("b", 1, 95)], {}, "", "b"),  # nothing fits: the one with most bytes left says so
    ],
)
def test_least_bottleneck(loads, busy, node, chosen):
    assert least_bottleneck(loads, busy, Session("new", 60.0), Formula(), node) == chosen
