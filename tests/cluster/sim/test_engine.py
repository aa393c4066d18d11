"""The simulator: what must hold in any run, and runs small enough to be reckoned by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from riverrun.cluster.sim.engine import Run, World
from riverrun.cluster.sim.policies import BASELINES, policy
from riverrun.cluster.sim.score import Playout, Score
from riverrun.cluster.sim.trace import WORKLOADS, Act, Event, Trace, demo, read, sized


def play(trace: Trace, name: str, fixed: int = 2, **world: float) -> Score:
    return Run(trace, policy(name, 4, fixed, 1000), World(**world)).score()


def one(seconds: float = 20.0, **more: float) -> Trace:
    return Trace("one", (Event(1.0, "a", Act.ARRIVE), Event(1.0, "a", Act.ACTIVE)), seconds, **more)


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
    assert score.chunks == pytest.approx(19 / 0.75, abs=3)
    assert score.cpr == 1.0


def test_a_worker_is_bought_when_there_is_no_place_and_paid_for_from_then_on() -> None:
    events = [Event(1.0, f"s{i}", act) for i in range(8) for act in (Act.ARRIVE, Act.ACTIVE)]
    trace = Trace("eight", tuple(events), 100.0)
    score = play(trace, "B5", fixed=1, spread=0.0, start_s=30.0)
    assert score.peak_workers >= 2
    assert score.unplaced_s == pytest.approx(4 * 31, rel=0.1)
    assert 100 + 99 - 1 <= score.cost <= 100 + 2 * 99


def test_what_is_slower_than_its_viewer_stalls() -> None:
    score = play(one(60.0, alone_ms=1500.0), "B3", spread=0.0)
    assert score.cpr == pytest.approx(0.75 / 1.501, abs=0.02)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("workload", ["W2", "W4", "W6"])
def test_every_policy_plays_every_kind_of_day(name: str, workload: str) -> None:
    trace = WORKLOADS[workload](1)
    if workload == "W6":
        trace = replace(demo(1, 150.0), fails=((60.0, 0.0), (90.0, 0.1)))
    peak = math.ceil(trace.peak_active / 4)
    score = play(trace, name, fixed=peak)
    assert 0 < score.cpr <= 1
    assert 0 < score.p50_ms <= score.p95_ms <= score.p99_ms <= score.max_ms
    assert score.max_ms < 60_000  # nobody is forgotten
    assert (score.recoveries > 0) == (workload == "W6")


def test_a_run_is_a_function_of_its_seed() -> None:
    trace = WORKLOADS["W4"](0)
    first, again, other = (play(trace, "ours", seed=seed) for seed in (0, 0, 1))
    assert first.p95_ms == again.p95_ms != other.p95_ms


def test_traces_are_functions_of_their_seed_and_in_order() -> None:
    for make in WORKLOADS.values():
        trace = make(3)
        assert trace == make(3) != make(4)
        assert [e.time_s for e in trace.events] == sorted(e.time_s for e in trace.events)
        last = {e.session: e.act for e in trace.events}
        first = {e.session: e.act for e in reversed(trace.events)}
        assert set(first.values()) == {Act.ARRIVE}
        assert set(last.values()) <= {Act.LEAVE, Act.ACTIVE, Act.IDLE, Act.ARRIVE}


def test_a_trace_can_be_made_larger_or_smaller() -> None:
    trace = demo(0, 300.0)
    assert sized(trace, 3).peak_active == pytest.approx(3 * trace.peak_active, rel=0.25)
    assert sized(trace, 0.5).peak_active == pytest.approx(0.5 * trace.peak_active, rel=0.3)


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
