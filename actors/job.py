"""One job: what it is asked for, how far it has come, and what the store keeps of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from riverrun.actors.host import MAX_CLIENT_ID, SessionWish
from riverrun.actors.sinks import sink_path
from riverrun.graphs import script
from riverrun.graphs.controls import PAUSE
from riverrun.graphs.script import TimedControl
from riverrun.graphs.waiting import Signal
from riverrun.models.base import BadRequest
from riverrun.store.jobs import JobRecord


class JobState(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class JobSpec:
    """What is to be rendered. frames: of the graph's first output. sinks: URI by output port. tenant: whose it is."""

    graph: str
    params: Mapping[str, Any]
    seed: int
    client_id: str
    frames: int
    controls: tuple[TimedControl, ...]
    sinks: Mapping[str, str]
    tenant: str = ""

    def check(self, max_frames: int, jobs_dir: str = "") -> None:
        """Raises BadRequest for what can be seen without opening anything."""
        if not 0 < self.frames <= max_frames:
            raise BadRequest(f"frames must be 1..{max_frames}, got {self.frames}")
        if not self.sinks:
            raise BadRequest("sinks is empty: say where at least one output port goes")
        for uri in self.sinks.values():
            sink_path(uri, jobs_dir)
        if len(self.client_id) > MAX_CLIENT_ID:
            raise BadRequest(f"client_id has {len(self.client_id)} characters, at most {MAX_CLIENT_ID}")
        revisions = [timed.control.revision for timed in self.controls]
        if revisions != sorted(set(revisions)):
            raise BadRequest(f"revisions of a job's controls must rise, got {revisions}")
        frames = [timed.at_frame for timed in self.controls]
        if frames != sorted(frames):
            raise BadRequest(f"frames of a job's controls must rise with their revisions, got {frames}")
        if any(timed.control.kind == PAUSE for timed in self.controls):
            raise BadRequest("a job has nobody to go on for: it takes no pause")

    def wish(self) -> SessionWish:
        """The session it is rendered from."""
        return SessionWish(self.graph, self.params, self.seed, max_frames=self.frames, lead_s=0.0, tenant=self.tenant)


@dataclass
class Job:
    """record: as the store has it, or will have. changed: wakes those who watch it. is_lost: another gateway has it."""

    spec: JobSpec
    record: JobRecord
    state: JobState = JobState.RUNNING
    reason: str = ""
    frames_done: int = 0
    is_lost: bool = False
    changed: Signal = field(default_factory=Signal)
    task: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def session(self) -> str:
        return self.record.session

    @property
    def created(self) -> float:
        return self.record.created

    @staticmethod
    def new(job: str, spec: JobSpec, gateway: str, now: float) -> Job:
        asked = (spec.graph, spec.params, spec.seed, spec.frames, script.written(spec.controls), spec.sinks)
        return Job(spec, JobRecord(job, *asked, spec.tenant, spec.client_id, gateway=gateway, created=now))

    @staticmethod
    def of(record: JobRecord) -> Job:
        """As the store has it."""
        asked = (record.graph, record.params, record.seed, record.client_id, record.frames)
        spec = JobSpec(*asked, script.read(record.controls), record.sinks, record.tenant)
        return Job(spec, record, JobState(record.state), record.reason, record.frames_done)

    def noted(self, **changes: Any) -> JobRecord:
        """Its record, brought up to date."""
        return replace(self.record, state=self.state.value, reason=self.reason, frames_done=self.frames_done, **changes)

    def end(self, state: JobState, reason: str = "") -> None:
        if self.state is JobState.RUNNING:
            self.state, self.reason = state, reason
            self.changed.notify()

    def over(self, task: asyncio.Task[None]) -> None:
        """Lets go of its task: a cancelled one would hold on to the whole session for as long as the job is kept."""
        if self.state is not JobState.RUNNING:
            self.task = None
