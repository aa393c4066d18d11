"""What the horizon benchmark makes of its samples; the service itself is measured by running it."""

from __future__ import annotations

import pytest

from riverrun.bench.horizon import Plan, Sample, growths, show
from riverrun.bench.service import Memory

MIB = 2**20
NAMES = {10: "ray raylet", 20: "client", 30: "actor synthetic-0", 40: "actor of a later day"}


def samples(plan: Plan, leak: int) -> list[Sample]:
    """The stage gains `leak` bytes a chunk, all others stay; warm-up is steep everywhere."""
    found = []
    for chunk in range(0, plan.chunks, plan.every):
        warm = 100 * MIB * min(chunk, plan.settled) // plan.settled
        stage = Memory(rss=300 * MIB + warm + leak * chunk, own=200 * MIB + warm + leak * chunk)
        steady = Memory(rss=200 * MIB + warm, own=0)
        found.append(Sample(chunk, {10: steady, 20: steady, 30: stage}, keys=5))
    return found


def test_plan_of_a_thousand_chunks() -> None:
    plan = Plan.of(1000, 40)
    assert (plan.settled, plan.window, plan.every) == (300, 100, 5)


@pytest.mark.parametrize("leak", [0, 20_000])
def test_growth_counts_from_the_warm_up_on(leak: int) -> None:
    plan = Plan.of(1000, 40)
    found = growths(samples(plan, leak), NAMES, plan)
    assert [growth.process for growth in found] == ["client", "actor synthetic-0", "ray raylet"]
    assert [growth.ours for growth in found] == [True, True, False]
    stage = found[1]
    settled = 400 * MIB + leak * 347.5  # the median of chunks 300, 305, …, 395
    assert stage.percent == pytest.approx(100 * leak * (947.5 - 347.5) / settled)
    assert stage.settled_mib == pytest.approx(settled / MIB)
    assert found[0].percent == 0


@pytest.mark.parametrize(
    ("holds", "ending"),
    [(True, "stayed the same: yes"), (False, "stayed the same: NO"), (None, "take 1000 or more")],
)
def test_show_ends_with_the_verdict(holds: bool | None, ending: str) -> None:
    row = {"process": "client", "settled_mib": 100.0, "end_mib": 103.0, "percent": 3.0, "own_percent": 4.0}
    figures = {
        "growth": [row],
        "worst_growth_percent": 3.0,
        "keys_min": 7,
        "keys_max": 7,
        "chunk_ms_settled": 12.0,
        "chunk_ms_end": 12.5,
        "holds": holds,
    }
    text = show(figures, Plan.of(100, 40))
    assert "| client  |" in text
    assert "+3.00 %" in text
    assert "store keys after chunk 30: 7 to 7" in text
    assert text.endswith(ending)
