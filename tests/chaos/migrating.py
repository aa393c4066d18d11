"""One of those that take part in a migration dies at a step of it."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc

from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos import riverrun_pb2_grpc as rpc

from .faults import Blow
from .processes import kill, until
from .services import Gateway
from .viewers import Viewer
from .world import NotNow, World

STEPS = ("prepare", "export", "restore", "commit", "after")
WHO = ("source", "target", "gateway")
MOVE_S = 60.0


@dataclass
class KillInMigration:
    """step: "prepare" (the target sets room aside), "export" (the source copies out), "restore" (the target reads it),
    "commit" (the record is being written), "after" (it is over)."""

    step: str
    who: str

    @property
    def kind(self) -> str:
        return f"{self.who} killed in migration: {self.step}"

    def inject(self, world: World) -> Blow:
        source, target, viewer, stage = _pair(world)
        gateway = world.host_of(viewer)
        victim = {"source": source.pid, "target": target.pid, "gateway": gateway.pid}[self.who]
        if self.step != "after":
            place = source if self.step == "export" else target
            order = world.setup.orders / f"{self.step}-{place.pid}"
            order.write_text(str(victim))
        hit = {*self._hit(world, source, target, gateway), viewer}
        blow = Blow(f"{stage} of {viewer.workload.name} from {source.actor} to {target.actor}", list(hit))
        said = _migrate(gateway.sessions, viewer.session, stage, target.actor)
        if self.step == "after":
            blow.at = time.monotonic()
            kill([victim])
        elif not _is_done(order):
            order.unlink()
            raise NotNow(f"the step was not reached: {said}")
        blow.what += f": {said}"
        return blow

    def _hit(self, world: World, source: pb.ActorStatus, target: pb.ActorStatus, gateway: Gateway) -> list[Viewer]:
        if self.who == "gateway":
            return world.at_gateway(gateway)
        return world.on_actors([(source if self.who == "source" else target).incarnation])


def _pair(world: World) -> tuple[pb.ActorStatus, pb.ActorStatus, Viewer, str]:
    """A stage with its actor, and another actor that could have it."""
    actors = {actor.incarnation: actor for actor in world.actors()}
    records = list(world.records().items())
    for viewer, record in world.random.sample(records, len(records)):
        for stage, place in record["placement"].items():
            source = actors.get(place["incarnation"])
            others = [a for a in actors.values() if source and a is not source and a.model == source.model]
            if source and others:
                return source, others[0], viewer, stage
    raise NotNow("no stage can be moved")


def _is_done(order: Path) -> bool:
    with suppress(TimeoutError):
        return bool(until(lambda: not order.exists(), 1.0, "the order is carried out"))
    return False


def _migrate(sessions: rpc.SessionsStub, session: str, stage: str, actor: str) -> str:
    """What came of it, in a line. Blocks until it is over."""
    request = pb.MigrateSessionRequest(session_id=session, stage=stage, actor=actor)
    try:
        sessions.Migrate(request, timeout=MOVE_S)
    except grpc.RpcError as error:
        return f"{error.code().name} {error.details()}"
    return "moved"
