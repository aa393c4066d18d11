"""Pure decisions over the fleet: latency, placement, moves, scale, slack. Each row of a table is one case."""

from __future__ import annotations

import math
import random

import pytest

from riverrun.cluster.autoscale import Hysteresis, ScaleMemory, ScaleRule, port_target, restlessness, target
from riverrun.cluster.bottleneck import Floor, consolidate, rebalance
from riverrun.cluster.fair import Used
from riverrun.cluster.fleet import Move, Session, Worker
from riverrun.cluster.latency import Formula, Learned, alone_ms, kept_up, move_ms
from riverrun.cluster.slack import PATIENCE_S, Pace, Ready, order, pick, rest_s

ALONE = alone_ms(9, 256, "480p")


def sessions(*names: str, alone: float = ALONE, size: int = 0) -> tuple[Session, ...]:
    return tuple(Session(name, alone, size) for name in names)


def floor(*held: tuple[Session, ...], places: int = 4, cordoned: frozenset[int] = frozenset()) -> Floor:
    workers = [Worker(f"w{i}", places, each, i in cordoned) for i, each in enumerate(held)]
    return Floor(workers, Formula())


# -- latency -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "expected"), [(1, 63.47), (2, 121.84), (3, 182.47), (4, 245.34)])
def test_the_published_formula(n: int, expected: float) -> None:
    """peers.md B6's check: 480p, 9 frames, 256 tokens, K = 4."""
    assert Formula().chunk_ms(ALONE, n, 4) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    ("resolution", "frames", "expected"), [("720p", 64, 180.0), ("4k", 64, 576.0), ("360p", 1, 40.5)]
)
def test_a_session_s_own_part(resolution: str, frames: int, expected: float) -> None:
    assert alone_ms(frames, 0, resolution) == pytest.approx(expected)


def test_a_move_costs_by_its_bytes() -> None:
    assert move_ms(320_000_000) == pytest.approx(18.0)


def test_what_is_measured_moves_the_formula() -> None:
    learned = Learned(Formula())
    assert learned.chunk_ms(ALONE, 2, 4) == Formula().chunk_ms(ALONE, 2, 4)
    for _ in range(100):
        learned = learned.told(ALONE, 2, 4, 1.5 * Formula().chunk_ms(ALONE, 2, 4))
    assert learned.chunk_ms(ALONE, 2, 4) == pytest.approx(1.5 * Formula().chunk_ms(ALONE, 2, 4), rel=0.05)
    assert learned.chunk_ms(ALONE, 4, 4) > 1.2 * Formula().chunk_ms(ALONE, 4, 4)  # near by, it counts too
    curve = [learned.chunk_ms(ALONE, n, 4) for n in range(1, 9)]
    assert curve == sorted(curve)


def test_many_measurements_forget_old_ones() -> None:
    learned = Learned(Formula())
    for ratio in (3.0,) * 1000 + (1.0,) * 2000:
        learned = learned.told(ALONE, 1, 4, ratio * Formula().chunk_ms(ALONE, 1, 4))
    assert learned.chunk_ms(ALONE, 1, 4) == pytest.approx(Formula().chunk_ms(ALONE, 1, 4), rel=0.02)


# -- placement -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "cordoned", "expected"),
    [
        ([(), ()], (), "w0"),  # equal: first by id
        ([("a",), ()], (), "w1"),  # lighter
        ([("a", "b"), ("c",)], (), "w1"),
        ([("a",), ()], (1,), "w0"),  # the lighter one is to be emptied
        ([("a", "b", "c", "d"), ("e", "f", "g")], (), "w1"),
        ([("a", "b", "c", "d")], (), None),  # overload: nobody has room
    ],
)
def test_a_place_is_where_the_bottleneck_stays_least(held: list, cordoned: tuple, expected: str | None) -> None:
    move = floor(*(sessions(*names) for names in held), cordoned=frozenset(cordoned)).place(Session("new", ALONE))
    assert (move and move.target) == expected


def test_a_slow_session_is_kept_away_from_company() -> None:
    """Two sessions on w1 are quicker together than one that takes long: the new one would not be, with that."""
    desks = floor(sessions("slow", alone=500.0), sessions("a", "b"))
    assert desks.place(Session("new", ALONE)) == Move("new", None, "w1")
    assert desks.place(Session("heavy", 900.0)) == Move("heavy", None, "w0")


def test_places_agree_with_trying_every_worker() -> None:
    draw = random.Random(0)
    for _ in range(200):
        kinds = [63.0, 120.0, 400.0]
        workers = [
            Worker(
                f"w{i}",
                draw.choice([2, 4, 6]),
                tuple(Session(f"{i}.{j}", draw.choice(kinds)) for j in range(draw.randint(0, 2))),
            )
            for i in range(draw.randint(1, 12))
        ]
        desks = Floor(workers, Formula())
        for number in range(draw.randint(1, 10)):
            session, level = Session(f"n{number}", draw.choice(kinds)), desks.bottleneck_ms
            open_desks = [d for d in desks.desks.values() if d.room > 0]
            tried = [(max(level, d.with_one(session)), len(d.sessions), d.id) for d in open_desks]
            move = desks.place(session)
            assert (move and move.target) == (min(tried)[2] if tried else None)


# -- rebalancing ---------------------------------------------------------------------------------------------


def test_moves_level_the_workers_and_stop() -> None:
    desks = floor(sessions("a", "b", "c", "d"), (), ())
    moves = rebalance(desks, eta=0.35, least_gain_ms=5)
    assert sorted(len(d.sessions) for d in desks.desks.values()) == [1, 1, 2]
    assert {move.source for move in moves} == {"w0"}
    assert rebalance(desks, eta=0.35, least_gain_ms=5) == []


@pytest.mark.parametrize(
    ("held", "eta", "least", "count"),
    [
        ([("a", "b"), ()], 0.0, 5.0, 1),
        ([("a", "b"), ()], 0.0, 60.0, 0),  # 58.4 ms are to be gained
        ([("a", "b"), ("c", "d")], 0.0, 0.0, 0),  # nothing to gain
        ([("a", "b"), ("c",)], 0.0, 0.0, 0),  # it would be as slow there
        ([("a",), ()], 0.0, 0.0, 0),
        ([(), ()], 0.0, 0.0, 0),
        ([("a", "b", "c", "d"), ("e", "f", "g", "h")], 0.0, 0.0, 0),  # overload: no room anywhere
        ([("a", "b"), ()], 10.0, 5.0, 0),  # moves are dear
    ],
)
def test_a_move_must_gain_more_than_it_costs(held: list, eta: float, least: float, count: int) -> None:
    desks = floor(*(sessions(*names) for names in held))
    assert len(rebalance(desks, eta, least)) == count


def test_a_small_state_moves_rather_than_a_large_one() -> None:
    held = (Session("large", ALONE, 10**9), Session("small", ALONE, 10**6))
    (move,) = rebalance(floor(held, ()), eta=1.0, least_gain_ms=0)
    assert move == Move("small", "w0", "w1")


def test_at_most_so_many_moves_and_none_twice() -> None:
    many = tuple(sessions(*(f"{i}.{j}" for j in range(8))) for i in range(6))
    empty: tuple[tuple[Session, ...], ...] = ((),) * 18
    desks = floor(*many, *empty, places=8)
    assert rebalance(desks, eta=0.0, least_gain_ms=0, of_pair=False) == []  # all are equally slow
    moves = rebalance(desks, eta=0.0, least_gain_ms=0, most=12)
    assert len(moves) == 12 == len({move.session for move in moves})
    assert sorted(len(d.sessions) for d in desks.desks.values()) == [0] * 6 + [1] * 12 + [6] * 6


def test_workers_are_emptied_or_left_alone() -> None:
    desks = floor(sessions("a", "b"), sessions("c"), sessions("d", "e", "f", "g"))
    moves, kept = consolidate(desks, ["w1"])
    assert (moves, kept) == ([Move("c", "w1", "w0")], [])
    moves, kept = consolidate(desks, ["w2"])  # three sessions here, four there: they don't fit
    assert (moves, kept) == ([], ["w2"])
    assert desks.desks["w2"].room == 0  # full, not cordoned
    assert "c" in desks.desks["w0"].sessions


# -- scale ---------------------------------------------------------------------------------------------------

STEADY = ScaleRule(places=4, full=((math.inf, 1.0),), spare=None, hold_s=5.0, most=10)


@pytest.mark.parametrize(
    ("active", "workers", "expected"),
    [(0, 1, 1), (4, 1, 1), (5, 1, 2), (40, 3, 10), (400, 3, 10), (17, 9, 9)],  # the last: fewer would do, not yet
)
def test_more_at_once_and_fewer_later(active: int, workers: int, expected: int) -> None:
    assert target(STEADY, ScaleMemory(), 0.0, active, workers).workers == expected


def test_a_smaller_target_must_stand() -> None:
    memory, found = ScaleMemory(), []
    for now, active in [(0, 8), (2, 8), (4, 12), (5, 8), (6, 20), (8, 8), (12, 4), (13, 8), (14, 4)]:
        result = target(STEADY, memory, now, active, 5)
        memory = result.memory
        found.append(result.workers)
    # At 5 it goes down to the largest that was wanted since 0; 20 at 6 begins anew.
    assert found == [5, 5, 5, 3, 5, 5, 5, 2, 5]


def test_a_restless_load_is_given_room() -> None:
    rule = ScaleRule(places=4, spare=None)
    calm = ScaleMemory(tuple((float(t), 36) for t in range(50)))
    wild = ScaleMemory(tuple((float(t), 20 + 32 * (t % 2)) for t in range(50)))
    assert target(rule, calm, 50.0, 36, 1).workers == 10
    assert target(rule, wild, 50.0, 36, 1).workers == 11
    assert restlessness(calm.seen) == 0 < 0.4 < restlessness(wild.seen)
    assert len(target(rule, calm, 500.0, 36, 1).memory.seen) == 1  # only the window is remembered


@pytest.mark.parametrize(
    ("seen", "active", "expected"),
    [
        ([100] * 29, 100, 28),  # 100 and a tenth more
        ([60, 140] * 15, 140, 35),  # as many as there are just now, no more
        ([100] * 29, 20, 27),  # a moment's lull
        ([], 4, 2),
    ],
)
def test_places_for_the_mean_and_its_root(seen: list[int], active: int, expected: int) -> None:
    rule = ScaleRule(places=4, spare=1.0, mean_s=30.0)
    memory = ScaleMemory(tuple((float(at), n) for at, n in enumerate(seen)))
    assert target(rule, memory, float(len(seen)), active, 1).workers == expected


@pytest.mark.parametrize(
    ("chunk_ms", "expected"), [(63.47, 1.0), (30.0, 1.0), (121.84, 2.0), (152.155, 2.5), (245.4, 4.0), (900.0, 4.0)]
)
def test_how_many_a_worker_keeps_up_with(chunk_ms: float, expected: float) -> None:
    assert kept_up(Formula(), ALONE, 4, 2 * chunk_ms, strain=0.5) == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize(("active", "expected"), [(0, 1), (3, 1), (4, 2), (7, 2), (8, 3), (14, 4), (15, 5), (100, 8)])
def test_the_port_s_budget(active: int, expected: int) -> None:
    assert port_target(active, 4, 8) == expected


@pytest.mark.parametrize(
    ("active", "workers", "variation", "since", "expected"),
    [
        (12, 4, 0, 60, 4),  # 0.75 used
        (15, 4, 0, 60, 5),  # 0.94 > 0.85
        (13, 4, 0, 60, 4),  # more would be right, but it is within the band
        (4, 4, 0, 60, 2),
        (15, 4, 0, 10, 4),  # too soon
        (12, 4, 5, 60, 6),  # restless: half full is full
    ],
)
def test_thresholds_with_a_band(active: int, workers: int, variation: float, since: float, expected: int) -> None:
    assert Hysteresis(places=4).workers(since, 0.0, active, workers, variation) == expected


# -- slack ---------------------------------------------------------------------------------------------------


def ready(name: str, lead: float, waited: float = 0.0, key: object = "k") -> Ready:
    return Ready(name, lead, key, waited)


def test_who_stands_first_then_who_has_waited_and_last_who_has_plenty() -> None:
    waiting = [ready("plenty", 9.0, 9.0), ready("b", 0.1, 0.2), ready("a", 5.0, 0.3), ready("new", PATIENCE_S, 0.1)]
    waiting += [ready("stands", -0.5, 0.8), ready("stands longer", -0.6, 0.7)]
    assert [each.id for each in order(waiting)] == ["stands longer", "stands", "a", "b", "new", "plenty"]


HAD = Used().after(0.0, ["greedy"], 500.0).after(0.0, ["modest"], 100.0)


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        ([], ""),
        ([(0.2, "x")], "a"),
        ([(1.0, "x")] * 4, "abcd"),  # 164 ms of 750
        ([(0.2, "x"), (1.0, "x"), (1.0, "x"), (1.0, "x")], "abc"),  # 164 of 150 would be too long with a fourth
        ([(0.1, "x"), (1.0, "x"), (1.0, "x"), (1.0, "x")], "a"),  # 98 of 75
        ([(0.1, "x"), (0.14, "x"), (1.0, "x")], "a"),  # the second one is in time after it: 130 ms
        ([(0.1, "x"), (0.12, "x"), (1.0, "x")], "abc"),  # and is not: most chunks are made together
        ([(7.0, "x"), (1.0, "x")], "ba"),  # plenty: after the other, with it
        ([(0.0, "x"), (1.0, "x"), (1.0, "x"), (1.0, "x")], "a"),  # late: alone
        ([(0.0, "x"), (0.5, "x"), (-2.0, "x"), (-1.0, "x")], "cda"),  # all that are late
        ([(0.0, "greedy"), (0.4, "modest"), (-2.0, "greedy")], "bca"),  # not late, but its tenant's turn
        ([(0.0, "greedy"), (-0.1, "modest"), (-2.0, "greedy")], "bca"),
        ([(2.0, "greedy"), (0.4, "modest")], "ab"),  # nobody is late: who has waited longest
    ],
)
def test_whose_turn_it_is_and_who_shares_it(waiting: list[tuple[float, str]], expected: str) -> None:
    each = [Ready(name, *one) for name, one in zip("abcd", [(lead, "k", 0.0, t) for lead, t in waiting], strict=False)]
    chosen = pick(each, HAD, lambda n: 65.0 + 33 * (n - 1), 8)
    assert "".join(one.id for one in chosen) == expected


@pytest.mark.parametrize(("saves", "expected"), [(0.0, 1), (0.04, 1), (0.06, 4), (0.3, 4)])
@pytest.mark.parametrize("lead", [0.0, 3.0])
def test_a_step_is_shared_where_that_saves(saves: float, lead: float, expected: int) -> None:
    waiting = [ready(f"s{i}", lead) for i in range(4)]
    assert len(pick(waiting, Used(), lambda n: 100 * n * (1 - saves * (n > 1)), 8)) == expected


@pytest.mark.parametrize(("waited", "expected"), [(0.0, 3), (0.08, 3), (0.09, 2), (0.11, 2), (0.12, 1), (0.5, 1)])
@pytest.mark.parametrize("leads", [(2.0, 2.0), (2.0, 0.1)])  # all would be in time one after the other, and not
def test_who_has_waited_long_is_not_held_up_further(waited: float, expected: int, leads: tuple[float, float]) -> None:
    """Steps of two and of three take 133 and 166 ms; a chunk 249 at most, as far as others are the cause."""
    first, other = leads
    waiting = [ready("a", first, waited), ready("b", other), ready("c", other)]
    assert len(pick(waiting, Used(), lambda n: 100 + 33.0 * (n - 1), 3)) == expected


def test_only_what_may_share_a_step_does() -> None:
    waiting = [ready("a", 1.0), ready("b", 1.1, key="other"), ready("c", 1.2)]
    assert [each.id for each in pick(waiting, Used(), lambda n: 50.0 + 5 * n, 8)] == ["a", "c"]
    assert len(pick(waiting, Used(), lambda n: 60.0 * n + n * n, 8)) == 1  # sharing would make each slower
    many = [ready(f"{i}", 3.0) for i in range(9)]
    assert [len(pick(many, Used(), lambda n: 50.0, most)) for most in (1, 3, 9)] == [1, 3, 9]


@pytest.mark.parametrize(("took", "expected"), [(0.06, 0.25), (0.5, 0.25), (0.51, 0.0), (30.0, 0.0)])
def test_who_is_much_quicker_than_its_viewer_rests(took: float, expected: float) -> None:
    assert rest_s(1.0, took) == expected
    assert took + expected < 1.0 or not expected  # else its viewer would come to stand


def test_a_session_ahead_is_parked_until_its_viewer_has_come_near() -> None:
    pace, parked, found = Pace(1.0, 0.4), False, []
    for lead in (0.5, 1.1, 0.9, 0.5, 0.39, 0.9):
        parked = pace.is_parked(lead, parked)
        found.append(parked)
    assert found == [False, True, True, True, False, False]
