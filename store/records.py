"""The session record: all that another gateway must know to go on with a session, as one frozen dataclass.

Only the session's runner writes it, by compare-and-set on (version, epoch number, nonce) (design §4). It is written on
state changes and every few seconds, never once a chunk. It holds no tensor and no frame.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from riverrun.models.base import BadRequest, Corrupt, Unavailable
from riverrun.store.jsonable import dumps

SCHEMA = 1
ENDED_TTL_S = 3600.0
"""For how long an ended session's record can be read."""
LIVE_TTL_S = 86_400.0
"""For how long after its last write a live record stays."""
SUSPENDED_TTL_S = 7 * 86_400.0
"""For how long a session that was put away is kept."""


class Conflict(Unavailable):
    """The stored record is not the one this write was made from: another runner holds the session now."""


class SessionState(StrEnum):
    """Where a session stands. Transitions go by `advance`."""

    OPENING = "opening"
    RUNNING = "running"
    DRAINING = "draining"
    SUSPENDED = "suspended"
    CLOSED = "closed"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in (SessionState.CLOSED, SessionState.FAILED)

    @property
    def runs(self) -> bool:
        """Whether a runner has it: it may begin, stream or drain."""
        return not self.ended and self is not SessionState.SUSPENDED


_S = SessionState
_NEXT: Mapping[SessionState, frozenset[SessionState]] = {
    _S.OPENING: frozenset({_S.RUNNING, _S.SUSPENDED, _S.CLOSED, _S.FAILED}),
    _S.RUNNING: frozenset({_S.DRAINING, _S.SUSPENDED, _S.CLOSED, _S.FAILED}),
    _S.DRAINING: frozenset({_S.SUSPENDED, _S.CLOSED, _S.FAILED}),
    _S.SUSPENDED: frozenset({_S.OPENING, _S.CLOSED, _S.FAILED}),
    _S.CLOSED: frozenset(),
    _S.FAILED: frozenset(),
}


def advance(now: SessionState, to: SessionState) -> SessionState:
    """`to`, if a session may go there from `now`. Raises Corrupt naming both."""
    if to not in _NEXT[now]:
        raise Corrupt(f"a session can't go from {now.value} to {to.value}")
    return to


@dataclass(frozen=True)
class Ttls:
    """For how long records stay after their last write, seconds, by how their sessions stand."""

    live_s: float = LIVE_TTL_S
    suspended_s: float = SUSPENDED_TTL_S
    ended_s: float = ENDED_TTL_S

    def of(self, state: SessionState) -> float:
        if state.ended:
            return self.ended_s
        return self.live_s if state.runs else self.suspended_s


TTLS = Ttls()


@dataclass(frozen=True)
class StoreIdentity:
    """Which store answers. run: changes when its server is restarted, or another one takes its place. born, born_at: a
    name for what lies in it and the time it was given, seconds since 1970; another one means that all was lost."""

    run: str
    born: str
    born_at: float


@dataclass(frozen=True)
class Placement:
    """Where one stage of the session lives. weights: digest of the weights it was opened on ("" if not known)."""

    actor: str
    model: str = ""
    incarnation: str = ""
    weights: str = ""


@dataclass(frozen=True)
class PortMark:
    """How far one output port has come, in frames: emitted by the stage, sent to and acked by the controller.

    Each is the number of frames (so the next frame's number). chunks: how many chunks were emitted. is_read: a
    controller reads it, or none has come yet; of another port nothing is kept for anybody.
    """

    chunks: int = 0
    emitted: int = 0
    sent: int = 0
    acked: int = 0
    is_read: bool = True


ANY = -1
"""However many lines there are."""

REFUSED, ENDS, DECIDED = "refused", "ends", "decided"
"""Kinds of lines that are no client's control: a stage refused one, a source is flushed, a step decided by value."""


@dataclass(frozen=True)
class ControlEntry:
    """One line of the control log. value: as in `Control`, JSON-able; embeddings are made again on replay.

    step, chunk: the step of `stage` that carried it and the first chunk it is in force for; -1 in the line that is
    written on arrival, whose `stage` is the one the client named ("": all that take the kind).
    """

    revision: int
    kind: str
    value: Any = None
    stage: str = ""
    step: int = -1
    chunk: int = -1

    def to_json(self) -> str:
        return dumps(self)

    @staticmethod
    def from_json(text: str | bytes) -> ControlEntry:
        return _build(ControlEntry, _object(text, "control entry"))


@dataclass(frozen=True)
class ScriptEntry:
    """A control that comes into force by itself, at a frame (see `graphs/script.py`)."""

    at_frame: int
    revision: int
    kind: str
    value: Any = None
    stage: str = ""


@dataclass(frozen=True)
class SessionRecord:
    """One session. Times are seconds since 1970.

    params: per stage, after `route_params`. version: rises by one with each write (0: never written).
    epoch, nonce: the fencing token of the runner in charge. placement, steps: per stage; steps is the next step number.
    consumed, forgotten: chunks taken, and those of them that nobody keeps any more, per "stage.port". ports: per graph
    output. folded: controls in force that the log no longer holds. folded_to: by stage, the first step whose lines the
    log still has for certain. script: controls at frames. lead_s: media it may be ahead of its
    controller (0: no limit). manifests: checkpoints, in short. dropped: paths of those that nobody may rely on any
    more, as they are being deleted. token_digest: sha256 of the resume token, hex.
    """

    id: str
    graph: str
    tenant: str = ""
    client_id: str = ""
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 0
    max_frames: int = 0
    idle_timeout_s: float = 0.0
    lead_s: float = 0.0
    state: SessionState = SessionState.OPENING
    reason: str = ""
    epoch: int = 1
    nonce: str = ""
    gateway: str = ""
    placement: Mapping[str, Placement] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    consumed: Mapping[str, int] = field(default_factory=dict)
    forgotten: Mapping[str, int] = field(default_factory=dict)
    ports: Mapping[str, PortMark] = field(default_factory=dict)
    folded: tuple[ControlEntry, ...] = ()
    folded_to: Mapping[str, int] = field(default_factory=dict)
    script: tuple[ScriptEntry, ...] = ()
    manifests: tuple[Mapping[str, Any], ...] = ()
    dropped: tuple[str, ...] = ()
    created: float = 0.0
    updated: float = 0.0
    token_digest: str = ""
    version: int = 0
    schema: int = SCHEMA

    @property
    def about(self) -> dict[str, Any]:
        """What a log line of it is about (see `actors/logs.py`)."""
        return {"session": self.id, "graph": self.graph, "epoch": self.epoch, "tenant": self.tenant}

    def to_json(self) -> str:
        return dumps(self)

    @staticmethod
    def from_json(text: str | bytes) -> SessionRecord:
        """Raises Corrupt for what is not a record, or one of another schema version (naming both)."""
        raw = _object(text, "session record")
        if raw.get("schema") != SCHEMA:
            raise Corrupt(f"session record has schema version {raw.get('schema')!r}, this program reads {SCHEMA}")
        return _build(
            SessionRecord,
            raw,
            state=SessionState,
            placement=lambda m: {k: _build(Placement, v) for k, v in m.items()},
            ports=lambda m: {k: _build(PortMark, v) for k, v in m.items()},
            folded=lambda xs: tuple(_build(ControlEntry, x) for x in xs),
            script=lambda xs: tuple(_build(ScriptEntry, x) for x in xs),
            manifests=tuple,
            dropped=tuple,
        )


def token_digest(token: str) -> str:
    """What a record keeps of a resume token: its sha256, hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def _object(text: str | bytes, what: str) -> dict[str, Any]:
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise Corrupt(f"{what} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise Corrupt(f"{what} must be a JSON object, got {type(raw).__name__}")
    return raw


def _build(cls: type, raw: Mapping[str, Any], **convert: Any) -> Any:
    try:
        return cls(**{name: convert.get(name, lambda v: v)(value) for name, value in raw.items()})
    except (TypeError, ValueError, AttributeError) as error:
        raise Corrupt(f"{cls.__name__} can't be read: {error}") from error


@dataclass(frozen=True)
class Page:
    """Some records, newest first. token: give it back for the next page; "" after the last."""

    records: tuple[SessionRecord, ...]
    token: str = ""


def make_token(record: SessionRecord) -> str:
    """A page token: where the page ended."""
    return f"{record.created!r}:{record.id}"


def parse_token(token: str) -> tuple[float, str] | None:
    """Raises BadRequest for a token that `make_token` did not make."""
    created, _, session = token.partition(":")
    if not token:
        return None
    try:
        if math.isfinite(since := float(created)):
            return since, session
        raise ValueError
    except ValueError:
        raise BadRequest(f"page token {token!r} is none of ours; leave it empty for the first page") from None


class Store(Protocol):
    """What the gateway and the runner ask of a session store. Each method raises Unavailable when it can't be reached.

    The number of keys a session takes is constant.
    """

    @property
    def jobs(self) -> Any:
        """Where jobs are kept: a `jobs.Jobs`."""

    async def create(self, record: SessionRecord) -> SessionRecord:
        """Writes a new record (version 1), or returns the live one with the same tenant and client_id."""

    async def admit(self, record: SessionRecord, most: int) -> bool:
        """Counts a session that was created; False if its tenant has `most` other live ones (then it is not counted).

        A session counts until it has ended, is deleted, or its gateway has died.
        """

    async def get(self, session: str) -> SessionRecord | None:
        """The record; None if there is none (or it has expired). Raises Corrupt."""

    async def page(
        self, size: int = 50, token: str = "", include_ended: bool = False, tenant: str | None = None
    ) -> Page:
        """A page, newest first, of one tenant's or (None) all. Raises BadRequest for a token that is none."""

    async def update(self, record: SessionRecord, drop: int = 0, has: int = ANY) -> SessionRecord:
        """Replaces the record if the stored one has the same version, epoch and nonce; returns it with version + 1.
        drop: so many lines leave the head of its control log, in the same moment. has: so many must be there before.

        Each record stays for a while after its last write (`Ttls`), then expires. Raises Conflict if they differ or the
        record is gone.
        """

    async def take(self, session: str, version: int, epoch: int, nonce: str) -> SessionRecord:
        """Puts a new runner in charge: sets a higher epoch and its nonce. Raises Conflict, BadRequest if not higher."""

    async def log(self, record: SessionRecord, entry: ControlEntry, has: int = ANY) -> None:
        """Appends to the session's control log. has: so many lines must be there before: a store that has lost some
        takes none after the gap, and a line that comes twice is there once. Raises Conflict as `update`."""

    async def read_log(self, session: str) -> tuple[ControlEntry, ...]:
        """The control log, oldest first."""

    async def delete(self, session: str) -> None:
        """Forgets a session. Deleting an unknown one is no error."""

    async def check(self) -> None:
        """Raises Corrupt for what would stay for ever. May look at everything there is: for tests."""

    async def heartbeat(self, gateway: str, address: str, ttl_s: float) -> None:
        """Says that `gateway` lives and answers at `address`; forgotten after `ttl_s`."""

    async def gateways(self) -> Mapping[str, str]:
        """Live gateways, name to address."""

    async def identity(self) -> StoreIdentity:
        """Which store this is; an empty one is given a name."""
