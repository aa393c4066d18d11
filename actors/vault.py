"""The gateway's side of the blob store: awaited, on threads, so that a slow disk stops nobody's frames."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from riverrun.configs.durability import CheckpointConfig
from riverrun.store.blobs import BlobStore
from riverrun.store.checkpoints import Manifest


class Vault:
    """`graphs.saver.Blobs` over a `BlobStore`."""

    def __init__(self, store: BlobStore) -> None:
        self.store = store

    async def manifests(self, session: str) -> Sequence[Manifest]:
        return await asyncio.to_thread(self.store.manifests, session)

    async def max_epoch(self, session: str) -> int:
        return await asyncio.to_thread(self.store.max_epoch, session)

    async def delete(self, manifest: Manifest) -> None:
        await asyncio.to_thread(self.store.delete, manifest)

    async def sessions(self) -> list[str]:
        """Those that have anything here."""
        return await asyncio.to_thread(lambda: list(self.store.sessions()))

    async def age_s(self, session: str, now: float) -> float:
        """Since something was last written. now: seconds since 1970."""
        return await asyncio.to_thread(self.store.age_s, session, now)

    async def sweep(self, session: str, before: float) -> None:
        """Removes what writers left unfinished that died."""
        await asyncio.to_thread(self.store.sweep, session, before)

    async def forget(self, session: str) -> None:
        await asyncio.to_thread(self.store.delete_session, session)


def vault_of(config: CheckpointConfig) -> Vault | None:
    """None where no checkpoints are kept."""
    return Vault(BlobStore(config.uri, shared=config.shared)) if config.uri else None
