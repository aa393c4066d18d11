"""Which rows of a cache stay. Pure decisions; moving the rows is `kernels/cache.py`'s business.

A *planned* policy decides once a chunk, for all layers, from the cursor and the length alone. One that decides *by
content* appends, and is asked for the rows to keep once a layer's new keys are there. All counts are in slots (tokens;
frames where a row is a frame). cursor: slots ever committed. length: slots filled now.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """What one call does to every layer of a cache.

    evict: rows [keep, keep + evict) go, the later ones move down to `keep`. write: first slot written with the new
    rows from `skip` on. length: slots filled while the call runs. attend: the ranges of slots its queries see.
    cursor: the cursor once the call is committed.
    """

    length: int
    cursor: int
    write: int
    attend: tuple[tuple[int, int], ...]
    skip: int = 0
    keep: int = 0
    evict: int = 0


class PlannedPolicy(Protocol):
    """Decides from cursor and length alone."""

    @property
    def capacity(self) -> int:
        """Slots a layer can hold."""

    def plan(self, cursor: int, length: int, start: int, new: int, rewrite_sink: bool = False) -> Plan:
        """For `new` rows at stream positions [start, start + new).

        start == cursor appends; start < cursor overwrites what is there (later denoise steps, recache, drafts).
        rewrite_sink: an overwriting call may write the sink too.
        """


@runtime_checkable
class PooledPolicy(PlannedPolicy, Protocol):
    """Layers share one pool: their lengths differ and move from one to another."""

    @property
    def pool(self) -> int:
        """The most slots that all layers together fill at any moment of a call."""


@dataclass(frozen=True)
class Full:
    """Keeps everything; full is an error, never a silent drop.

    window: if set, a call sees only the first `sink` and the last `window - sink` slots (LongLive with
    local_attn_size -1 attends to its last 32,760 tokens).
    """

    capacity: int
    window: int | None = None
    sink: int = 0

    def plan(self, cursor: int, length: int, start: int, new: int, rewrite_sink: bool = False) -> Plan:
        _check(cursor, length, start, new)
        stop = length + start + new - cursor
        if stop > self.capacity:
            raise ValueError(f"cache is full: {stop} slots wanted, capacity {self.capacity}")
        first = stop - new
        again = start > 0 and start + new <= cursor
        write = max(first, self.sink) if again and not rewrite_sink else first
        return Plan(stop, max(cursor, start + new), write, self._visible(stop), skip=min(write - first, new))

    def _visible(self, stop: int) -> tuple[tuple[int, int], ...]:
        if self.window is None or stop <= self.window:
            return ((0, max(stop, self.sink)),)
        tail = (stop - (self.window - self.sink), stop)
        return ((0, self.sink), tail) if self.sink else (tail,)


@dataclass(frozen=True)
class SinkWindow:
    """The first `sink` slots and the newest ones, `capacity` in all, the current chunk included (longlive.md §4).

    Appending beyond capacity evicts the oldest slots behind the sink, just as many as are needed. Overwriting never
    touches the sink, unless the stream is at its start or `rewrite_sink` is given (LongLive's global_sink false).

    sees_unfilled: a sink not yet filled is seen as zeros (longlive.md §15.3, the official code's quirk).
    """

    capacity: int
    sink: int = 0
    sees_unfilled: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.sink < self.capacity:
            raise ValueError(f"sink must lie in 0..{self.capacity - 1} (capacity {self.capacity}), got {self.sink}")

    def plan(self, cursor: int, length: int, start: int, new: int, rewrite_sink: bool = False) -> Plan:
        _check(cursor, length, start, new)
        end = start + new
        if end > cursor and new > self.capacity - self.sink and length + new > self.capacity:
            raise ValueError(f"{new} new slots do not fit beside a sink of {self.sink} in {self.capacity}")
        evict = max(0, length + new - self.capacity) if end > cursor else 0
        stop = length + end - cursor - evict
        first = stop - new
        again = start > 0 and end <= cursor  # block 0 has start 0: it writes the sink each time, so the sink is clean
        write = max(first, self.sink) if again and not rewrite_sink else first
        attend = ((0, max(stop, self.sink if self.sees_unfilled else 0)),)
        skip = min(write - first, new)
        return Plan(stop, max(cursor, end), write, attend, skip, keep=self.sink, evict=evict)


@dataclass(frozen=True)
class PastQueue:
    """The newest `past` slots before the current call, and up to `new` of the call's own (ca2vdm.md §4).

    Unlike a window over both, a call shorter than `new` sees no more of the past. Appending evicts the oldest slots
    beyond `past`; overwriting moves nothing.
    """

    past: int
    new: int

    def __post_init__(self) -> None:
        if self.past < 1 or self.new < 1:
            raise ValueError(f"a queue holds at least one past and one new slot, got {self.past} and {self.new}")

    @property
    def capacity(self) -> int:
        return self.past + self.new

    def plan(self, cursor: int, length: int, start: int, new: int, rewrite_sink: bool = False) -> Plan:
        _check(cursor, length, start, new)
        end = start + new
        evict = max(0, length - self.past) if start == cursor else 0
        stop = length + end - cursor - evict
        if stop > self.capacity:
            raise ValueError(f"{new} new slots do not fit a queue of {self.past} past and {self.new} new ones")
        return Plan(stop, max(cursor, end), stop - new, ((0, stop),), evict=evict)


@dataclass(frozen=True)
class DiverseKeys:
    """Keeps the first call's rows for ever, and of the others those least like the rest (infinitevggt.md §5).

    total: rows a head may hold over all `layers`, shared out anew each call: layers whose keys are more alike get
    fewer. frame: rows a call brings. Rows are chosen before attention, the new ones among them.
    """

    total: int
    layers: int
    frame: int

    @property
    def capacity(self) -> int:
        return self.pool

    @property
    def pool(self) -> int:
        return self.total + self.layers * self.frame  # a layer is over its budget until its turn in the call comes

    def plan(self, cursor: int, length: int, start: int, new: int, rewrite_sink: bool = False) -> Plan:
        _check(cursor, length, start, new)
        if start != cursor or new != self.frame:
            raise ValueError(f"rows come {self.frame} at a time and are never overwritten, got {new} at {start}")
        return Plan(length + new, cursor + new, length, ((0, length + new),))

    def budgets(self, scores: Tensor) -> list[int]:
        """Rows a head that each layer may keep, from its last score (`scores` float32 [layers], 0: never pruned)."""
        return adaptive_budgets(scores, self.total)

    def select(self, keys: Tensor, budget: int) -> tuple[Tensor, Tensor] | None:
        """None if `keys` [rows, N, heads, D] are within the budget, else (slots, score) as `diverse_rows` gives them.

        Raises ValueError if the budget does not even hold the first call's rows.
        """
        if keys.shape[1] <= budget:
            return None
        if budget < self.frame:
            least = smallest_total(self.layers, self.frame)
            raise ValueError(f"a layer may keep {budget} rows, its anchors are {self.frame}: total must be {least}")
        kept, scores = diverse_rows(keys, self.frame, budget)
        return kept, scores.mean()


TEMPERATURE = 0.5
"""Of the softmax that shares out the rows."""


def adaptive_budgets(scores: Tensor, total: int, temperature: float = TEMPERATURE) -> list[int]:
    """Rows of each layer: `total` shared by softmax((1 - score) / temperature), cut to whole rows."""
    shares = ((1 - scores) / temperature).softmax(0)
    return (shares * max(total, 0)).int().tolist()


def smallest_total(layers: int, frame: int, temperature: float = TEMPERATURE) -> int:
    """The least total with which every layer can hold `frame` rows, whatever the scores (each 0..1)."""
    worst = torch.zeros(layers)
    worst[0] = 1  # one layer's keys all alike, those of all others all different
    total = math.ceil(frame * (1 + (layers - 1) * math.exp(1 / temperature)))
    while adaptive_budgets(worst, total, temperature)[0] < frame:  # they are computed in float32
        total += 1
    return total


def diverse_rows(keys: Tensor, anchors: int, budget: int) -> tuple[Tensor, Tensor]:
    """Which of the rows [rows, N, heads, D] to keep, for each head: the first `anchors`, then the least alike.

    Alike is the product of a normed key with the mean of all normed keys behind the anchors, itself not normed.
    Returns (slots int64 [rows, heads, budget] ascending, likeness [rows, heads, N - anchors]).
    """
    candidates = F.normalize(keys[:, anchors:].transpose(1, 2).float(), dim=-1)  # (rows, H, n, D)
    likeness = (candidates * candidates.mean(dim=2, keepdim=True)).sum(-1)  # (rows, H, n)
    kept = likeness.topk(budget - anchors, dim=-1, largest=False).indices.sort(dim=-1).values + anchors
    first = torch.arange(anchors, device=keys.device).expand(*kept.shape[:2], -1)
    return torch.cat([first, kept], dim=-1), likeness


def _check(cursor: int, length: int, start: int, new: int) -> None:
    if new <= 0:
        raise ValueError(f"a call brings at least one row, got {new}")
    if start > cursor:
        raise ValueError(f"rows must follow on: next position is {cursor}, got {start}")
    if start < cursor - length:
        raise ValueError(f"positions below {cursor - length} are no longer in the cache, got {start}")
