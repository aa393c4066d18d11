"""A table: what each planned policy does. A new policy adds rows."""

from __future__ import annotations

import pytest
import torch

from riverrun.kernels.policies import (
    DiverseKeys,
    Full,
    PastQueue,
    Plan,
    PlannedPolicy,
    SinkWindow,
    adaptive_budgets,
    diverse_rows,
    smallest_total,
)

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
    (PastQueue(5, 3), (4, 4, 4, 3), {}, Plan(7, 7, 4, ((0, 7),))),
    (PastQueue(5, 3), (7, 7, 7, 3), {}, Plan(8, 10, 5, ((0, 8),), evict=2)),
    (PastQueue(5, 3), (10, 8, 7, 3), {}, Plan(8, 10, 5, ((0, 8),))),  # later steps of the same chunk
    (PastQueue(5, 3), (10, 8, 10, 1), {}, Plan(6, 11, 5, ((0, 6),), evict=3)),  # a short chunk sees no more past
    (PastQueue(5, 3), (0, 0, 0, 8), {}, Plan(8, 8, 0, ((0, 8),))),
    (Full(9), (6, 6, 6, 3), {}, Plan(9, 9, 6, ((0, 9),))),
    (Full(9), (6, 6, 4, 2), {}, Plan(6, 6, 4, ((0, 6),))),
    (Full(9, window=4), (6, 6, 6, 3), {}, Plan(9, 9, 6, ((5, 9),))),
    (Full(9, window=4, sink=2), (6, 6, 6, 3), {}, Plan(9, 9, 6, ((0, 2), (7, 9)))),
    (DiverseKeys(40, 2, 5), (50, 12, 50, 5), {}, Plan(17, 55, 12, ((0, 17),))),
]


@pytest.mark.parametrize(("policy", "call", "options", "expected"), TABLE)
def test_plan(policy: PlannedPolicy, call: tuple[int, int, int, int], options: dict, expected: Plan) -> None:
    assert policy.plan(*call, **options) == expected


@pytest.mark.parametrize(
    ("policy", "call", "message"),
    [
        (Full(9), (8, 8, 8, 2), "cache is full: 10 slots wanted, capacity 9"),
        (PastQueue(5, 3), (6, 6, 6, 4), "4 new slots do not fit a queue of 5 past and 3 new"),
        (W, (12, 12, 12, 10), "10 new slots do not fit beside a sink of 3 in 12"),
        (W, (3, 3, 6, 3), "next position is 3, got 6"),
        (W, (30, 12, 17, 12), "below 18 are no longer in the cache, got 17"),
        (W, (3, 3, 3, 0), "at least one row"),
        (DiverseKeys(40, 2, 5), (50, 12, 45, 5), "5 at a time and are never overwritten, got 5 at 45"),
    ],
)
def test_refused(policy: PlannedPolicy, call: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy.plan(*call)


def test_a_window_of_sink_alone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sink must lie in 0\.\.11"):
        SinkWindow(12, 12)


def test_budgets_go_to_the_layers_that_differ_most() -> None:
    alike = torch.tensor([0.1, 0.5, 0.9])
    few, many, most = sorted(adaptive_budgets(alike, 1000))
    assert adaptive_budgets(alike, 1000) == [most, many, few]
    assert 998 <= few + many + most <= 1000
    assert adaptive_budgets(alike, -5) == [0, 0, 0]


@pytest.mark.parametrize("layers", [1, 3, 24])
@pytest.mark.parametrize("frame", [5, 11, 1041])
def test_the_smallest_total_holds_the_anchors_whatever_the_scores(layers: int, frame: int) -> None:
    worst = torch.zeros(layers)
    worst[0] = 1
    total = smallest_total(layers, frame)
    assert min(adaptive_budgets(worst, total)) == frame
    assert min(adaptive_budgets(worst, total - 1)) < frame
    keys = torch.randn(1, 3 * frame, 2, 4)
    with pytest.raises(ValueError, match=f"its anchors are {frame}: total must be {total}"):
        DiverseKeys(total, layers, frame).select(keys, frame - 1)


def test_the_rows_most_like_the_others_go() -> None:
    keys = torch.eye(4)[[0, 1, 0, 0, 2, 3]].view(1, 6, 1, 4)  # behind one anchor: 1, 0, 0, 2, 3
    slots, likeness = diverse_rows(keys, anchors=1, budget=4)
    assert slots.tolist() == [[[0, 1, 4, 5]]]
    torch.testing.assert_close(likeness[0, 0], torch.tensor([0.2, 0.4, 0.4, 0.2, 0.2]))
    assert DiverseKeys(100, 2, 1).select(keys, 6) is None
