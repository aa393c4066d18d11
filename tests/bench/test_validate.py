"""bench.validate: what is compared, and with what. The service itself is started by the bench."""

from __future__ import annotations

import time

import pytest

from riverrun.bench.timed import Timed
from riverrun.bench.validate import CHUNK_S, STEPS_MS, AsServed, compared, days, played, quick, simulated
from riverrun.cluster.latency import Formula
from riverrun.cluster.sim.trace import Act, Event, Trace
from riverrun.cluster.sim.truth import Measured, Profile
from riverrun.cluster.slack import Ready
from riverrun.models.synthetic import SyntheticParams

PROFILE = Profile("timed", Measured(STEPS_MS), STEPS_MS[0], CHUNK_S, 4, 0)


def test_what_is_promised_is_checked() -> None:
    service = {"p50": 100.0, "p95": 100.0, "p99": 100.0, "cpr": 0.9}
    rows = compared("day", service, {"p50": 114.0, "p95": 84.0, "p99": 300.0, "cpr": 0.94})
    assert [(row["figure"], row["within"]) for row in rows] == [
        ("p50", True),
        ("p95", False),
        ("p99", None),
        ("cpr", True),
    ]
    assert [row["apart"] for row in rows] == ["+14.0 %", "-16.0 %", "+200.0 %", "+0.040"]


def test_a_timed_step_takes_as_long_as_it_is_told_and_uses_no_processor() -> None:
    model = Timed([30.0, 50.0])
    states = [model.open(SyntheticParams(), seed) for seed in range(2)]
    began, cpu = time.perf_counter(), time.thread_time()
    made = model.step(states)
    assert time.perf_counter() - began >= 0.05
    assert time.thread_time() - cpu < 0.045
    assert [len(chunks) for chunks in made] == [1, 1]


def test_a_day_is_over_sooner_and_a_silence_ends_a_session() -> None:
    acts = [(0, Act.ARRIVE), (0, Act.ACTIVE), (40, Act.IDLE), (60, Act.ACTIVE), (80, Act.LEAVE)]
    short = quick(Trace("t", tuple(Event(float(at), "a", act) for at, act in acts), 100.0), 10.0)
    assert [(e.time_s, e.act) for e in short.events] == [(0.0, Act.ARRIVE), (0.0, Act.ACTIVE), (4.0, Act.LEAVE)]
    assert short.seconds == 10.0


def test_the_days_fit_the_actors() -> None:
    for day in days(30.0, 12):
        assert (day.seconds, 8 <= day.peak_active <= 12) == (30.0, True), day.name
        assert all(0 <= e.time_s <= 30.0 for e in day.events)


def test_a_session_alone_is_played_as_its_steps_and_calls_say() -> None:
    day = Trace("one", (Event(0.0, "a", Act.ARRIVE), Event(0.0, "a", Act.ACTIVE)), 30.0)
    figures = simulated(played(day, PROFILE, 0.0, 1, 0.005))
    period_ms = STEPS_MS[0] + 5
    assert (figures["p50"], figures["p95"]) == pytest.approx((period_ms, period_ms))
    assert figures["cpr"] == 1.0
    assert figures["chunks"] == pytest.approx(30_000 / period_ms, abs=2)


def test_four_on_an_actor_are_more_than_it_keeps_up_with() -> None:
    events = tuple(Event(0.0, f"s{n}", act) for n in range(4) for act in (Act.ARRIVE, Act.ACTIVE))
    figures = simulated(played(Trace("four", events, 60.0), PROFILE, 0.2, 1, 0.002))
    assert 0.6 < figures["cpr"] < 0.98
    assert figures["p50"] > 1000 * CHUNK_S


def test_steps_are_shared_as_actors_share_them() -> None:
    """By what steps were seen to take: three of two, which took hardly less than two alone."""
    policy = AsServed("as served", 4, 1, Formula())
    ready = [Ready(f"s{n}", 1.0, "", 0.0) for n in range(3)]
    late = Ready("late", 0.0, "", 0.0)
    for _ in range(3):  # fewer steps say nothing of how long one takes
        policy.saw(60.0, 1, 60.0)
    assert [len(policy.batch(ready, 60.0)), len(policy.batch([*ready, late], 60.0))] == [3, 1]
    for _ in range(3):
        policy.saw(60.0, 2, 119.0)
    assert len(policy.batch(ready[:2], 60.0)) == 1
