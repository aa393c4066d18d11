"""What `riverrun doctor` finds out about checkpoints: where they lie, whether that can be written, and who reads it."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from riverrun.client.finding import Finding
from riverrun.configs import ServiceConfig
from riverrun.models.base import BadRequest, Corrupt, Unavailable

GIB = 2**30
NEEDED_FREE = 2 * GIB
"""A session of a real model holds a quarter to one GiB, and two checkpoints of it are kept."""
WHAT = "checkpoints"


@dataclass(frozen=True)
class BlobFacts:
    """uri: where they would lie ("": in a temporary folder). fault: why nothing can be written there ("": it can).
    free: bytes, None where nobody tells. is_shared: whether other nodes read the same. is_cluster: whether the service
    joins a Ray that may have others. keeps_store: whether its store outlives it."""

    uri: str
    fault: str
    free: int | None
    is_shared: bool
    is_cluster: bool
    keeps_store: bool


def checkpoints(config: ServiceConfig) -> list[Finding]:
    """Writes a few bytes where checkpoints would lie, reads them back and deletes them."""
    if not config.checkpoints.chunks:
        return [Finding(WHAT, "note", "none are kept", "a session ends with its actor: checkpoints.chunks=8")]
    return judged(_facts(config))


def judged(facts: BlobFacts) -> list[Finding]:
    """All there is to say: pure. What is in order takes one line."""
    where = facts.uri or "a temporary folder"
    if facts.fault:
        return [Finding(WHAT, "missing", f"{where}: {facts.fault}", "checkpoints.uri=FOLDER, or a URI all nodes reach")]
    space = "" if facts.free is None else f", {facts.free / GIB:.1f} GiB free"
    found = [Finding(WHAT, "ok", f"{where}{space}")]
    if facts.free is not None and facts.free < NEEDED_FREE:
        advice = f"when it is full sessions go on unsaved: {NEEDED_FREE / GIB:.0f} GiB or more"
        found.append(Finding("checkpoints space", "note", f"{facts.free / 2**20:.0f} MiB free", advice))
    if facts.is_cluster and not facts.is_shared:
        advice = "refused where Ray has several nodes: name a URI that all reach, or say checkpoints.shared=true"
        found.append(Finding("checkpoints reach", "note", "a folder of this node", advice))
    if facts.keeps_store and not facts.uri:
        advice = "the store outlives this service, they do not: checkpoints.uri=FOLDER"
        found.append(Finding("checkpoints stay", "note", "gone when the service ends", advice))
    return found


def _facts(config: ServiceConfig) -> BlobFacts:
    keep = config.checkpoints
    uri = keep.uri or (str(Path(config.data_dir).expanduser() / "checkpoints") if config.data_dir else "")
    is_cluster = (config.ray_address or os.environ.get("RAY_ADDRESS", "local")) != "local"
    keeps_store = bool(config.redis_url or os.environ.get("REDIS_URL") or config.data_dir)
    is_remote = "://" in uri and not uri.startswith("file://")
    folder = _existing(Path((uri or tempfile.gettempdir()).removeprefix("file://")))
    fault = _written(uri, keep.shared) if is_remote else _local_fault(uri, folder, keep.shared)
    free = None if is_remote else shutil.disk_usage(folder).free
    return BlobFacts(uri, fault, free, is_remote or keep.shared, is_cluster, keeps_store)


def _existing(path: Path) -> Path:
    """The folder, or what is there of the way to it."""
    path = path.expanduser().absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _local_fault(uri: str, there: Path, shared: bool) -> str:
    """Nothing is made that was not there: where the folder is still to come, its place is looked at."""
    if not there.is_dir():
        return f"{there} is a file"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} can't be written"
    return _written(uri, shared) if uri and there == Path(uri.removeprefix("file://")).expanduser().absolute() else ""


def _written(uri: str, shared: bool) -> str:
    """What kept a checkpoint from being written and read back; "" if nothing did."""
    from riverrun.store.blobs import BlobStore
    from riverrun.store.checkpoints import Manifest, Mark

    session = f"doctor-{secrets.token_hex(4)}"
    manifest = Manifest(session, "doctor", 1, "", "exact", Mark())
    try:
        store = BlobStore(uri, shared=shared)
        try:
            store.read(store.write(manifest, {"bytes": np.arange(16, dtype=np.uint8)}))
        finally:
            store.delete_session(session)
    except (BadRequest, Unavailable, Corrupt) as error:
        return " ".join(str(error).split())
    return ""
