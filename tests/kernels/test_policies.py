"""A table: what each planned policy does. A new policy adds rows."""

from __future__ import annotations

import pytest

from riverrun.kernels.policies import Full, Plan, PlannedPolicy, SinkWindow

W = SinkWindow(capacity=12, sink=3)

TABLE = [
    # policy, (cursor, length, start, new), options, expected
    (W, (0, 0, 0, 3), {}, Plan(3, 3, 0, ((0, 3),), keep=3)),
    (W, (3, 3, 0, 3), {}, Plan(3, 3, 0, ((0, 3),), keep=3)),  # later steps of block 0 write the sink
    (W, (3, 3, 3, 3), {}, Plan(6, 6, 3, ((0, 6),), keep=3)),
    (W, (12, 12, 12, 3), {}, Plan(12, 15, 9, ((0, 12),), keep=3, evict=3)),
    (W, (15, 12, 12, 3), {}, Plan(12, 15, 9, ((0, 12),), keep=3)),  # overwrite in place, no second roll
    (W, (30, 12, 18, 12), {}, Plan(12, 30, 3, ((0, 12),), skip=3, keep=3)),  # recache leaves the sink
    (W, (30, 12, 18, 12), {"rewrite_sink": True}, Plan(12, 30, 0, ((0, 12),), keep=3)),
    (SinkWindow(7, 1), (6, 6, 6, 2), {}, Plan(7, 8, 5, ((0, 7),), keep=1, evict=1)),  # only what is needed goes
    (SinkWindow(6, 0), (6, 6, 6, 3), {}, Plan(6, 9, 3, ((0, 6),), evict=3)),  # previous chunk + this one
    (Full(9), (6, 6, 6, 3), {}, Plan(9, 9, 6, ((0, 9),))),
    (Full(9), (6, 6, 4, 2), {}, Plan(6, 6, 4, ((0, 6),))),
    (Full(9, window=4), (6, 6, 6, 3), {}, Plan(9, 9, 6, ((5, 9),))),
    (Full(9, window=4, sink=2), (6, 6, 6, 3), {}, Plan(9, 9, 6, ((0, 2), (7, 9)))),
]


@pytest.mark.parametrize(("policy", "call", "options", "expected"), TABLE)
def test_plan(policy: PlannedPolicy, call: tuple[int, int, int, int], options: dict, expected: Plan) -> None:
    assert policy.plan(*call, **options) == expected


@pytest.mark.parametrize(
    ("policy", "call", "message"),
    [
        (Full(9), (8, 8, 8, 2), "cache is full: 10 slots wanted, capacity 9"),
        (W, (12, 12, 12, 10), "10 new slots do not fit beside a sink of 3 in 12"),
        (W, (3, 3, 6, 3), "next position is 3, got 6"),
        (W, (30, 12, 17, 12), "below 18 are no longer in the cache, got 17"),
        (W, (3, 3, 3, 0), "at least one row"),
    ],
)
def test_refused(policy: PlannedPolicy, call: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy.plan(*call)


def test_a_window_of_sink_alone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sink must lie in 0\.\.11"):
        SinkWindow(12, 12)
