from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from riverrun.kernels.cache import CachePoisoned, CacheSpec, KVCache, calling
from riverrun.kernels.export import Rows
from riverrun.kernels.policies import DiverseKeys, Full, PlannedPolicy, SinkWindow, smallest_total

SPEC = CacheSpec("self", layers=2, heads=2, head_dim=3, keys="raw", page=4, rows=2)


def rows(start: int, new: int, layer: int = 0) -> tuple[Tensor, Tensor]:
    """Keys that tell their stream position and layer; values the negative."""
    k = torch.arange(start, start + new).float().view(1, new, 1, 1).expand(2, new, 2, 3) + 1000 * layer
    return k, -k


def append(cache: KVCache, start: int, new: int) -> None:
    cache.begin(start, new)
    for layer in range(SPEC.layers):
        cache.write(layer, *rows(start, new, layer))
    cache.commit()


def taken(cache: KVCache) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A snapshot that owns its memory."""
    meta, parts = cache.snapshot()
    return meta, {name: part.packed() if isinstance(part, Rows) else part.clone() for name, part in parts.items()}


def positions(cache: KVCache, layer: int = 0) -> list[int]:
    return [int(p) % 1000 for p in cache.slots("k", layer)[0, : cache.lengths[layer], 0, 0]]


@pytest.mark.parametrize("table", [None, [[5, 0, 3], [1, 4, 2]]], ids=["run", "scattered pages"])
def test_sink_and_window(table: list[list[int]] | None) -> None:
    cache = KVCache(SPEC, SinkWindow(12, 3))
    if table:
        cache.table = table
    for start in range(0, 30, 3):
        append(cache, start, 3)
    for layer in range(2):
        assert positions(cache, layer) == [0, 1, 2, *range(21, 30)]
    assert (cache.cursor, cache.lengths, cache.fill) == (30, [12, 12], 1.0)
    cache.begin(27, 3)
    assert torch.equal(cache.keys(1), cache.slots("k", 1))
    assert torch.equal(cache.values(1), -cache.slots("k", 1))


def test_a_long_stream_stays_in_its_first_pool() -> None:
    cache = KVCache(SPEC, SinkWindow(12, 3))
    pools = cache.k.data_ptr(), cache.v.data_ptr()
    for start in range(0, 300, 3):
        append(cache, start, 3)
    assert (cache.k.data_ptr(), cache.v.data_ptr()) == pools
    assert cache.nbytes == 2 * 2 * (2 * 3 * 4) * (2 * 3) * 4  # k and v, rows, slots of two layers, values, float32


@pytest.mark.parametrize("policy", [Full(64), SinkWindow(12, 3)])
def test_snapshot_restores_bit_equal(policy: PlannedPolicy) -> None:
    a, b = KVCache(SPEC, policy), KVCache(SPEC, policy)
    for start in range(0, 21, 3):
        append(a, start, 3)
    b.k.fill_(float("nan"))
    b.v.fill_(float("nan"))
    b.restore(*taken(a))
    for start in range(21, 45, 3):
        append(a, start, 3)
        append(b, start, 3)
    for layer, part in itertools.product(range(2), ("k", "v")):
        filled = slice(0, a.lengths[layer])
        assert torch.equal(a.slots(part, layer)[:, filled], b.slots(part, layer)[:, filled])
    assert (a.cursor, a.lengths) == (b.cursor, b.lengths)


@pytest.mark.parametrize(("blocks", "together"), [(3, False), (4, True), (9, True)])
def test_rows_are_lent_where_they_lie_together(blocks: int, together: bool) -> None:
    cache = KVCache(SPEC, SinkWindow(12, 3))
    for block in range(blocks):
        append(cache, 3 * block, 3)
    for name, pool in (("k", cache.k), ("v", cache.v)):
        part = cache.snapshot()[1][name]
        assert isinstance(part, Rows)
        assert part.shape == part.packed().shape == (2, sum(cache.lengths), 2, 3)
        view = part.together()
        assert (view is not None) == together
        if view is not None:
            assert view.data_ptr() == pool.data_ptr()
            assert torch.equal(view, part.packed())


def test_slots_that_a_snapshot_does_not_fill_are_zeros() -> None:
    """A sink is attended to before it is filled."""
    short, used = KVCache(SPEC, SinkWindow(12, 3)), KVCache(SPEC, SinkWindow(12, 3))
    append(short, 0, 3)
    for block in range(5):
        append(used, 3 * block, 3)
    used.restore(*taken(short))
    for layer, part in itertools.product(range(2), ("k", "v")):
        assert torch.equal(used.slots(part, layer), short.slots(part, layer))


def test_snapshot_of_another_spec_is_refused() -> None:
    cache = KVCache(SPEC, Full(8))
    other = KVCache(CacheSpec("cross", 2, 2, 3, "raw", 4, 2), Full(8))
    with pytest.raises(ValueError, match=r"cross.*self"):
        cache.restore(*taken(other))
    wider = KVCache(SPEC, SinkWindow(12, 3))
    with pytest.raises(ValueError, match=r"SinkWindow\(capacity=12, .*\), this one is Full\(capacity=8"):
        cache.restore(*taken(wider))


def test_a_draft_is_taken_back() -> None:
    cache = KVCache(SPEC, Full(16))
    append(cache, 0, 8)
    cache.truncate(5)
    append(cache, 5, 2)
    assert positions(cache) == list(range(7))
    with pytest.raises(ValueError, match=r"can truncate to 0\.\.7, got 9"):
        cache.truncate(9)


@pytest.mark.parametrize("chosen", [[], [5, 6], [5, 8, 9], [7, 10]])
def test_one_of_several_drafts_is_adopted(chosen: list[int]) -> None:
    cache = KVCache(SPEC, Full(64))
    append(cache, 0, 5)
    append(cache, 5, 6)
    cache.adopt(5, chosen)
    for layer in range(2):
        assert positions(cache, layer) == [0, 1, 2, 3, 4, *chosen]
    assert cache.cursor == 5 + len(chosen)
    append(cache, cache.cursor, 2)
    with pytest.raises(ValueError, match="can truncate to"):
        cache.adopt(-1, [])


def test_the_oldest_rows_are_let_go_between_calls() -> None:
    cache = KVCache(SPEC, Full(16))
    for start, new in ((0, 8), (8, 5)):
        append(cache, start, new)
        cache.trim(new)
    assert (cache.cursor, cache.lengths) == (13, [5, 5])
    cache.trim(9)  # nothing to let go of
    append(cache, 13, 3)
    assert positions(cache) == list(range(8, 16))
    assert positions(cache, 1) == list(range(8, 16))
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        cache.trim(-1)
    cache.begin(16, 1)
    with pytest.raises(CachePoisoned, match="in the middle of a call"):
        cache.trim(0)


def test_heads_may_keep_different_rows_and_layers_different_numbers() -> None:
    cache = KVCache(SPEC, Full(16))
    cache.begin(0, 8)
    for layer in range(2):
        cache.write(layer, *rows(0, 8, layer))
    cache.keep(1, torch.tensor([[0, 2, 7], [1, 2, 3]]))
    assert cache.keys(1)[0, :, :, 0].tolist() == [[1000, 1001], [1002, 1002], [1007, 1003]]
    cache.commit()
    assert (cache.cursor, cache.lengths) == (8, [8, 3])
    append(cache, 8, 2)
    assert (cache.cursor, cache.lengths) == (10, [10, 5])
    assert positions(cache, 0) == list(range(10))
    assert positions(cache, 1) == [0, 2, 7, 8, 9]  # of head 0


def test_a_failed_append_leaves_no_trace() -> None:
    cache = KVCache(SPEC, SinkWindow(12, 3))
    append(cache, 0, 3)
    cache.begin(3, 3)
    cache.write(0, *rows(100, 3))
    cache.rollback()
    append(cache, 3, 3)
    assert positions(cache) == list(range(6))


def test_a_failed_overwrite_poisons() -> None:
    cache = KVCache(SPEC, SinkWindow(12, 3))
    for start in range(0, 15, 3):
        append(cache, start, 3)
    cache.begin(15, 3)  # evicts
    cache.rollback()
    with pytest.raises(CachePoisoned):
        cache.begin(15, 3)
    with pytest.raises(CachePoisoned):
        cache.snapshot()


POOLED = CacheSpec("global", layers=3, heads=2, head_dim=4, keys="rotated", page=4)
FRAME = 6


class PooledStream:
    """A cache under DiverseKeys, with what is in it kept beside in plain lists."""

    def __init__(self, total: int) -> None:
        self.policy = DiverseKeys(total, POOLED.layers, FRAME)
        self.cache = KVCache(POOLED, self.policy)
        self.scores = torch.zeros(POOLED.layers)
        self.mirror = [torch.empty(1, 0, 2, 4) for _ in range(POOLED.layers)]
        self.draw = torch.Generator().manual_seed(0)

    def frame(self) -> None:
        policy = self.policy
        budgets = policy.budgets(self.scores)
        with calling([self.cache], [self.cache.cursor], FRAME):
            for layer, budget in enumerate(budgets):
                k = torch.randn(1, FRAME, 2, 4, generator=self.draw) + layer  # layers differ in likeness
                self.cache.write(layer, k, -k)
                self.mirror[layer] = torch.cat([self.mirror[layer], k], dim=1)
                if (found := policy.select(self.cache.keys(layer), budget)) is not None:
                    slots, self.scores[layer] = found
                    self.cache.keep(layer, slots)
                    index = slots.transpose(1, 2)[..., None].expand(-1, -1, -1, 4)
                    self.mirror[layer] = self.mirror[layer].gather(1, index)
                assert torch.equal(self.cache.keys(layer), self.mirror[layer])
                assert torch.equal(self.cache.values(layer), -self.mirror[layer])


def test_pages_move_between_layers_and_the_pool_stays() -> None:
    stream = PooledStream(total=smallest_total(3, FRAME))
    seen, held = set(), stream.cache.nbytes
    for _ in range(60):
        stream.frame()
        assert sum(stream.cache.lengths) <= stream.policy.total
        owned = [page for pages in stream.cache.table for page in pages]
        assert len(set(owned)) == len(owned)
        seen.add(tuple(stream.cache.lengths))
    assert stream.cache.nbytes == held == 2 * 4 * 2 * 4 * 4 * (-(-stream.policy.pool // 4) + 3)
    assert len(seen) > 5
    assert 0 < stream.cache.fill < 1


def test_a_pooled_cache_is_restored_bit_equal() -> None:
    a, b = PooledStream(total=120), PooledStream(total=120)
    for _ in range(12):
        a.frame()
        b.frame()
    b.cache.k.fill_(float("nan"))
    b.cache.table = [[0], [], [1]]
    b.cache.restore(*taken(a.cache))
    for _ in range(12):
        a.frame()
        b.frame()
    assert a.cache.lengths == b.cache.lengths


def test_pages_of_a_failed_append_are_given_back() -> None:
    stream = PooledStream(total=10_000)
    stream.frame()
    before = [list(pages) for pages in stream.cache.table]
    stream.cache.begin(FRAME, FRAME)
    stream.cache.write(0, torch.zeros(1, FRAME, 2, 4), torch.zeros(1, FRAME, 2, 4))
    assert stream.cache.table != before
    stream.cache.rollback()
    assert stream.cache.table == before
    stream.frame()


def test_rows_of_a_batch_keep_their_own() -> None:
    cache = KVCache(SPEC, Full(16))
    cache.begin(0, 4)
    cache.write(0, *rows(0, 4))
    cache.keep(0, torch.tensor([[[0, 1], [0, 2]], [[1, 3], [2, 3]]]))
    assert cache.keys(0)[:, :, :, 0].tolist() == [[[0, 0], [1, 2]], [[1, 2], [3, 3]]]
