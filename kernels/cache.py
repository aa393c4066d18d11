"""The KV cache of one session: named, one pool of pages over all its layers, committed by cursor.

A cache holds keys and values of every layer in one pool, `k` and `v` [rows, slots, heads, head_dim]. Layers own pages
of it, so they may hold different numbers of slots, and their shares may move from one layer to another. A slot is a
position in a layer; what lies in one slot may belong to different tokens in different heads (policies that keep rows
per head). `rows` is the leading axis that shares the slot table: guidance pairs, draft candidates, or the places of a
frame where attention runs over time (Ca2-VDM). How each of the nine methods maps onto this: docs/caches.md.

Life of a call: `begin` (the policy plans, rows move, nothing else) → for each layer `write`, perhaps `keep`, then
`keys` and `values` → `commit`. Between begin and commit the cursor stands still. `rollback` undoes a call that only
appended; after one that moved or overwrote committed rows every later call raises `CachePoisoned`, unless a `mark` was
held: `rewind` undoes anything (kernels/undo.py).
"""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from riverrun.kernels.export import Rows
from riverrun.kernels.policies import Plan, PlannedPolicy, PooledPolicy
from riverrun.kernels.undo import Undo, by_head

KeyForm = Literal["raw", "normed", "rotated"]


@dataclass(frozen=True)
class CacheSpec:
    """Shape of a cache. keys: what a stored key is; the caller owns positions and rotates as this says.

    page: slots in a page; a planned policy gives each layer one run of pages, so its reads are views. Under a pooled
    policy pages go to the layer that needs them, and reads are copies.
    """

    name: str
    layers: int
    heads: int
    head_dim: int
    keys: KeyForm
    page: int
    rows: int = 1


class CachePoisoned(RuntimeError):
    """A call that had moved or overwritten committed rows failed; only a restored snapshot can go on."""


class KVCache:
    """Keys and values of one session in `spec.layers` layers, bounded by `policy`.

    State: the pool, the page table, `lengths` (slots filled, per layer) and `cursor` (slots ever committed).
    """

    def __init__(
        self,
        spec: CacheSpec,
        policy: PlannedPolicy,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.spec, self.policy = spec, policy
        self.table, self._free = _page_table(spec, policy)
        count = sum(map(len, self.table)) + len(self._free)
        shape = (spec.rows, count * spec.page, spec.heads, spec.head_dim)
        # zeros, not empty: a sink that is not yet filled is attended to as zeros (longlive.md §15.3)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * spec.layers
        self.cursor = 0
        self._plans: list[Plan] = []  # of the call under way, one a layer
        self._undo: Callable[[], Undo | None] = lambda: None

    # -- one call --------------------------------------------------------------------------------------------

    def begin(self, start: int, new: int, rewrite_sink: bool = False) -> Plan:
        """Plans `new` rows at stream position `start`, and moves rows if the plan evicts. Not yet committed.

        Returns the first layer's plan; layers of equal length have equal plans.
        """
        if self._plans:
            raise CachePoisoned(f"cache {self.spec.name!r}: a call failed before its commit")
        by_length = {n: self.policy.plan(self.cursor, n, start, new, rewrite_sink) for n in set(self.lengths)}
        self._plans = [by_length[length] for length in self.lengths]
        for layer, plan in enumerate(self._plans):
            if plan.evict:
                self._evict(layer, plan.keep, plan.evict)
        return self._plans[0]

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Stores the call's new rows, k and v [rows, new, heads, head_dim], where the plan says."""
        plan = self._planned(layer)
        self._own(layer, plan.length)
        self._put(layer, plan.write, k[:, plan.skip :], v[:, plan.skip :])

    def keep(self, layer: int, slots: Tensor) -> None:
        """Content policies: after `write`, head h of `layer` keeps `slots[..., h, :]`, packed in front.

        slots: [heads, n] or [rows, heads, n], ascending. The call's queries see what was kept, and that is what
        `commit` counts.
        """
        plan = self._planned(layer)
        at, count = self._where(layer, 0, plan.length), slots.shape[-1]
        if (undo := self._undo()) is not None:
            undo.chooses(layer, self.k, self.v, at, slots)
        packed = self._where(layer, 0, count)
        for pool in (self.k, self.v):
            rows = pool[:, at]
            pool[:, packed] = rows.gather(1, by_head(slots, rows))
        self._own(layer, count)
        self._plans[layer] = dataclasses.replace(plan, length=count, attend=((0, count),), write=0)

    def keys(self, layer: int) -> Tensor:
        """What the call's queries see: [rows, n, heads, head_dim]; a view where the slots lie together."""
        return self._visible(self.k, layer)

    def values(self, layer: int) -> Tensor:
        """As `keys`, for the values."""
        return self._visible(self.v, layer)

    def commit(self) -> None:
        """Ends the call: its rows count from now on."""
        self.cursor, self.lengths = self._planned(0).cursor, [plan.length for plan in self._plans]
        self._plans = []

    def rollback(self) -> None:
        """Forgets a call that failed. One that only appended leaves no trace; any other poisons the cache."""
        if all(not p.evict and p.write >= length for p, length in zip(self._plans, self.lengths, strict=False)):
            self._plans = []
            for layer, length in enumerate(self.lengths):
                self._own(layer, length)

    def truncate(self, cursor: int) -> None:
        """Takes back the newest rows down to `cursor` (a draft that was not accepted). Nothing may be evicted yet."""
        dropped = self.cursor - cursor
        if not 0 <= dropped <= min(self.lengths):
            raise ValueError(f"can truncate to {self.cursor - min(self.lengths)}..{self.cursor}, got {cursor}")
        self.cursor, self.lengths = cursor, [length - dropped for length in self.lengths]

    def trim(self, length: int) -> None:
        """Lets go of the oldest rows of every layer, down to the newest `length`; the cursor stays.

        Between calls, for windows that a policy can't know from the cursor: chunks of uneven sizes (InfVSR).
        """
        if self._plans:
            raise CachePoisoned(f"cache {self.spec.name!r} is in the middle of a call")
        if length < 0:
            raise ValueError(f"length must not be negative, got {length}")
        for layer, filled in enumerate(self.lengths):
            if filled > length:
                self._evict(layer, 0, filled - length)
                self.lengths[layer] = length

    def adopt(self, cursor: int, chosen: Sequence[int]) -> None:
        """As `truncate(cursor)`, but the rows at positions `chosen`, ascending, stay and follow on from `cursor`.

        For drafts of several candidates laid end to end, of which one was accepted.
        """
        if list(chosen) != list(range(cursor, cursor + len(chosen))):
            index = torch.tensor(chosen, device=self.k.device) - cursor
            for layer, length in enumerate(self.lengths):
                start = length - self.cursor + cursor
                newest = (self._slots(pool, layer, start, length) for pool in (self.k, self.v))
                k, v = (part.index_select(1, index) for part in newest)
                self._put(layer, start, k, v)
        self.truncate(cursor + len(chosen))

    def clear(self) -> None:
        """Zeroes keys and values; cursor and lengths stay (longlive.md §7.1)."""
        for layer, table in enumerate(self.table):
            self._note(layer, 0, len(table) * self.spec.page)
        self.k.zero_()
        self.v.zero_()

    def mark(self) -> Undo:
        """Where the cache stands now, for `rewind`: as long as the mark is held, what calls overwrite is kept in it.

        Costs nothing but that: a call that appends keeps nothing, one that evicts what it evicts, and only one that
        overwrites everything keeps a copy of it all. A newer mark takes over from an older one.
        """
        seen = getattr(self.policy, "sink", 0)  # attended to as zeros before they are filled
        floors = [max(length, seen) for length in self.lengths]
        pages = [list(own) for own in self.table], list(self._free)
        undo = Undo(self.cursor, list(self.lengths), floors, pages)
        self._undo = weakref.ref(undo)
        return undo

    def rewind(self, mark: Undo) -> None:
        """Back to where `mark` was taken, bit for bit, from the middle of a call too. The mark stays in force."""
        mark.put_back(self.k, self.v)
        self.cursor, self.lengths, self._plans = mark.cursor, list(mark.lengths), []
        self.table, self._free = [list(own) for own in mark.pages[0]], list(mark.pages[1])

    def slots(self, part: Literal["k", "v"], layer: int) -> Tensor:
        """All slots of a layer, filled or not, [rows, slots, heads, head_dim]; for tests and inspection."""
        owned = min(self.policy.capacity, len(self.table[layer]) * self.spec.page)
        return self._slots(self.k if part == "k" else self.v, layer, 0, owned)

    # -- size, snapshot --------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of the pool, filled or not."""
        return self.k.nbytes + self.v.nbytes

    @property
    def fill(self) -> float:
        """Share of the slots in use, 0..1."""
        policy = self.policy
        total = policy.pool if isinstance(policy, PooledPolicy) else self.spec.layers * policy.capacity
        return sum(self.lengths) / total

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Tensor | Rows]]:
        """(meta, rows): the filled slots of all layers end to end, in physical order; read before the next call."""
        return self.snapshot_head(max(self.lengths))

    def snapshot_head(self, slots: int) -> tuple[dict[str, Any], dict[str, Tensor | Rows]]:
        """As `snapshot`, but of no more than the first `slots` slots of each layer (a sink)."""
        if self._plans:
            raise CachePoisoned(f"cache {self.spec.name!r} is in the middle of a call")
        lengths = [min(length, slots) for length in self.lengths]
        meta: dict[str, Any] = {"spec": asdict(self.spec), "policy": repr(self.policy)}
        meta |= {"cursor": self.cursor, "lengths": lengths}
        at = [self._where(layer, 0, length) for layer, length in enumerate(lengths)]
        return meta, {"k": Rows(self.k, at), "v": Rows(self.v, at)}

    def restore(self, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Copies in what was packed of a cache of the same spec and policy, from tensors on any device.

        Raises ValueError naming both if they differ.
        """
        own = {"spec": asdict(self.spec), "policy": repr(self.policy)}
        for part, mine in own.items():
            if meta[part] != mine:
                raise ValueError(f"cache {self.spec.name!r}: snapshot is of {meta[part]}, this one is {mine}")
        self._undo = lambda: None
        self.cursor, self.lengths, self._plans = meta["cursor"], list(meta["lengths"]), []
        self.table, self._free = _page_table(self.spec, self.policy)
        for layer, length in enumerate(self.lengths):
            self._own(layer, length)
        for pool, packed in ((self.k, tensors["k"]), (self.v, tensors["v"])):
            for layer, rows in enumerate(packed.split(self.lengths, dim=1)):
                pool[:, self._where(layer, 0, self.lengths[layer])] = rows.to(pool)
        self._zero_rest()

    # -- slots and pages -------------------------------------------------------------------------------------

    def _zero_rest(self) -> None:
        """Zeroes the slots that aren't filled."""
        page = self.spec.page
        owned = [self._where(layer, length, len(self.table[layer]) * page) for layer, length in enumerate(self.lengths)]
        for where in (*owned, *(slice(spare * page, (spare + 1) * page) for spare in self._free)):
            self.k[:, where] = 0
            self.v[:, where] = 0

    def _own(self, layer: int, slots: int) -> None:
        """Pooled policies: gives the layer just the pages that `slots` need, from those no layer has."""
        if not isinstance(self.policy, PooledPolicy):
            return
        pages, wanted = self.table[layer], -(-slots // self.spec.page)
        if len(pages) > wanted:
            self._note(layer, slots, len(pages) * self.spec.page)  # another layer may write into them
        while len(pages) > wanted:
            self._free.append(pages.pop())
        while len(pages) < wanted:
            pages.append(self._free.pop())

    def _planned(self, layer: int) -> Plan:
        if not self._plans:
            raise RuntimeError(f"cache {self.spec.name!r}: begin() comes first")
        return self._plans[layer]

    def _visible(self, pool: Tensor, layer: int) -> Tensor:
        parts = [self._slots(pool, layer, start, stop) for start, stop in self._planned(layer).attend]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _slots(self, pool: Tensor, layer: int, start: int, stop: int) -> Tensor:
        """Slots [start, stop) of a layer, [rows, stop - start, heads, head_dim]: a view if its pages are one run."""
        return pool[:, self._where(layer, start, stop)]

    def _put(self, layer: int, start: int, k: Tensor, v: Tensor) -> None:
        self._note(layer, start, start + k.shape[1])
        where = self._where(layer, start, start + k.shape[1])
        self.k[:, where] = k
        self.v[:, where] = v

    def _note(self, layer: int, start: int, stop: int) -> None:
        """Slots [start, stop) of a layer are about to be overwritten."""
        undo = self._undo()
        if undo is not None and (stop := undo.overwrites(layer, start, stop)) > start:
            undo.keep(self.k, self.v, self._where(layer, start, stop))

    def _where(self, layer: int, start: int, stop: int) -> slice | Tensor:
        """Slots [start, stop) of a layer in the pool."""
        base = self._run(layer)
        return self._physical(layer, start, stop) if base is None else slice(base + start, base + stop)

    def _run(self, layer: int) -> int | None:
        """First physical slot of a layer whose pages follow one another; None if they don't."""
        pages = self.table[layer]
        together = bool(pages) and all(b == a + 1 for a, b in itertools.pairwise(pages))
        return pages[0] * self.spec.page if together else None

    def _physical(self, layer: int, start: int, stop: int) -> Tensor:
        slots = torch.arange(start, stop, device=self.k.device)
        pages = torch.tensor(self.table[layer], dtype=torch.int64, device=self.k.device)
        return pages[slots // self.spec.page] * self.spec.page + slots % self.spec.page

    def _evict(self, layer: int, keep: int, evict: int) -> None:
        """Drops slots [keep, keep + evict); later ones move down."""
        stop = self.lengths[layer]
        self._note(layer, stop, len(self.table[layer]) * self.spec.page)  # rows that were taken back do not move
        source, target = self._where(layer, keep + evict, stop), self._where(layer, keep, stop - evict)
        undo = self._undo()
        if undo is not None and undo.evicts(layer, keep, evict):
            undo.keep(self.k, self.v, self._where(layer, keep, keep + evict), moved=(source, target))
        for pool in (self.k, self.v):
            pool[:, target] = pool[:, source].clone()


def _page_table(spec: CacheSpec, policy: PlannedPolicy) -> tuple[list[list[int]], list[int]]:
    """(each layer's pages, those no layer has) of an empty cache."""
    if isinstance(policy, PooledPolicy):
        spare = -(-policy.pool // spec.page) + spec.layers  # each layer's last page may be nearly empty
        return [[] for _ in range(spec.layers)], list(range(spare))[::-1]
    pages = -(-policy.capacity // spec.page)  # a layer, rounded up
    return [list(range(layer * pages, (layer + 1) * pages)) for layer in range(spec.layers)], []


@contextmanager
def calling(caches: Sequence[KVCache], starts: Sequence[int], new: int | Sequence[int]) -> Iterator[None]:
    """One call on several sessions' caches: begun here, committed at the end, rolled back if anything fails.

    new: rows of each session, one number if all bring as many.
    """
    counts = [new] * len(caches) if isinstance(new, int) else new
    try:
        for cache, start, count in zip(caches, starts, counts, strict=True):
            cache.begin(start, count)
        yield
    except BaseException:
        for cache in caches:
            cache.rollback()
        raise
    for cache in caches:
        cache.commit()


class CacheCall(ABC):
    """One call over the caches of several sessions, as a context manager: leaving it commits, or, after a failure
    there or at its beginning, rolls every cache back."""

    @abstractmethod
    def caches_used(self) -> Iterable[KVCache]:
        """All that the call may have begun."""

    @abstractmethod
    def begin(self) -> None:
        """Begins the call on every cache."""

    def commit(self) -> None:
        for cache in self.caches_used():
            cache.commit()

    def __enter__(self) -> Self:
        try:
            self.begin()
        except BaseException:
            self._rollback()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.commit()
        else:
            self._rollback()

    def _rollback(self) -> None:
        for cache in self.caches_used():
            cache.rollback()
