"""Goes on with a session that another runner has run: from the States that live, else from checkpoints.

Three questions, answered for each stage with those behind it first, since what they need decides where it may begin:
does its State live (`attach`)? if not, from which checkpoint can it go on? what of its outputs is still wanted?
Then edges, rings and drivers are set to those numbers, and the stream goes on as it does after a crash.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from riverrun.graphs.checkpoints import CheckpointBook
from riverrun.graphs.controls import Given
from riverrun.graphs.durability import Durability
from riverrun.graphs.flow import Flow
from riverrun.graphs.graph import Edge, Graph
from riverrun.graphs.opening import answer, let_go
from riverrun.graphs.recovery import RecoveryConfig
from riverrun.graphs.stage import (
    Epoch,
    Lost,
    Mismatch,
    OpenRequest,
    RestoreRequest,
    StageGone,
    StageHandle,
    StepFailed,
    StepReply,
)
from riverrun.graphs.waiting import Clock
from riverrun.models.base import Corrupt, Description, Unavailable
from riverrun.store.checkpoints import Manifest, Mark
from riverrun.store.records import ControlEntry, Placement, SessionRecord, SessionState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stand:
    """Where one stage was found. mark: it stands there. kept: replies that are still wanted; none if it was restored.
    floor: it may begin again there, and no earlier. logged: of the steps before that one the log may not have all.
    lives: nothing was lost."""

    handle: StageHandle
    placement: Placement
    description: Description
    mark: Mark
    kept: tuple[StepReply, ...]
    floor: Mark
    lives: bool
    life: int = 0
    logged: int = 0

    def given(self, revision: int) -> Given | None:
        """Where the State took a control in under the runner before, as far as that is wanted by anybody; None if it
        did not."""
        if revision > self.mark.seen:
            return None
        first = self.kept[0].seq if self.kept else self.mark.seq
        carrier = next((reply for reply in self.kept if revision in reply.given), None)
        step = carrier.seq if carrier else first - 1
        port = self.description.outputs[0].name
        since = (c for reply in self.kept if reply.seq >= step for c in reply.chunks if c.port == port)
        here = self.mark.chunks.get(port, 0), self.mark.frames.get(port, 0)
        chunk, frame = next(((c.seq, c.first_frame) for c in since), here)
        why = dict(carrier.rejected).get(revision, "") if carrier else ""
        return Given(step, chunk, frame, why)

    def begins(self, port: str) -> tuple[int, int]:
        """Number of the first chunk on an output port that it still has or will make, and of its first frame."""
        for chunk in (chunk for reply in self.kept for chunk in reply.chunks if chunk.port == port):
            return chunk.seq, chunk.first_frame
        return self.mark.chunks.get(port, 0), self.mark.frames.get(port, 0)


@dataclass
class TakeOver:
    """opening: how a stage was opened at first; only what must be restored asks, since a prompt is encoded for it.
    lines: the control log. received: by graph output, the frames that the client says it has, where it is known."""

    record: SessionRecord
    epoch: Epoch
    graph: Graph
    opening: Callable[[str], Awaitable[OpenRequest]]
    durability: Durability
    clock: Clock
    config: RecoveryConfig
    found: Sequence[Manifest]
    lines: Sequence[ControlEntry]
    received: Mapping[str, int]
    silent: dict[str, StageHandle] = field(default_factory=dict)  # by stage, where its State was and may still be
    _placed: list[tuple[StageHandle, int]] = field(default_factory=list)

    async def stands(self) -> dict[str, Stand]:
        """Every stage on its feet, in flow order. Raises Unavailable (no room), Corrupt (what is needed is gone), with
        nothing left where it was put."""
        stands: dict[str, Stand] = {}
        try:
            for name in reversed(self.graph.order()):
                stands[name] = await self._attached(name, stands) or await self._restored(name, stands)
        except BaseException:
            limits = (self.clock, self.config.restore_s)
            leaving = (let_go(*limits, h, self.record.id, self.epoch, life) for h, life in self._placed)
            await asyncio.gather(*leaving, return_exceptions=True)
            raise
        return {name: stands[name] for name in self.graph.order()}

    async def _attached(self, name: str, behind: Mapping[str, Stand]) -> Stand | None:
        placement = self.record.placement.get(name)
        handle = await self.durability.placer.find(name, placement) if placement else None
        if placement is None or handle is None:
            return None
        try:
            work = handle.attach(self.record.id, self.epoch)
            reply = await answer(self.clock, self.config.restore_s, work, f"stage {name!r}")
        except (Unavailable, StepFailed) as error:
            log.warning("session %s: stage %s has to be restored: %s", self.record.id, name, str(error))
            if isinstance(error, StageGone):
                self.silent[name] = handle
            return None
        floor = self._floor(name, behind, reply.mark)
        return Stand(
            handle, placement, reply.description, reply.mark, reply.kept, floor, True, reply.life, self._logged(name)
        )

    async def _restored(self, name: str, behind: Mapping[str, Stand]) -> Stand:
        old = self.record.placement.get(name)
        handle, placement = await self.durability.placer.place(
            name, old.incarnation if old and name in self.silent else ""
        )
        opening = await self.opening(name)
        for life, source in enumerate(self._sources(name, behind), start=1):
            self._placed.append((handle, life))
            try:
                work = handle.restore(RestoreRequest(opening, life, source))
                reply = await answer(self.clock, self.config.restore_s, work, f"stage {name!r}")
            except Corrupt as error:
                if source is None or isinstance(error, Mismatch):
                    raise
                log.error("session %s: checkpoint %s can't be used: %s", self.record.id, source.path, str(error))
                continue
            floor = self._floor(name, behind, reply.mark)
            placement = replace(placement, incarnation=reply.incarnation)
            about = (handle, placement, reply.description, reply.mark, (), floor)
            return Stand(*about, lives=False, life=life, logged=self._logged(name))
        first = {output: mark.emitted for output, mark in self.record.ports.items()}
        raise Lost(
            f"stage {name!r} is lost: no checkpoint can be used, and what its first steps carried is gone;"
            f" the first frames that were not made yet are {first}"
        )

    def _sources(self, name: str, behind: Mapping[str, Stand]) -> list[Manifest | None]:
        """Checkpoints to try; at last the beginning, where it is known what all steps carried."""
        known: list[Manifest | None] = [*self._usable(name, behind)]
        if any(at.stage == name for at in self.graph.inputs.values()):  # what its client was told to forget is gone
            least = self._early(name, behind).floor(math.inf).seq
            fit = [m for m in known if m and m.mark.seq >= least and not self._is_acked(name, m.mark)]
            return [*fit, *([] if least or self._is_acked(name, Mark()) else [None])]
        return known if self._logged(name) else [*known, None]

    def _logged(self, name: str) -> int:
        """The first step of a stage from which on the log has every line."""
        return self.record.folded_to.get(name, 0)

    def _usable(self, name: str, behind: Mapping[str, Stand]) -> list[Manifest]:
        """Newest first: those before which nobody behind the stage wants anything.

        If all are later, the stage begins at step 0; only where that is known to be forgotten, at the oldest there is:
        the record may be behind with what the client has acked.
        """
        fit = list(reversed(self._early(name, behind).manifests))
        ports = [edge.target for edge in self.graph.feeders(name).values()]
        ports += [at for at in self.graph.inputs.values() if at.stage == name]
        is_forgotten = any(self.record.forgotten.get(str(at), 0) for at in ports)
        return fit or list(self._book(name).manifests[: int(is_forgotten)])

    def _floor(self, name: str, behind: Mapping[str, Stand], mark: Mark) -> Mark:
        """One that stands at `mark` may begin again here and no earlier: no earlier than under the runner before."""
        early = self._early(name, behind)
        floor = early.floor(math.inf)  # damaged ones count: they did under the runner before
        floor = floor if floor.seq <= mark.seq else early.floor(mark.seq - 1)
        if self._is_acked(name, floor):  # a damaged one that counted is set aside since
            floor = next((m.mark for m in self._book(name).manifests if not self._is_acked(name, m.mark)), mark)
        if floor.seq >= self._logged(name):
            return floor
        known = self._book(name).usable(mark.seq - 1)
        return known[-1].mark if known else mark

    def acked(self, stands: Mapping[str, Stand]) -> dict[str, int]:
        """By input of the graph, the chunks that its client is told to forget, as the record keeps them."""
        return {str(at): stands[at.stage].floor.consumed.get(at.port, 0) for at in self.graph.inputs.values()}

    def _is_acked(self, name: str, mark: Mark) -> bool:
        """Whether a client was told to forget what the stage would need from there on."""
        inputs = [at for at in self.graph.inputs.values() if at.stage == name]
        return any(mark.consumed.get(at.port, 0) < self.record.forgotten.get(str(at), 0) for at in inputs)

    def _early(self, name: str, behind: Mapping[str, Stand]) -> CheckpointBook:
        """Checkpoints before which nobody behind the stage wants anything."""
        return CheckpointBook(m for m in self._book(name).manifests if self._is_early(m.mark, name, behind))

    def _is_early(self, mark: Mark, name: str, behind: Mapping[str, Stand]) -> bool:
        edges = [edge for edge in self.graph.edges if edge.source.stage == name]
        fits = all(mark.chunks.get(e.source.port, 0) <= _wanted(e, behind) for e in edges)
        outputs = {n: at.port for n, at in self.graph.outputs.items() if at.stage == name}
        return fits and all(self._frames(output, port, mark) <= self._had(output) for output, port in outputs.items())

    def _frames(self, output: str, port: str, mark: Mark) -> int:
        """Frames of a graph output that its stage had made there: those after the session's end were cut off."""
        return self.cut(output, mark.chunks.get(port, 0), mark.frames.get(port, 0))

    def cut(self, output: str, chunks: int, frames: int) -> int:
        """As many of so many frames in so many chunks of a graph output as are known to be the session's."""
        noted = self.record.ports.get(output)
        return min(frames, noted.emitted) if noted and chunks <= noted.chunks else frames

    def _had(self, output: str) -> float:
        """Frames of a graph output that nobody will ask for: its client has them for certain, or reads another one."""
        noted = self.record.ports.get(output)
        had = max(noted.acked if noted else 0, self._received(output))
        if self._is_first(output) and 0 < self.record.max_frames <= had:
            return math.inf  # what its stage made beyond the last frame is the session's no more
        return max(had, noted.emitted) if noted and not noted.is_read else had

    def _received(self, output: str) -> int:
        """As the client says, which can't have more frames than there are."""
        says, most = self.received.get(output, 0), self.record.max_frames
        return min(says, most) if most and self._is_first(output) else says

    def _is_first(self, output: str) -> bool:
        return output == next(iter(self.graph.outputs))

    def _book(self, name: str) -> CheckpointBook:
        """Checkpoints after which it is known what the steps carried."""
        known = (m for m in self._lasting if m.stage == name and m.mark.seq >= self._logged(name))
        return CheckpointBook(m for m in known if m.mark.seen >= self._given(name, m.mark.seq))

    def _given(self, name: str, before: int) -> int:
        """The newest control that a stage was given before a step, by the log: a State that was not given it is of a
        life in which that step was made otherwise, and that nobody saw anything of."""
        return max((e.revision for e in self.lines if e.stage == name and 0 <= e.step < before), default=0)

    async def settle(self, flow: Flow, stands: Mapping[str, Stand]) -> None:
        """Sets an empty flow to where its stages stand, and takes up the control log and the checkpoints."""
        for at, edge in flow.edges.items():
            stand = stands[at.stage]
            base, frame = stand.floor.consumed.get(at.port, 0), stand.floor.consumed_frames.get(at.port, 0)
            edge.begin_at(base, frame, stand.mark.consumed.get(at.port, 0), stand.mark.consumed_frames.get(at.port, 0))
        for name, ring in flow.audience.rings.items():
            at, noted = self.graph.outputs[name], self.record.ports.get(name)
            chunk, frame = stands[at.stage].begins(at.port)
            is_ending = self.record.state is SessionState.DRAINING  # all that was made then is wanted
            had = (noted.emitted if is_ending else noted.sent) if noted else 0
            sent = max(had, self._received(name))
            ring.begin_at(chunk, self.cut(name, chunk, flow.cut(ring, frame)), sent)
        for name, driver in flow.drivers.items():
            stand = stands[name]
            driver.life = stand.life
            driver.log.forget(max(stand.floor.seq, stand.logged))
            driver.resume(stand.mark, stand.kept)
        for edge in flow.edges.values():
            edge.found()

        def given(stage: str, revision: int) -> Given | None:
            lives = flow.drivers[stage].life == stands[stage].life  # else it was made anew since
            return stands[stage].given(revision) if lives else None

        await flow.desk.go_on(self.lines, {name: driver.log for name, driver in flow.drivers.items()}, given)
        for name, driver in flow.drivers.items():
            await driver.log_decisions(stands[name].kept)
        assert flow.saver is not None
        flow.saver.follow(flow.drivers, self.kept(stands))
        flow.saver.drop(self.dropped(stands))

    def kept(self, stands: Mapping[str, Stand]) -> list[Manifest]:
        """The checkpoints that stay. Those of steps that are still to be made are of another life: those steps may come
        to carry other controls now, unless somebody had what they made."""
        return [m for m in self._lasting if m.mark.seq <= stands[m.stage].mark.seq]

    @property
    def _lasting(self) -> list[Manifest]:
        """Without those that the runner before may be about to delete."""
        return [m for m in self.found if m.path not in self.record.dropped]

    def dropped(self, stands: Mapping[str, Stand]) -> list[Manifest]:
        """Those that do not, and what the runner before has not come to delete."""
        kept = {manifest.path for manifest in self.kept(stands)}
        return [m for m in self.found if m.path not in kept]


def _wanted(edge: Edge, behind: Mapping[str, Stand]) -> int:
    """The first chunk that the stage behind an edge may ask for again."""
    return behind[edge.target.stage].floor.consumed.get(edge.target.port, 0)
