"""The Ray actor around a `StageWorker`: threaded, in concurrency groups, and no logic of its own.

One thread of its own runs the batch loop. `steps`: a thread a session, blocked until its reply is there. `control`:
opens, closes, attaches and tells its health while a step runs. `saves`, `moves`: wait for States to be written or
copied.
Never restarted by Ray: a new process would answer with blank States; the controller starts another one under a new
incarnation.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time

import numpy as np
import ray
from ray.exceptions import RayError

from riverrun.actors.checkpoints import Checkpoints
from riverrun.actors.health import Look, Resident, StageHealth
from riverrun.actors.line import LinePlace, LineServer
from riverrun.actors.loading import build, carried, engine_of, print_to_stderr, set_threads, start_actor
from riverrun.actors.logs import set_up
from riverrun.actors.stage import StageWorker
from riverrun.actors.tracing import spans_to
from riverrun.configs import ModelConfig
from riverrun.configs.telemetry import ActorSetup
from riverrun.graphs.stage import (
    AttachReply,
    Epoch,
    InputLost,
    OpenReply,
    OpenRequest,
    Packet,
    RestoreReply,
    RestoreRequest,
    SaveOrder,
    StepReply,
    StepRequest,
)
from riverrun.models.base import Chunk, ModelInfo, StreamModel, Unavailable, param_infos
from riverrun.store.blobs import BlobStore
from riverrun.store.checkpoints import Manifest

BY_REFERENCE_BYTES = 1 << 20
"""Data for another stage goes through the object store from this size on; below, passing it inline is quicker (Ray
2.60, one node: 2.6 against 4.7 ms at 1 kB, 6.6 against 6.4 at 1 MB, 18 against 11 at 19 MB)."""

CONTROL_THREADS = 4
WAITING_THREADS = 4
"""For calls that wait until a State is written, and as many for those that bring one here or take it away: a disk that
does not take what is written must not hold those up."""

_SAVES = dict.fromkeys(("saved", "save"), "saves")
_MOVES = dict.fromkeys(("prepare", "export", "restore"), "moves")
PLACES = {"step": "steps", **_SAVES, **_MOVES}
_BLANKS = {"str": "?", "int": 1, "float": 1.0, "bool": False}  # for parameters without default, to describe a model


class StageActor:
    """One process with one model's weights, loaded by `load`."""

    def __init__(self, config: ModelConfig, incarnation: str, setup: ActorSetup) -> None:
        self._config, self._incarnation, self._setup = config, incarnation, setup
        self._node = ray.get_runtime_context().get_node_id()
        self._worker: StageWorker
        self._loading = threading.Lock()
        self._info: ModelInfo | None = None

    @carried
    def load(self) -> ModelInfo:
        """Loads the model, begins the batch loop, and says what the model is with default parameters; a controller that
        comes later is told the same. Raises BadRequest (the configuration)."""
        with self._loading:
            if self._info is None:
                self._info = self._loaded()
                threading.Thread(target=self._run, name="compute", daemon=True).start()
            return self._info

    def _loaded(self) -> ModelInfo:
        limits = self._config.actor
        print_to_stderr()
        set_up(self._setup.telemetry.log)
        self._spans = spans_to(self._setup.telemetry.trace, self._config.name)
        set_threads(limits.threads)
        model = build(self._config)
        self._worker = StageWorker(
            model,
            self._incarnation,
            limits.max_sessions,
            limits.max_bytes,
            limits.max_batch,
            checkpoints=self._checkpoints(model),
            slack_share=limits.slack_share,
        )
        self._lines = LineServer(self._node, lambda request: self.step(request, frozenset()))
        params = param_infos(model.Params)
        blanks = {p.name: _BLANKS[p.type] for p in params if p.default is None and p.type in _BLANKS}
        self._worker.warm_up(blanks)
        return ModelInfo(self._config.name, self._config.stage, self._worker.describe(blanks), params)

    def _checkpoints(self, model: StreamModel) -> Checkpoints:
        where = self._setup.checkpoints
        blobs = BlobStore(where.uri, shared=where.shared) if where.uri else None
        return Checkpoints(model, engine_of(self._config, model), blobs)

    def _run(self) -> None:
        """The batch loop, to the end of the process."""
        set_threads(self._config.actor.threads)  # per thread in some libraries, and this is the one that computes
        self._worker.run()

    @carried
    def step(self, request: StepRequest, by_reference: frozenset[str]) -> StepReply:
        inputs = tuple(_with_data(chunk) for chunk in request.inputs)
        arrived_ns = time.time_ns()
        reply = self._worker.step(dataclasses.replace(request, inputs=inputs))
        if request.trace and self._spans:
            self._spans.note_step(request, reply, arrived_ns, self._incarnation)
        return _lent(reply, by_reference)

    def line(self) -> LinePlace:
        """Where gateways of this machine reach `step` without Ray in between."""
        return self._lines.place

    @carried
    def open(self, request: OpenRequest) -> OpenReply:
        return self._worker.open(request)

    @carried
    def attach(self, session: str, epoch: Epoch, by_reference: frozenset[str]) -> AttachReply:
        reply = self._worker.attach(session, epoch)
        return dataclasses.replace(reply, kept=tuple(_lent(each, by_reference) for each in reply.kept))

    @carried
    def saved(self, session: str, epoch: Epoch, seq: int) -> Manifest:
        return self._worker.saved(session, epoch, seq)

    @carried
    def save(self, session: str, epoch: Epoch, order: SaveOrder) -> Manifest:
        return self._worker.save(session, epoch, order)

    @carried
    def export(self, session: str, epoch: Epoch) -> Packet:
        """Its tensors stay in the object store, from where the other actor reads them."""
        packet = self._worker.export(session, epoch)
        return dataclasses.replace(packet, snapshot=ray.put(packet.snapshot))

    @carried
    def prepare(self, request: RestoreRequest) -> None:
        self._worker.prepare(request)

    @carried
    def restore(self, request: RestoreRequest) -> RestoreReply:
        return self._worker.restore(_fetched(request))

    @carried
    def close(self, session: str, epoch: Epoch, life: int | None = None) -> None:
        self._worker.close(session, epoch, life)

    def health(self) -> StageHealth:
        return dataclasses.replace(self._worker.health(), pid=os.getpid(), node=self._node)

    def residents(self) -> tuple[Resident, ...]:
        return self._worker.residents()

    def look(self) -> Look:
        seen = self._worker.look()
        return dataclasses.replace(seen, health=dataclasses.replace(seen.health, pid=os.getpid(), node=self._node))

    def retire(self) -> bool:
        """See `StageWorker.retire`."""
        return self._worker.retire()

    def check(self) -> None:
        self._worker.check()


def start_stage(setup: ActorSetup, config: ModelConfig, incarnation: str, name: str = "") -> ray.actor.ActorHandle:
    """A new stage actor, loading its model; Ray starts it when there is room."""
    waiting = dict.fromkeys(("saves", "moves"), WAITING_THREADS)
    groups = {"steps": config.actor.max_sessions, "control": CONTROL_THREADS, **waiting}
    return start_actor(StageActor, groups, PLACES, setup, config, incarnation, name)


def _with_data(chunk: Chunk) -> Chunk:
    """The chunk with the array its reference points to."""
    if not isinstance(chunk.data, ray.ObjectRef):
        return chunk
    try:
        return dataclasses.replace(chunk, data=ray.get(chunk.data))
    except RayError as error:
        raise InputLost(f"input {chunk.seq} of port {chunk.port!r} was lost with the actor that made it") from error


def _fetched(request: RestoreRequest) -> RestoreRequest:
    """The request with the State that its packet refers to."""
    source = request.source
    if not isinstance(source, Packet) or not isinstance(source.snapshot, ray.ObjectRef):
        return request
    try:
        snapshot = ray.get(source.snapshot)
    except RayError as error:
        raise Unavailable("the State was lost on its way: the actor it came from died") from error
    return dataclasses.replace(request, source=dataclasses.replace(source, snapshot=snapshot))


def _lent(reply: StepReply, by_reference: frozenset[str]) -> StepReply:
    """The reply with large data for other stages as references."""
    chunks = tuple(_by_reference(c) if c.port in by_reference else c for c in reply.chunks)
    return dataclasses.replace(reply, chunks=chunks)


def _by_reference(chunk: Chunk) -> Chunk:
    big = isinstance(chunk.data, np.ndarray) and chunk.data.nbytes >= BY_REFERENCE_BYTES
    return dataclasses.replace(chunk, data=ray.put(chunk.data)) if big else chunk
