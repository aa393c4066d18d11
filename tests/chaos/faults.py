"""What can go wrong, each as a small class: `inject` does it and says who is hit."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from riverrun.protos import riverrun_pb2 as pb

from .nodes import Node
from .processes import find, kill, until
from .services import Gateway
from .viewers import Viewer
from .world import NotNow, World, pause

FULL_BYTES = 64 << 10


@dataclass
class Blow:
    """A fault that was made. at: when. over: when the last of it struck, if later. victims: viewers whose sessions are
    hit. is_warm: another actor of the model (or another gateway) was running. damaged: blobs that must not be used."""

    what: str
    victims: Sequence[Viewer]
    is_warm: bool = True
    at: float = field(default_factory=time.monotonic)
    over: float = 0.0
    damaged: Sequence[str] = ()


class Fault(Protocol):
    @property
    def kind(self) -> str:
        """Its row in the table."""

    def inject(self, world: World) -> Blow:
        """Raises NotNow."""


class KillActor:
    kind = "stage actor killed"

    def inject(self, world: World) -> Blow:
        return kill_actor(world, busy_actor(world))


class KillModel:
    kind = "all actors of a model killed"

    def inject(self, world: World) -> Blow:
        """So that none is left to go on at once."""
        model = busy_actor(world).model
        actors = world.actors(model)
        blow = Blow(f"actors of {model}", world.on_actors([actor.incarnation for actor in actors]), is_warm=False)
        kill(actor.pid for actor in actors)
        return blow


class KillGateway:
    kind = "gateway killed"

    def inject(self, world: World) -> Blow:
        return kill_gateway(world, hosted(world))


class KillNode:
    kind = "node killed"

    def inject(self, world: World) -> Blow:
        node, victims, is_warm = busy_node(world)
        blow = Blow(f"node {node.id[:8]}", victims, is_warm)
        world.nodes.kill(node)
        return blow


class FreezeNode:
    kind = "zombie node"

    def inject(self, world: World) -> Blow:
        """Its raylet stops until the cluster takes it for dead, then goes on."""
        node, victims, is_warm = busy_node(world)
        blow = Blow(f"raylet of {node.id[:8]} stopped", victims, is_warm)
        world.nodes.freeze(node)
        until(lambda: not world.nodes.is_alive(node), 60, "the cluster takes a frozen node for dead")
        pause(world.random.uniform(0, 2))
        world.nodes.thaw(node)
        pause(2.0)
        world.nodes.lose(node)
        blow.over = time.monotonic()
        return blow


class KillController:
    kind = "controller killed"

    def inject(self, world: World) -> Blow:
        found = find("ray::Controller")
        if not found:
            raise NotNow("there is no controller just now")
        blow = Blow("controller", list(world.records()))
        kill(process.pid for process in found)
        return blow


class KillHead:
    kind = "head killed"

    def inject(self, world: World) -> Blow:
        """The whole Ray cluster is lost with it; a new one is started, and gateways at the old addresses."""
        blow = Blow("head and its cluster", list(world.records()), is_warm=False)
        world.nodes.kill_all()
        world.rebuild()
        return blow


@dataclass
class RestartStore:
    """keeps: "all", "nothing", or all but the "last writes". then: what is done once it is back."""

    keeps: str

    @property
    def kind(self) -> str:
        return {"all": "Redis restarted", "nothing": "Redis restarted empty", "last": "Redis lost its last writes"}[
            self.keeps
        ]

    def inject(self, world: World) -> Blow:
        blow = Blow("store", list(world.records()))
        restart(world, self.keeps)
        return blow


@dataclass
class RestartStoreThenGateway:
    """The gateway dies when the store has been told again of every session (keeps "nothing"), or at once ("last")."""

    keeps: str

    @property
    def kind(self) -> str:
        return {"nothing": "Redis empty, then gateway killed", "last": "last writes lost, gateway killed"}[self.keeps]

    def inject(self, world: World) -> Blow:
        streaming, had = set(world.records()), hosted(world)  # the store may forget whose they are
        restart(world, self.keeps)
        if self.keeps == "nothing":
            until(lambda: streaming <= set(world.records()), 60, "the runners tell an empty store of their sessions")
        return kill_gateway(world, had)


class StoreAwayAndActor:
    kind = "Redis away, stage actor killed"

    def inject(self, world: World) -> Blow:
        actor = busy_actor(world)
        victims = world.on_actors([actor.incarnation])
        world.store.kill()
        blow = kill_actor(world, actor, victims)
        pause(world.random.uniform(2, 5))
        world.store.start()
        return blow


@dataclass
class DamageBlob:
    """The newest checkpoint of a stage is damaged, and its actor killed."""

    how: str

    @property
    def kind(self) -> str:
        return f"blob {self.how}, actor killed"

    def inject(self, world: World) -> Blow:
        actor = busy_actor(world)
        victims = world.on_actors([actor.incarnation])
        blobs = [blob for viewer in victims for blob in newest_blobs(world, viewer, actor.incarnation)]
        if not blobs:
            raise NotNow("no stage has a checkpoint yet")
        for blob in blobs:
            self._damage(world, blob)
        blow = kill_actor(world, actor, victims)
        blow.damaged = [str(blob.relative_to(world.setup.blobs)) for blob in blobs]
        return blow

    def _damage(self, world: World, blob: Path) -> None:
        size = blob.stat().st_size
        if self.how == "truncated":
            os.truncate(blob, world.random.randrange(size))
            return
        with blob.open("r+b") as file:
            file.seek(at := world.random.randrange(64, size - 64))
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << world.random.randrange(8)]))


class FillBlobs:
    kind = "blob store full, actor killed"

    def inject(self, world: World) -> Blow:
        """No file of the actor may grow beyond some kilobytes, so no checkpoint is written; then it dies."""
        actor = busy_actor(world, "mortal")
        resource.prlimit(actor.pid, resource.RLIMIT_FSIZE, (FULL_BYTES, resource.RLIM_INFINITY))
        pause(4.0)
        return kill_actor(world, actor)


def restart(world: World, keeps: str) -> None:
    pause(world.random.uniform(0, 1))
    world.store.kill()
    if keeps == "nothing":
        world.store.wipe()
    elif keeps == "last":
        world.store.lose_tail(world.random.randrange(200, 20_000))
    pause(world.random.uniform(0, 3))
    world.store.start()


def busy_actor(world: World, model: str = "") -> pb.ActorStatus:
    """One that has sessions of viewers."""
    busy = [actor for actor in world.actors(model) if world.on_actors([actor.incarnation])]
    if not busy:
        raise NotNow("no actor has a session")
    return world.random.choice(busy)


def hosted(world: World) -> dict[Gateway, list[Viewer]]:
    """Whose sessions each gateway has."""
    return {gateway: world.at_gateway(gateway) for gateway in world.gateways if gateway.runs}


def kill_gateway(world: World, had: Mapping[Gateway, Sequence[Viewer]]) -> Blow:
    """One of those that have sessions, by `had`."""
    busy = [gateway for gateway, viewers in had.items() if viewers]
    if not busy:
        raise NotNow("no gateway has a session")
    gateway = world.random.choice(busy)
    is_warm = any(other.status() for other in had if other is not gateway)
    blow = Blow(f"gateway {gateway.address}", had[gateway], is_warm)
    gateway.kill()
    return blow


def kill_actor(world: World, actor: pb.ActorStatus, victims: Sequence[Viewer] | None = None) -> Blow:
    others = [other for other in world.actors(actor.model) if other.pid != actor.pid]
    hit = world.on_actors([actor.incarnation]) if victims is None else victims
    blow = Blow(f"actor {actor.actor}", hit, is_warm=bool(others))
    kill([actor.pid])
    return blow


def busy_node(world: World) -> tuple[Node, list[Viewer], bool]:
    """A node with sessions, whose they are, and whether each model it runs has an actor elsewhere."""
    actors = world.actors()
    for node in world.random.sample(world.nodes.workers, len(world.nodes.workers)):
        here = [actor for actor in actors if actor.node == node.id]
        victims = world.on_actors([actor.incarnation for actor in here])
        if victims:
            elsewhere = {actor.model for actor in actors if actor.node != node.id}
            return node, victims, all(actor.model in elsewhere for actor in here)
    raise NotNow("no node has a session")


def newest_blobs(world: World, viewer: Viewer, incarnation: str) -> list[Path]:
    """Of the viewer's stages on that actor."""
    placement = world.records().get(viewer, {}).get("placement", {})
    stages = [stage for stage, place in placement.items() if place["incarnation"] == incarnation]
    folders = [Path(world.setup.blobs, viewer.session, stage) for stage in stages]
    whole = [sorted(p.with_suffix(".blob") for p in folder.glob("*.json")) for folder in folders]
    return [blobs[-1] for blobs in whole if len(blobs) > 1 and blobs[-1].exists()]
