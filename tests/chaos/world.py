"""Everything that can be broken in a chaos run, and how it is put in order again."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import redis

from riverrun.protos import riverrun_pb2 as pb

from .nodes import Nodes
from .processes import reap, until
from .services import Gateway, Setup, Store
from .viewers import Viewer

START_S = 300.0


class NotNow(Exception):
    """The fault can't be made in the state things are in; another is taken."""


class World:
    """viewers: who streams; set once what they expect is known."""

    def __init__(self, folder: Path, seed: int, setup: Setup) -> None:
        self.folder, self.random, self.setup = folder, random.Random(seed), setup
        self.nodes = Nodes(folder, 3, setup.models)
        self.store = Store(folder / "store")
        config = self.setup.write(self.store, self.nodes.address)
        self.gateways = [Gateway(config, folder / f"gateway{n}.log") for n in range(2)]
        self.viewers: Sequence[Viewer] = ()
        self.await_order(actors=2)

    # ---- what there is ----

    def status(self) -> pb.StatusResponse | None:
        for gateway in self.gateways:
            if gateway.runs and (found := gateway.status()):
                return found
        return None

    def actors(self, model: str = "") -> list[pb.ActorStatus]:
        """Stage actors that are up."""
        found = self.status()
        return [a for a in (found.actors if found else ()) if a.up and a.pid and model in ("", a.model)]

    def records(self) -> dict[Viewer, dict]:
        """The stored record of the session of each viewer that has one."""
        with contextlib.suppress(redis.RedisError):
            sessions = [(viewer, viewer.session) for viewer in self.viewers]
            return {v: record for v, session in sessions if session and (record := self.store.record(session))}
        return {}

    def on_actors(self, incarnations: Collection[str]) -> list[Viewer]:
        """Whose session has a stage there."""
        found = self.records().items()
        return [v for v, r in found if any(p["incarnation"] in incarnations for p in r["placement"].values())]

    def at_gateway(self, gateway: Gateway) -> list[Viewer]:
        return [v for v, r in self.records().items() if self.store.gateway_address(r["gateway"]) == gateway.address]

    def host_of(self, viewer: Viewer) -> Gateway:
        for gateway in self.gateways:
            if gateway.runs and viewer in self.at_gateway(gateway):
                return gateway
        raise NotNow(f"nobody has the session of {viewer.workload.name} just now")

    def log_says(self, text: str) -> bool:
        """Whether a line of a gateway's log holds it."""
        return any(text in path.read_text(errors="replace") for path in self.folder.glob("gateway*.log"))

    # ---- order ----

    def mend(self) -> None:
        """Starts anew what was killed; returns before it works again."""
        reap()
        self.nodes.refill()
        for gateway in self.gateways:
            if not gateway.runs:
                gateway.start()

    def is_in_order(self, actors: int = 2) -> bool:
        """Both gateways answer, and each model has so many actors."""
        return all(g.ready() for g in self.gateways) and all(len(self.actors(m)) >= actors for m in self.setup.models)

    def await_order(self, actors: int = 1) -> None:
        until(lambda: self.is_in_order(actors), START_S, "two gateways and their actors work")

    def rebuild(self) -> None:
        """After the head died: a new cluster, on which the gateways are started as before."""
        for gateway in self.gateways:
            gateway.kill()
        self.nodes.start()
        self.setup.write(self.store, self.nodes.address)
        self.mend()

    def close(self) -> None:
        for gateway in self.gateways:
            gateway.kill()
        self.store.kill()


def pause(seconds: float) -> None:
    """Part of a fault: how long something stays away."""
    time.sleep(seconds)
