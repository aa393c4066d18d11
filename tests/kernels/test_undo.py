"""A cache goes back to a mark bit for bit, whatever was done to it since, and keeps no more than it must for that."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch

from riverrun.kernels.cache import CachePoisoned, CacheSpec, KVCache
from riverrun.kernels.policies import Full, SinkWindow, smallest_total
from riverrun.kernels.retain import RetainingHeads, ScoredCache
from riverrun.tests.kernels.test_cache import FRAME, SPEC, PooledStream, append, rows, taken

BLOCK, SINK, WINDOW = 3, 3, 12


def stream(blocks: int, table: list[list[int]] | None = None) -> KVCache:
    cache = KVCache(SPEC, SinkWindow(WINDOW, SINK))
    if table:
        cache.table = [list(pages) for pages in table]
    for n in range(blocks):
        append(cache, BLOCK * n, BLOCK)
    return cache


def step(cache: KVCache) -> None:
    """A block as a sampler makes it: appended, then overwritten by each later pass."""
    start = cache.cursor
    for times in (1, 2, 3):
        cache.begin(start, BLOCK)
        for layer in range(SPEC.layers):
            k, v = rows(start, BLOCK, layer)
            cache.write(layer, times * k, times * v)
        cache.commit()


def recache(cache: KVCache, rewrite_sink: bool) -> None:
    """The whole window anew, as at a prompt switch."""
    count = min(cache.lengths)
    cache.begin(cache.cursor - count, count, rewrite_sink=rewrite_sink)
    for layer in range(SPEC.layers):
        cache.write(layer, *rows(500, count, layer))
    cache.commit()


def fail(cache: KVCache) -> None:
    cache.begin(cache.cursor, BLOCK)
    cache.write(0, *rows(900, BLOCK))
    cache.rollback()


DEEDS: dict[str, Callable[[KVCache], None]] = {
    "a block": step,
    "two blocks": lambda cache: (step(cache), step(cache)),
    "a failure": fail,
    "a switch and a block": lambda cache: (recache(cache, False), step(cache)),
    "a switch that rewrites the sink": lambda cache: (recache(cache, True), step(cache)),
    "everything cleared": lambda cache: (cache.clear(), recache(cache, True), step(cache), fail(cache)),
    "the oldest let go": lambda cache: (cache.trim(2), step(cache)),
    "another draft taken": lambda cache: (cache.adopt(cache.cursor - 2, [cache.cursor - 1]), fail(cache)),
}


@pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)
@pytest.mark.parametrize("blocks", [0, 1, 3, 4, 9])
@pytest.mark.parametrize("table", [None, [[5, 0, 3], [1, 4, 2]]], ids=["run", "scattered pages"])
def test_it_is_as_before(deed: Callable[[KVCache], None], blocks: int, table: list[list[int]] | None) -> None:
    if blocks == 0 and deed not in (step, fail):
        return
    cache, twin = stream(blocks, table), stream(blocks, table)
    mark = cache.mark()
    for _ in range(2):  # a mark serves again
        deed(cache)
        cache.rewind(mark)
        assert_equal(cache, twin)
    for one in (cache, twin):
        step(one)
    assert_equal(cache, twin)


def assert_equal(a: KVCache, b: KVCache) -> None:
    (meta, tensors), (other, others) = taken(a), taken(b)
    assert meta == other
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    assert a.table == b.table
    for layer in range(SPEC.layers):
        assert torch.equal(a.slots("k", layer)[:, :SINK], b.slots("k", layer)[:, :SINK]), "seen before it is filled"


def test_a_block_of_a_full_window_keeps_one_block() -> None:
    cache = stream(9)
    row = SPEC.rows * SPEC.heads * SPEC.head_dim * 4 * 2 * SPEC.layers
    mark = cache.mark()
    assert mark.nbytes == 0
    step(cache)
    assert mark.nbytes == BLOCK * row
    cache.rewind(mark)
    assert mark.nbytes == 0
    recache(cache, rewrite_sink=False)
    step(cache)
    assert mark.nbytes == (WINDOW - SINK) * row, "a copy of it all, for once"
    appended = stream(2)
    mark = appended.mark()
    step(appended)
    assert mark.nbytes == 0


def test_a_mark_let_go_of_keeps_nothing_more() -> None:
    cache = stream(9)
    mark = cache.mark()
    step(cache)
    kept = mark.kept
    del mark
    gc.collect()
    step(cache)
    assert len(kept) == SPEC.layers
    fail(cache)
    with pytest.raises(CachePoisoned):
        step(cache)


def test_pages_that_moved_between_layers_come_back() -> None:
    total = smallest_total(3, FRAME)
    one, twin = PooledStream(total), PooledStream(total)
    row = one.cache.nbytes // (one.cache.k.shape[0] * one.cache.k.shape[1])
    for n in range(20):
        mark, mirror = one.cache.mark(), list(one.mirror)
        draw, scores, before = one.draw.get_state(), one.scores.clone(), sum(one.cache.lengths)
        one.frame()
        dropped = before + 3 * FRAME - sum(one.cache.lengths)
        assert mark.nbytes == dropped * row, "what was not chosen, and no more"
        one.frame()
        one.cache.rewind(mark)
        assert one.cache.table == twin.cache.table
        assert one.cache.lengths == twin.cache.lengths
        for name, tensor in taken(one.cache)[1].items():
            assert torch.equal(tensor, taken(twin.cache)[1][name]), n
        one.mirror, one.scores = mirror, scores
        one.draw.set_state(draw)
        one.frame()
        twin.frame()


def test_scores_go_back_with_their_rows() -> None:
    spec = CacheSpec("text", layers=1, heads=2, head_dim=3, keys="raw", page=4)
    cache = ScoredCache(spec, RetainingHeads(16, budget=4))

    def grow(new: int) -> None:
        draw = torch.Generator().manual_seed(cache.cursor)
        cache.begin(cache.cursor, new)
        cache.write(0, *(torch.randn(1, new, 2, 3, generator=draw) for _ in "kv"))
        cache.score(0, torch.randn(new, 2, generator=draw))
        cache.commit()

    grow(9)
    before = taken(cache)
    mark = cache.mark()
    cache.prune(is_final=False)
    grow(5)
    cache.rewind(mark)
    after = taken(cache)
    assert before[0] == after[0]
    assert all(torch.equal(tensor, after[1][name]) for name, tensor in before[1].items())


def test_a_full_cache_needs_no_more_than_its_drafts() -> None:
    cache = KVCache(SPEC, Full(16))
    append(cache, 0, 5)
    mark = cache.mark()
    append(cache, 5, 6)
    cache.truncate(7)
    append(cache, 7, 2)
    assert mark.nbytes == 0
    cache.rewind(mark)
    assert (cache.cursor, cache.lengths) == (5, [5, 5])
