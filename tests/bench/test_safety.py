"""What the benchmark of checkpoints counts; times are whatever they are."""

from __future__ import annotations

import pytest

from riverrun.bench.safety import SETTINGS, Copy, Plan, Turn, compared, show


def turn(fps: float, sent: float = 10.0, blobs: float = 0.0) -> Turn:
    return Turn(fps, 4000 / fps, sent, blobs, 6e6 if blobs else 0.0, 1500.0 if blobs else 0.0)


def test_a_setting_is_compared_round_by_round() -> None:
    """The machine halves its speed after the first round; the ratios don't."""
    off = [turn(fps) for fps in (100.0, 50.0, 50.0, 50.0)]
    found = compared("x", "exact", [turn(fps, 60.0, 0.5) for fps in (90.0, 45.0, 45.0, 45.0)], off)
    assert (found.ratio, found.low, found.high) == pytest.approx((0.9, 0.9, 0.9))
    assert (found.rounds, found.fps) == (4, 45.0)
    assert found.more_ms == pytest.approx(4000 / 45 - 4000 / 50)
    assert (found.sent, found.sent_blob) == (60.0, 100.0)


def test_one_bad_round_of_five_changes_nothing() -> None:
    off = [turn(100.0)] * 5
    found = compared("x", "exact", [turn(fps, 60.0, 0.5) for fps in (90.0, 90.0, 7.0, 90.0, 90.0)], off)
    assert (found.ratio, found.low) == pytest.approx((0.9, 0.9))


def test_every_setting_has_its_line() -> None:
    off = [turn(100.0), turn(100.0)]
    cases = Plan().cases
    assert [len(case.settings) for case in cases] == [len(SETTINGS) - 1, len(SETTINGS)]
    assert all(case.chunks > 32 for case in cases), "one checkpoint at least of every 32"
    lines = show([compared("x", name, off, off) for name in SETTINGS], [Copy("x", "exact", 5, 1.0, 2.0)])
    assert all(name in lines for name in SETTINGS)
