from __future__ import annotations

import pytest
import torch
from torch import Tensor

from riverrun.kernels.cache import CachePoisoned, CacheSpec, calling
from riverrun.kernels.retain import RetainingHeads, ScoredCache, best_rows
from riverrun.tests.kernels.test_cache import taken

SPEC = CacheSpec("text", layers=2, heads=2, head_dim=3, keys="raw", page=4)
INF = float("inf")


@pytest.mark.parametrize(
    ("scores", "budget", "protected", "kept"),
    [
        ([3.0, 1.0, 2.0, 0.0], 2, 0, [0, 2]),
        ([3.0, 1.0, 2.0, 0.0], 2, 1, [0, 3]),  # the newest stays whatever its score
        ([3.0, 1.0, 2.0, 0.0], 2, 2, [2, 3]),
        ([1.0, 1.0, 1.0, 1.0], 3, 0, [1, 2, 3]),  # of equal scores the newer stays
        ([1.0, 2.0, 1.0, 1.0], 2, 0, [1, 3]),
        ([INF, -INF, 0.0, -1.0], 3, 1, [0, 2, 3]),
        ([1.0, 2.0], 4, 1, [0, 1]),  # fewer than the budget
        ([1.0, 2.0, 3.0], 1, 0, [2]),
    ],
)
def test_best_rows(scores: list[float], budget: int, protected: int, kept: list[int]) -> None:
    assert best_rows(torch.tensor(scores)[:, None], budget, protected).tolist() == [kept]


def test_heads_choose_for_themselves_and_scores_are_untouched() -> None:
    scores = torch.tensor([[3.0, 0.0], [1.0, 2.0], [0.0, 1.0]])
    before = scores.clone()
    assert best_rows(scores, 2, 1).tolist() == [[0, 2], [1, 2]]
    assert torch.equal(scores, before)


def test_ties_of_half_precision() -> None:
    scores = torch.tensor([1.0, 1.001, 1.002, 0.5]).to(torch.bfloat16)[:, None]  # the first three are equal
    assert best_rows(scores, 2).tolist() == [[1, 2]]


@pytest.mark.parametrize(("budget", "stabilisers"), [(0, 0), (9, 0), (4, 5), (4, -1)])
def test_what_can_not_hold_is_refused(budget: int, stabilisers: int) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        RetainingHeads(8, budget, stabilisers)


def rows(positions: range, layer: int) -> Tensor:
    return torch.tensor([100.0 * layer + p for p in positions]).view(1, -1, 1, 1).expand(1, -1, 2, 3)


def append(cache: ScoredCache, scores: Tensor) -> None:
    """scores [new, heads]; the second layer's are their negatives."""
    start = cache.cursor
    with calling([cache], [start], len(scores)):
        for layer in range(2):
            k = rows(range(start, start + len(scores)), layer)
            cache.write(layer, k, -k)
            cache.score(layer, scores if layer == 0 else -scores)


def held(cache: ScoredCache, layer: int, head: int) -> list[int]:
    return (cache.slots("k", layer)[0, : cache.lengths[layer], head, 0].long() % 100).tolist()


@pytest.fixture
def cache() -> ScoredCache:
    cache = ScoredCache(SPEC, RetainingHeads(9, 3, 1))
    append(cache, torch.tensor([[5.0, 1.0], [4.0, 2.0], [3.0, 3.0], [2.0, 4.0], [1.0, 5.0]]))
    return cache


def test_prune_moves_rows_and_their_scores(cache: ScoredCache) -> None:
    kept = cache.prune(is_final=False)
    assert kept[0].tolist() == [[0, 1, 4], [2, 3, 4]]
    assert kept[1].tolist() == [[2, 3, 4], [0, 1, 4]]
    assert held(cache, 0, 0) == [0, 1, 4]
    assert held(cache, 0, 1) == [2, 3, 4]
    assert cache.held(0).t().tolist() == [[5, 4, 1], [3, 4, 5]]
    assert (cache.cursor, cache.lengths) == (5, [3, 3])
    assert torch.equal(cache.slots("v", 1)[:, :3], -cache.slots("k", 1)[:, :3])
    append(cache, torch.tensor([[0.0, 6.0]]))
    cache.prune(is_final=True)
    assert held(cache, 0, 0) == [0, 1, 4]
    assert held(cache, 0, 1) == [3, 4, 5]


def test_drafts_leave_with_their_scores(cache: ScoredCache) -> None:
    cache.prune(is_final=False)
    append(cache, torch.tensor([[7.0, 7.0], [8.0, 8.0], [9.0, 9.0], [10.0, 10.0]]))
    cache.adopt(6, [7, 8])  # positions 6 and 7, by the second candidate
    assert (cache.cursor, cache.lengths) == (8, [6, 6])
    assert held(cache, 0, 0) == [0, 1, 4, 5, 7, 8]
    assert cache.held(0)[:, 0].tolist() == [5, 4, 1, 7, 9, 10]
    cache.truncate(6)
    assert cache.held(1)[:, 1].tolist() == [-1, -2, -5, -7]


def test_snapshot_restores_rows_and_scores(cache: ScoredCache) -> None:
    cache.prune(is_final=False)
    meta, tensors = taken(cache)
    twin = ScoredCache(SPEC, RetainingHeads(9, 3, 1))
    twin.scores.fill_(77)
    twin.restore(meta, tensors)
    for each in (cache, twin):
        append(each, torch.tensor([[4.5, 0.0], [0.0, 4.5]]))
        each.prune(is_final=True)
    for layer in range(2):
        assert torch.equal(cache.held(layer), twin.held(layer))
        assert torch.equal(cache.slots("k", layer)[:, :3], twin.slots("k", layer)[:, :3])
    with pytest.raises(ValueError, match="snapshot is of RetainingHeads"):
        ScoredCache(SPEC, RetainingHeads(9, 3, 2)).restore(meta, tensors)


def test_positions_of_rows_long_gone_are_forgotten(cache: ScoredCache) -> None:
    cache.prune(is_final=False)
    with pytest.raises(ValueError, match=r"can forget 0..2 positions, got 3"):
        cache.forget(3)
    cache.forget(2)
    append(cache, torch.zeros(1, 2))
    assert (cache.cursor, cache.lengths) == (4, [4, 4])


def test_a_prune_that_fails_poisons(cache: ScoredCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(RetainingHeads, "select", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        cache.prune(is_final=False)
    assert cache.is_poisoned
    for use in (cache.snapshot, lambda: cache.begin(5, 1), lambda: cache.prune(is_final=True)):
        with pytest.raises(CachePoisoned):
            use()


def test_scores_have_one_row() -> None:
    with pytest.raises(ValueError, match="has one row, got 2"):
        ScoredCache(CacheSpec("x", 1, 1, 2, "raw", 4, rows=2), RetainingHeads(4, 2))
