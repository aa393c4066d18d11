"""What the benchmark of moves counts; times are whatever they are."""

from __future__ import annotations

import pytest

from riverrun.bench.migration import Figure, Plan, pauses, show, spans_of


def test_a_pause_is_what_the_longest_gap_of_a_move_is_longer_than_the_others() -> None:
    arrivals = [0.0, 1.0, 2.0, 5.0, 6.0, 7.0, 8.5, 9.5]
    gap, longer = pauses(arrivals, [(2.2, 4.0), (7.1, 7.2)])
    assert gap == 1.0
    assert longer == pytest.approx([2.0, 0.5])


def test_a_move_over_several_chunks_counts_its_longest_gap() -> None:
    assert pauses([0.0, 1.0, 2.0, 3.0, 4.5, 5.5, 6.5], [(1.5, 4.0)]) == (1.0, [0.5])


def test_goals() -> None:
    assert Figure("tiny", 1, 50.0, 10.0, 20.0, 0.0, 60.0).goal == 100.0
    large = Figure("large", 1, 50.0, 10.0, 20.0, 400.0, 60.0)
    assert large.goal == 850.0
    assert "large" in show([large])
    assert [case.nbytes for case in Plan().cases] == [0, 1_000_000, 256_000_000, 1_000_000_000]


def test_parts_of_a_move_are_read_off_the_log() -> None:
    line = "I 12:00 migration session s: stage a moved to {}: prepare {} ms, step in hand 3.0 ms, copied out 2.5 ms\n"
    moves = [line.format(f"pair-{i}", ms) for i, ms in enumerate((99.0, 1.0, 5.5, 2.0))]
    log = "something else took 7.0 ms\n".join(moves)
    assert spans_of(log) == {"prepare": 2.0, "step in hand": 3.0, "copied out": 2.5}
    assert spans_of("") == {}
