from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from riverrun.kernels.cache import CachePoisoned, CacheSpec, KVCache
from riverrun.kernels.policies import Full, PlannedPolicy, SinkWindow

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
    b.restore(*a.snapshot())
    for start in range(21, 45, 3):
        append(a, start, 3)
        append(b, start, 3)
    for layer, part in itertools.product(range(2), ("k", "v")):
        filled = slice(0, a.lengths[layer])
        assert torch.equal(a.slots(part, layer)[:, filled], b.slots(part, layer)[:, filled])
    assert (a.cursor, a.lengths) == (b.cursor, b.lengths)


def test_snapshot_of_another_spec_is_refused() -> None:
    cache = KVCache(SPEC, Full(8))
    other = KVCache(CacheSpec("cross", 2, 2, 3, "raw", 4, 2), Full(8))
    with pytest.raises(ValueError, match=r"cross.*self"):
        cache.restore(*other.snapshot())
    wider = KVCache(SPEC, SinkWindow(12, 3))
    with pytest.raises(ValueError, match=r"SinkWindow\(capacity=12, sink=3\), this one is Full\(capacity=8"):
        cache.restore(*wider.snapshot())


def test_a_draft_is_taken_back() -> None:
    cache = KVCache(SPEC, Full(16))
    append(cache, 0, 8)
    cache.truncate(5)
    append(cache, 5, 2)
    assert positions(cache) == list(range(7))
    with pytest.raises(ValueError, match=r"can truncate to 0\.\.7, got 9"):
        cache.truncate(9)


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
