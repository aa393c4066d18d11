"""What the States of several models do alike: frames that wait, steps that fail half-way and are taken back, snapshots
that don't fit.

Plain data, as `base`: numpy and the standard library only.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np

from riverrun.models.base import TICKS_PER_SECOND, BadRequest, Chunk, Corrupt, Snapshot


class Waiting(NamedTuple):
    """An input frame not yet used: uint8 [H, W, 3], its media time and ticks to the next, its revision."""

    pixels: np.ndarray
    pts: int
    ticks: int
    revision: int


def check_frames(chunk: Chunk) -> np.ndarray:
    """The chunk's frames. Raises BadRequest if they are no pictures."""
    data = chunk.data
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 4 or data.shape[3] != 3:
        got = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise BadRequest(f"port {chunk.port!r} takes uint8 [T, H, W, 3], got {got}")
    return data


def frames_of(chunk: Chunk) -> list[Waiting]:
    """The chunk's frames one by one, owning their memory: a view would keep the whole chunk alive."""
    times = [chunk.time_of(i) for i in range(len(chunk.data) + 1)]
    return [
        Waiting(data.copy(), times[i], times[i + 1] - times[i], chunk.revision) for i, data in enumerate(chunk.data)
    ]


class Counting(Protocol):
    """A State of a source. chunk: chunks made; frames: emitted; revision: of the control in force."""

    chunk: int
    frames: int
    revision: int


def emit(state: Counting, port: str, data: np.ndarray, fps: int) -> Chunk:
    """A source's next frames as a chunk, at their time on the media clock; counts them."""
    ticks = TICKS_PER_SECOND // fps
    at = state.frames
    state.chunk += 1
    state.frames += len(data)
    return Chunk(port, data, at * ticks, ticks, len(data), at, revision=state.revision)


class Breakable(Protocol):
    """A State that a failed step leaves half-written. is_broken: only a restored snapshot can go on."""

    is_broken: bool


def refuse_broken(states: Sequence[Breakable]) -> None:
    """Before a step. Raises Corrupt if one of its sessions can't go on."""
    if broken := [state for state in states if state.is_broken]:
        raise Corrupt(f"{len(broken)} session(s) failed in an earlier step; restore a snapshot")


@contextmanager
def rewriting(states: Sequence[Breakable]) -> Iterator[None]:
    """A step that overwrites what was committed: if it fails, its sessions are broken."""
    refuse_broken(states)
    for state in states:
        state.is_broken = True
    yield
    for state in states:
        state.is_broken = False


def refuse_snapshot(state: Breakable) -> None:
    """Raises Corrupt for a session that failed."""
    if state.is_broken:
        raise Corrupt("the session failed in a step; only an earlier snapshot can be restored")


def check_kind(kind: str, kinds: Sequence[str] = ("exact",)) -> None:
    """Raises BadRequest for a kind of snapshot that a State can't give."""
    if kind not in kinds:
        raise BadRequest(f"snapshots of this model are {' or '.join(kinds)}, {kind!r} was asked for")


@contextmanager
def reading(snapshot: Snapshot, version: int) -> Iterator[Mapping[str, Any]]:
    """The meta of a snapshot. Raises Corrupt for one of another version, without a part, or that does not fit."""
    found = snapshot.meta.get("version")
    if found != version:
        raise Corrupt(f"the snapshot has version {found}, this model reads {version}")
    try:
        yield snapshot.meta
    except KeyError as error:
        raise Corrupt(f"the snapshot lacks {error.args[0]!r}") from error
    except ValueError as error:
        raise Corrupt(f"the snapshot does not fit: {error}") from error


Back = Callable[[], Any]
"""Brings a value back as it was, and returns it."""


class Rewindable:
    """A State, any dataclass, that can go back to before a step. So it may share steps: see `StreamModel.batch_key`.

    Costs what its caches overwrite in the step. Members that have `mark` and `rewind` themselves (KVCache, Histories)
    go back by them; dataclasses, lists, deques and dicts are looked into; all else, tensors and arrays too, must be
    replaced and never written into. A mark holds what it needs, so it is let go of after the step.
    """

    def mark(self) -> Back:
        """Where it stands now: everything a push, a control or a step may change."""
        return _fields_back(self)

    def rewind(self, mark: Back) -> None:
        """Takes back everything since `mark`, a step that failed half-way included."""
        mark()


def _back(value: Any) -> Back:
    """What brings `value` back as it is now."""
    if hasattr(value, "mark") and hasattr(value, "rewind"):
        return _marked_back(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not _is_frozen(value):
        return _fields_back(value)
    if isinstance(value, list | deque):
        return _items_back(value)
    if isinstance(value, dict):
        return _entries_back(value)
    return lambda: value


def _is_frozen(value: Any) -> bool:
    return bool(type(value).__dataclass_params__.frozen)


def _marked_back(value: Any) -> Back:
    mark = value.mark()

    def back() -> Any:
        value.rewind(mark)
        return value

    return back


def _fields_back(value: Any) -> Back:
    fields = {name: _back(kept) for name, kept in vars(value).items()}

    def back() -> Any:
        for name, kept in fields.items():
            setattr(value, name, kept())
        return value

    return back


def _items_back(value: list | deque) -> Back:
    plain = all(isinstance(kept, int | tuple) for kept in value)  # perhaps thousands of token ids
    items = list(value) if plain else [_back(kept) for kept in value]

    def back() -> Any:
        kept = list(items) if plain else [item() for item in items]
        value.clear()
        value.extend(kept)
        return value

    return back


def _entries_back(value: dict) -> Back:
    entries = {key: _back(kept) for key, kept in value.items()}

    def back() -> Any:
        value.clear()
        value.update({key: kept() for key, kept in entries.items()})
        return value

    return back
