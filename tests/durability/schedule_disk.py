"""Where checkpoints lie in a schedule: in memory, behind messages; it may be full, away, or give back damaged blobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from schedule_store import in_time, now
from schedule_world import Party, World

from riverrun.models.base import Unavailable
from riverrun.store.checkpoints import Manifest
from riverrun.store.memory import MemoryBlobs


class Disk(MemoryBlobs, Party):
    """late: blobs that were written for a session after all of it was deleted. is_left: what was to be deleted with the
    session is still there, for the reaper."""

    def __init__(self, world: World):
        MemoryBlobs.__init__(self, now=world.clock.now)
        Party.__init__(self, "the blob store")
        self.world = world
        self.forgotten = self.is_left = False
        self.late: set[str] = set()

    def write(self, manifest: Manifest, tensors: Any) -> Manifest:
        self.must_be_here(self.world.loop._now)
        placed = super().write(manifest, tensors)
        if self.forgotten:
            self.late.add(placed.path)
        return placed

    def read(self, manifest: Manifest) -> dict[str, np.ndarray]:
        self.must_be_here(self.world.loop._now)
        if manifest.path in self.damaged:
            self.world.struck["damaged blob found"] += 1
        return super().read(manifest)

    def by(self, gateway: Any) -> Shelf:
        return Shelf(self, gateway)


class Shelf:
    """Blobs as one gateway sees them."""

    def __init__(self, disk: Disk, gateway: Any):
        self._disk, self._gateway = disk, gateway

    async def _ask(self, what: str, work: Callable[[], Any]) -> Any:
        world = self._disk.world
        return await in_time(world, 60.0, world.ask(self._gateway, f"blobs.{what}", self._disk, work))

    async def manifests(self, session: str) -> list[Manifest]:
        return await self._ask("manifests", lambda: now(self._disk.manifests(session)))

    async def max_epoch(self, session: str) -> int:
        return await self._ask("max_epoch", lambda: now(self._disk.max_epoch(session)))

    async def age_s(self, session: str, at: float) -> float:
        return await self._ask("age_s", lambda: now(self._disk.age_s(session, at)))

    async def sessions(self) -> list[str]:
        return await self._ask("sessions", lambda: now(self._disk.sessions()))

    async def sweep(self, session: str, before: float) -> None:
        await self._ask("sweep", lambda: now(self._disk.sweep(session, before)))

    async def delete(self, manifest: Manifest) -> None:
        try:
            await self._ask("delete", lambda: now(self._disk.delete(manifest)))
        except Unavailable:
            self._disk.world.struck["blob left to the session's end"] += 1
            raise
        self._disk.world.struck["checkpoint deleted"] += 1

    async def forget(self, session: str) -> None:
        def work() -> None:
            self._disk.forgotten = True
            now(self._disk.forget(session))

        try:
            await self._ask("forget", work)
        except Unavailable:
            self._disk.world.struck["blobs left to the reaper"] += 1
            self._disk.is_left = True
            raise
