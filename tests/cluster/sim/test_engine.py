"""The simulator: what must hold in any run, and runs small enough to be reckoned by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from riverrun.cluster.sim.engine import Run, World
from riverrun.cluster.sim.policies import POLICIES, policy
from riverrun.cluster.sim.score import Playout, Score
from riverrun.cluster.sim.trace import WORKLOADS, Act, Event, Trace, cut, demo, read, thinned, workload
from riverrun.cluster.sim.truth import PROFILES, Profile, Truth

PORT = PROFILES["port"]


def play(trace: Trace, name: str, gpus: int = 2, profile: Profile = PORT, **world: float) -> Score:
    return Run(trace, policy(name, gpus, profile), World(profile, **world)).score()


def one(seconds: float = 20.0) -> Trace:
    return Trace("one", (Event(1.0, "a", Act.ARRIVE), Event(1.0, "a", Act.ACTIVE)), seconds)


def test_a_session_alone_takes_what_a_chunk_takes() -> None:
    score = play(one(), "B3", spread=0.0)
    assert (score.p50_ms, score.max_ms) == pytest.approx((63.465, 63.465), abs=0.01)
    state = 8 + 500 / 32
    assert score.ttfc_p50_ms == pytest.approx(63.465 + state, abs=0.01)
    assert score.cost == 2 * 20
    assert (score.cpr, score.migrations, score.unplaced_s) == (1.0, 0, 0.0)
    # 8 s of buffer and what is played in the 19 s, in chunks of 0.75 s; the first is not counted
    assert score.chunks == pytest.approx((8 + 19) / 0.75, abs=2)


def test_a_parked_session_makes_no_more_than_is_watched() -> None:
    score = play(one(), "ours", spread=0.0)
    lead_s = policy("ours", 2, PORT).pace.wake_s
    assert score.chunks == pytest.approx((lead_s + 19) / 0.75, abs=2)
    assert score.cpr == 1.0


def test_a_worker_is_bought_when_there_is_no_place_and_paid_for_from_then_on() -> None:
    events = [Event(1.0, f"s{i}", act) for i in range(8) for act in (Act.ARRIVE, Act.ACTIVE)]
    trace = Trace("eight", tuple(events), 100.0)
    score = play(trace, "B5", spread=0.0, start_s=25.0, load_s=5.0)
    assert score.peak_workers == 2
    assert score.unplaced_s == pytest.approx(4 * 31, rel=0.1)
    assert 100 + 99 - 1 <= score.cost <= 100 + 2 * 99


def test_what_is_slower_than_its_viewer_stalls() -> None:
    score = play(one(60.0), "B3", profile=replace(PORT, alone_ms=1500.0), spread=0.0)
    assert score.cpr == pytest.approx(0.75 / 1.501, abs=0.02)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("workload", ["W2", "W4", "W6"])
def test_every_policy_plays_every_kind_of_day(name: str, workload: str) -> None:
    trace = WORKLOADS[workload](1, 1.0)
    if workload == "W6":
        trace = cut(trace, 50.0, 150.0)
    score = play(trace, name, math.ceil(trace.peak_active / 4))
    assert 0 < score.cpr <= 1
    assert 0 < score.p50_ms <= score.p95_ms <= score.p99_ms <= score.max_ms
    assert score.max_ms < 60_000  # nobody is forgotten
    assert (score.recoveries > 0) == (workload == "W6")


def test_a_run_is_a_function_of_its_seed() -> None:
    trace = WORKLOADS["W4"](0, 1.0)
    first, again, other = (play(trace, "ours", seed=seed) for seed in (0, 0, 1))
    assert first.p95_ms == again.p95_ms != other.p95_ms


def test_traces_are_functions_of_their_seed_and_in_order() -> None:
    for make in WORKLOADS.values():
        trace = make(3, 1.0)
        assert trace == make(3, 1.0) != make(4, 1.0)
        assert [e.time_s for e in trace.events] == sorted(e.time_s for e in trace.events)
        first = {e.session: e.act for e in reversed(trace.events)}
        assert set(first.values()) == {Act.ARRIVE}


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_is_made_for_so_many_places(name: str) -> None:
    for active in (16, 200):
        assert 0.85 * active <= workload(name, 0, active).peak_active <= active


def test_who_stays_in_a_thinned_trace_stays_in_a_larger_one() -> None:
    trace = demo(0, seconds=300.0)
    small, large = ({e.session for e in thinned(trace, n).events} for n in (10, 30))
    assert small < large < {e.session for e in trace.events}
    assert thinned(trace, 1000) == trace


def test_who_is_there_when_a_cut_begins_arrives_at_once() -> None:
    acts = [(1, "a", Act.ARRIVE), (1, "a", Act.ACTIVE), (2, "b", Act.ARRIVE), (3, "gone", Act.ARRIVE)]
    acts += [(4, "gone", Act.LEAVE), (6, "b", Act.ACTIVE), (7, "a", Act.LEAVE), (99, "b", Act.LEAVE)]
    trace = Trace("t", tuple(Event(float(at), *rest) for at, *rest in acts), 100.0, ((2.0, 0.0), (6.0, 0.1)))
    part = cut(trace, 5.0, 10.0)
    assert [(e.time_s, e.session, e.act) for e in part.events] == [
        (0.0, "a", Act.ARRIVE),
        (0.0, "b", Act.ARRIVE),
        (0.0, "a", Act.ACTIVE),
        (1.0, "b", Act.ACTIVE),
        (2.0, "a", Act.LEAVE),
    ]
    assert (part.seconds, part.fails, part.active_at_once) == (10.0, ((1.0, 0.1),), 1)


def test_a_cluster_that_scales_begins_with_what_is_there() -> None:
    events = [Event(0.0, f"s{i}", act) for i in range(8) for act in (Act.ARRIVE, Act.ACTIVE)]
    score = play(Trace("eight", tuple(events), 20.0), "ours", 9)
    assert score.unplaced_s == 0


def test_nobody_is_placed_while_the_store_is_away_and_streams_go_on() -> None:
    events = (*one().events, Event(6.0, "b", Act.ARRIVE), Event(6.0, "b", Act.ACTIVE))
    score = play(replace(one(), events=events, store_away=((5.0, 10.0),)), "ours", spread=0.0)
    assert score.unplaced_s == pytest.approx(4.0, abs=1.1)  # and until the next tick
    assert score.cpr == 1.0


def test_a_prompt_switch_makes_one_chunk_longer() -> None:
    still, switched = one(), replace(one(), events=(*one().events, Event(1.01, "a", Act.SWITCH)))
    first, second = (play(trace, "B3", spread=0.0).ttfc_p50_ms for trace in (still, switched))
    assert second == pytest.approx(first + 63.465, abs=0.01)


def test_what_is_so_lies_within_the_spread_of_what_is_told() -> None:
    truths = [Truth.drawn(PORT.latency, 0.2, seed) for seed in range(50)]
    told = [PORT.latency.chunk_ms(62.34, n, 4) for n in range(1, 5)]
    for truth in truths:
        means = [truth.mean_ms(62.34, n, 4) for n in range(1, 5)]
        assert all(0.8 <= so / said <= 1.2 for so, said in zip(means, told, strict=True))
        steps = [truth.step_ms(62.34, 2, 4) for _ in range(100)]
        assert 0.8 * means[1] <= min(steps) < means[1] < max(steps) <= 1.2 * means[1]
    assert len({truth.alone for truth in truths}) == 50
    assert Truth.drawn(PORT.latency, 0.0, 1).mean_ms(62.34, 3, 4) == told[2]


def test_a_published_trace_is_read(tmp_path: Path) -> None:
    rows = [
        {"time_s": 0.0, "sequence": 0, "event_type": "arrival", "session_id": "a", "payload": {"active": True}},
        {"time_s": 2.0, "sequence": 1, "event_type": "user_idle", "session_id": "a", "payload": {"active": False}},
        {"time_s": 3.0, "sequence": 2, "event_type": "user_active", "session_id": "a", "payload": {"active": True}},
        {"time_s": 9.0, "sequence": 3, "event_type": "departure", "session_id": "a", "payload": {}},
    ]
    (tmp_path / "t.json").write_text(json.dumps({"events": rows}))
    trace = read(tmp_path / "t.json")
    assert [e.act for e in trace.events] == [Act.ARRIVE, Act.ACTIVE, Act.IDLE, Act.ACTIVE, Act.LEAVE]
    assert (trace.peak_active, trace.seconds) == (1, 9.0)
    (tmp_path / "t.json").write_text(json.dumps([{"time_s": 1, "session_id": "a", "event_type": "nap"}]))
    with pytest.raises(ValueError, match="got 'nap'"):
        read(tmp_path / "t.json")


def test_the_share_that_played_is_reckoned_as_published() -> None:
    """Chunks of 1 s at 10, 10.5 and 13: two are watched by 12, then it stands for 1 s."""
    playout = Playout()
    for at in (10.0, 10.5, 13.0):
        playout.add(at, 1.0)
    assert playout.lead(13.5) == 0.5
    playout.end(13.5)
    assert (playout.played_s, playout.stalled_s) == (3.0, 1.0)
