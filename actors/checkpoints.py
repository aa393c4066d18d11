"""Checkpoints on the side of the stage actor: copied between two steps, written while the next ones run, read back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import numpy as np

from riverrun.actors.session import StageSession
from riverrun.graphs.stage import Mismatch, Packet, SaveOrder
from riverrun.models.base import Corrupt, Snapshot, StreamModel, Unavailable
from riverrun.store.checkpoints import Engine, Manifest, Mark

log = logging.getLogger(__name__)
SAVED_S = 300.0
"""Nobody waits longer for a blob to be written."""


class Vault(Protocol):
    """Where an actor keeps checkpoints: a `BlobStore`, or a test's memory."""

    def write(self, manifest: Manifest, tensors: Mapping[str, np.ndarray]) -> Manifest: ...

    def read(self, manifest: Manifest) -> dict[str, np.ndarray]: ...


class Checkpoints:
    """Of one actor. blobs: where they lie; None: nowhere, so that States can move but not be saved. Any thread may call
    its methods; they are for a State that no step is using."""

    def __init__(self, model: StreamModel, engine: Engine, blobs: Vault | None, writer: Executor | None = None) -> None:
        """writer: where blobs are written; a thread of its own if not given."""
        self.engine = engine
        self._model, self._blobs = model, blobs
        self._writer = writer or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._lock = threading.Lock()
        self._writing: dict[tuple[str, int], Future[Manifest]] = {}

    def take(self, session: StageSession, order: SaveOrder) -> Future[Manifest]:
        """Copies the State now; the future is the durable checkpoint. Raises what the State raises."""
        if self._blobs is None:
            raise Unavailable("this actor was given no place for checkpoints")
        mark, snapshot = session.stand(), self._snapshot(session, order.kind)
        name, _, stage = session.request.session.rpartition("/")
        manifest = Manifest(
            name,
            stage,
            session.epoch.number,
            session.epoch.nonce,
            snapshot.kind,
            mark,
            meta=snapshot.meta,
            engine=self.engine,
            record=order.record,
            created=time.time(),
        )
        return self._writer.submit(self._blobs.write, manifest, snapshot.tensors)

    def expect(self, session: StageSession) -> None:
        """One will be taken with the step just made; from now on `saved` waits for it."""
        key = _key(session)
        with self._lock:
            for old in [k for k in self._writing if k[0] == key[0] and self._writing[k].done()]:
                del self._writing[old]
            self._writing[key] = Future()

    def begin(self, session: StageSession, order: SaveOrder) -> None:
        """As `take`, of what was expected. What goes wrong is told by `saved`."""
        with self._lock:
            promise = self._writing.get(_key(session))
        if promise is None or promise.done():  # it was closed meanwhile
            return
        try:
            self.take(session, order).add_done_callback(partial(_fulfil, promise))
        except Exception as error:  # noqa: BLE001 - whatever the State raises belongs to whoever waits for it
            promise.set_exception(error if isinstance(error, Unavailable | Corrupt) else Corrupt(f"no copy: {error!r}"))

    def saved(self, session: str, seq: int) -> Manifest:
        """Blocks until the checkpoint ordered with step `seq` is durable. Raises Unavailable, Corrupt."""
        with self._lock:
            future = self._writing.get((session, seq))
        if future is None:
            raise Unavailable(f"session {session}: no checkpoint was taken with step {seq}")
        return wait(future)

    def forget(self, session: str) -> None:
        """It was closed here: what is still being written goes on."""
        with self._lock:
            self._writing = {key: future for key, future in self._writing.items() if key[0] != session}

    def pack(self, session: StageSession) -> Packet:
        """The State for another actor, to be read before its next step."""
        snapshot = self._lent(session)
        kept = tuple(session.kept[seq] for seq in sorted(session.kept))
        return Packet(session.stand(), self.engine, snapshot, kept)

    def unpack(self, params: Any, source: Manifest | Packet, blank: Any = None) -> tuple[Any, Mark]:
        """A State of this actor's model, and where it stands. blank: one just opened, which is filled then.

        Raises Mismatch, Corrupt, Unavailable."""
        self._check(source)
        if isinstance(source, Packet):
            snapshot = source.snapshot
        elif self._blobs is None:
            raise Unavailable("this actor was given no place for checkpoints")
        else:
            snapshot = Snapshot(source.meta, self._blobs.read(source), source.kind)
        model: Any = self._model
        return model.restore(params, snapshot) if blank is None else model.refill(blank, snapshot), source.mark

    def _check(self, source: Manifest | Packet) -> None:
        """Raises Mismatch. Another number of threads changes no more than the last bits, so one that is not exact
        anyway may go on with it."""
        is_exact = isinstance(source, Packet) or source.kind == "exact"
        for what in ("model", "weights", "dtype", "backend", *(["threads"] if is_exact else [])):
            theirs, ours = getattr(source.engine, what), getattr(self.engine, what)
            if theirs != ours:
                raise Mismatch(f"the checkpoint was made with {what} {theirs!r}, this actor has {ours!r}")

    def _snapshot(self, session: StageSession, kind: str) -> Snapshot:
        state = _state(session)
        if kind == "exact" or kind not in self._model.snapshot_kinds():
            return state.snapshot()
        return state.snapshot(kind)

    def _lent(self, session: StageSession) -> Snapshot:
        state = _state(session)
        return state.lend() if hasattr(state, "lend") else state.snapshot()


def _state(session: StageSession) -> Any:
    state = session.state  # read once: a close may take it away
    if state is None:
        raise Unavailable(f"session {session.request.session} has ended here")
    return state


def _key(session: StageSession) -> tuple[str, int]:
    return session.request.session, session.next_seq - 1


def _fulfil(promise: Future[Manifest], written: Future[Manifest]) -> None:
    if error := written.exception():
        promise.set_exception(error)
    else:
        promise.set_result(written.result())


def wait(future: Future[Manifest]) -> Manifest:
    """The checkpoint, without the record that only its file needs. Raises Unavailable, Corrupt."""
    try:
        return future.result(SAVED_S).without_record()
    except TimeoutError as error:
        raise Unavailable(f"a checkpoint is not written after {SAVED_S:g} s") from error
