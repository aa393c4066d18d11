"""Which rows of a cache stay. Pure decisions; moving the rows is `kernels/cache.py`'s business.

A *planned* policy decides once a chunk, for all layers, from the cursor and the length alone. All counts are in
slots (tokens; frames where a row is a frame). cursor: slots ever committed. length: slots filled now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


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
    sink 0 and a capacity of whole chunks is InfVSR's "previous N chunks".
    """

    capacity: int
    sink: int = 0

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
        attend = ((0, max(stop, self.sink)),)  # a sink not yet filled is seen as zeros: the official code's quirk
        skip = min(write - first, new)
        return Plan(stop, max(cursor, end), write, attend, skip, keep=self.sink, evict=evict)


def _check(cursor: int, length: int, start: int, new: int) -> None:
    if new <= 0:
        raise ValueError(f"a call brings at least one row, got {new}")
    if start > cursor:
        raise ValueError(f"rows must follow on: next position is {cursor}, got {start}")
    if start < cursor - length:
        raise ValueError(f"positions below {cursor - length} are no longer in the cache, got {start}")
