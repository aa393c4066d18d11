"""Checkpoints as files, on whatever file system pyarrow can open.

`<session>/<stage>/<epoch>-<seq>-<random>.blob` holds the tensors, `….json` beside it the manifest. A blob without a
manifest does not exist for any reader: only the manifest is renamed into place, after the blob is on disk, and it is
deleted first. What is left without one (its writer died) is removed by `sweep`. A checkpoint found to be damaged has
its manifest renamed to `….damaged`: no reader is told of it again, and it stays as evidence as long as its session.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import fs

from riverrun.models.base import BadRequest, Corrupt, Unavailable
from riverrun.store.blob_format import blob_size, layout, read_blob, seal, unseal, write_blob
from riverrun.store.checkpoints import Damaged, Manifest

log = logging.getLogger(__name__)

_PART = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]+")
_NAME = re.compile(r"(\d{8,})-\d{12,}-[0-9a-f]+\.(blob|json|damaged)")
_TEMPORARY, _DAMAGED = ".tmp", ".damaged"
_FAILURES = (OSError, pa.ArrowException)


class BlobStore:
    """Checkpoints below one root. Holds nothing but the root: any thread, any process may use it.

    Raises Unavailable where the file system fails; what is stored stays as it was.
    """

    def __init__(self, uri: str, *, shared: bool = False, filesystem: fs.FileSystem | None = None) -> None:
        """uri: a folder's path, or any URI pyarrow knows (`s3://bucket/folder`, `gs://…`, `file:///…`).

        shared: says that other nodes see the same under this path (a network mount). filesystem: an open one, of which
        `uri` is then a path. Raises BadRequest with one line for what can't be opened.
        """
        self.uri = uri
        try:
            self._fs, self._root = (filesystem, uri) if filesystem else _open(uri)
            self._is_local = isinstance(self._fs, fs.LocalFileSystem)
            if self._is_local:
                self._fs.create_dir(self._root, recursive=True)
            elif self._fs.get_file_info(self._root).type == fs.FileType.File:
                raise BadRequest(f"checkpoints need a folder, {uri} is a file")
        except _FAILURES as error:
            raise BadRequest(f"checkpoints can't be kept at {uri!r}: {_first_line(error)}") from error
        self.is_shared = shared or self._fs.type_name not in ("local", "mock")

    # -- one checkpoint --------------------------------------------------------------------------------------

    def write(self, manifest: Manifest, tensors: Mapping[str, np.ndarray]) -> Manifest:
        """Stores a checkpoint, whole or not at all; gives the manifest with `path` and `tensors` filled in.

        Raises BadRequest for a tensor that isn't numbers, or a session or stage that can't name a folder.
        """
        folder = f"{_part('session', manifest.session)}/{_part('stage', manifest.stage)}"
        name = f"{manifest.epoch:08d}-{manifest.mark.seq:012d}-{secrets.token_hex(4)}.blob"
        path, entries = f"{folder}/{name}", layout(tensors)
        with _failing("write", path), self._removing(_beside(path), path):
            self._make(folder)
            with self._fs.open_output_stream(self._at(path), compression=None) as stream:
                entries = write_blob(stream, entries, tensors)
            self._sync(path)
            done = dataclasses.replace(manifest, path=path, tensors=entries)
            self._place(_beside(path), seal(done))
        return done

    def manifest(self, path: str) -> Manifest:
        """That of the blob at `path`. Raises Corrupt if it is missing or changed."""
        try:
            return self._manifest(_beside(path))
        except FileNotFoundError as error:
            raise Corrupt(f"the manifest of {path} is missing") from error

    def read(self, manifest: Manifest) -> dict[str, np.ndarray]:
        """The tensors, each owning its memory. Raises Damaged saying what of the blob is missing or changed; it is set
        aside then."""
        with _failing("read", manifest.path), self._judging(_beside(manifest.path)):
            try:
                file = self._fs.open_input_file(self._at(manifest.path))
            except FileNotFoundError as error:
                raise Damaged(f"the blob {manifest.path} is missing") from error
            with file:
                return read_blob(file, manifest)

    def delete(self, manifest: Manifest) -> None:
        """Removes a checkpoint; one that is gone already is no error."""
        with _failing("delete", manifest.path):
            self._remove(_beside(manifest.path))
            self._remove(manifest.path)

    # -- a session -------------------------------------------------------------------------------------------

    def manifests(self, session: str) -> list[Manifest]:
        """All there are, by ascending `order`. One that can't be read is left out, with a warning."""
        found = []
        for path in self._times(session):
            if not path.endswith(".json"):
                continue
            try:
                found.append(self._manifest(path))
            except FileNotFoundError:
                continue  # deleted since it was listed
            except Corrupt as error:
                log.warning("checkpoint %s is left out: %s", path, error)
        return sorted(found, key=lambda manifest: (manifest.order, manifest.path))

    def max_epoch(self, session: str) -> int:
        """The highest epoch that ever wrote here, unfinished blobs counted; 0 if there is none."""
        names = (_NAME.fullmatch(path.rpartition("/")[2]) for path in self._times(session))
        return max((int(name[1]) for name in names if name), default=0)

    def age_s(self, session: str, now: float) -> float:
        """Seconds since something was last written. now: seconds since 1970. Infinite if nothing is there."""
        return now - max(self._times(session).values(), default=-math.inf)

    def sweep(self, session: str, before: float = math.inf) -> int:
        """Removes what writers left that died: blobs without a manifest, unfinished manifests. Returns how many.

        before: only files last written before this time (seconds since 1970), since a blob under way has no manifest
        yet; without it nobody may be writing.
        """
        times = self._times(session)
        stray = [path for path in _stray(times) if times[path] < before]
        with _failing("sweep", session):
            for path in stray:
                self._remove(path)
        return len(stray)

    def delete_session(self, session: str) -> None:
        """Removes all of a session; a session that isn't there is no error."""
        with _failing("delete", session):
            for path in self._times(session):
                if path.endswith(".json"):
                    self._remove(path)
            with suppress(FileNotFoundError):
                self._fs.delete_dir(self._at(session))

    def sessions(self) -> Iterator[str]:
        """Those that have a folder here."""
        with _failing("list", self.uri):
            infos = self._fs.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        yield from (info.base_name for info in infos if info.type == fs.FileType.Directory)

    def check(self) -> None:
        """Raises Corrupt unless every blob has a manifest and every manifest a blob of its size (while none writes)."""
        for session in self.sessions():
            if stray := _stray(self._times(session)):
                raise Corrupt(f"without a manifest: {', '.join(sorted(stray))}")
            for manifest in self.manifests(session):
                with _failing("check", manifest.path):
                    found = self._fs.get_file_info(self._at(manifest.path))
                if found.type != fs.FileType.File or found.size != blob_size(manifest):
                    raise Corrupt(f"the blob {manifest.path} is missing or of another size")

    # -- files, named by their path below the root -----------------------------------------------------------

    def _at(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"

    def _times(self, session: str) -> dict[str, float]:
        """Files of a session, and when each was last written."""
        selector = fs.FileSelector(self._at(_part("session", session)), recursive=True, allow_not_found=True)
        with _failing("list", session):
            infos = [info for info in self._fs.get_file_info(selector) if info.type == fs.FileType.File]
        return {info.path[len(self._root) :].lstrip("/"): (info.mtime_ns or 0) / 1e9 for info in infos}

    def _manifest(self, path: str) -> Manifest:
        """Raises FileNotFoundError, or Corrupt."""
        with _failing("read", path, but=FileNotFoundError), self._fs.open_input_file(self._at(path)) as file:
            data = file.read()
        with self._judging(path):
            manifest = unseal(data)
        if _beside(manifest.path) != path:
            raise Corrupt(f"the manifest at {path} is that of {manifest.path}")
        return manifest

    @contextmanager
    def _judging(self, path: str) -> Iterator[None]:
        """Sets the checkpoint of the manifest at `path` aside if what follows finds it damaged."""
        try:
            yield
        except Damaged as error:
            try:
                self._fs.move(self._at(path), self._at(path.removesuffix(".json") + _DAMAGED))
            except FileNotFoundError:
                pass  # it was deleted, or set aside, since it was listed
            except _FAILURES as failure:
                log.warning("damaged checkpoint %s can't be set aside: %s", path, _first_line(failure))
            else:
                log.error("checkpoint %s is set aside: %s", path, error)
            raise

    def _place(self, path: str, data: bytes) -> None:
        """A small file, there whole or not at all."""
        temporary = path + _TEMPORARY
        with self._removing(temporary):
            with self._fs.open_output_stream(self._at(temporary), compression=None) as stream:
                stream.write(data)
            self._sync(temporary)
            self._fs.move(self._at(temporary), self._at(path))
        self._sync(path.rpartition("/")[0])

    def _make(self, folder: str) -> None:
        if self._fs.get_file_info(self._at(folder)).type != fs.FileType.Directory:
            self._fs.create_dir(self._at(folder), recursive=True)
            self._sync(folder.rpartition("/")[0])
            self._sync("")

    def _sync(self, path: str) -> None:
        """Waits until a file, or a folder's list of names, is on disk. Object stores are durable once closed."""
        if self._is_local:
            handle = os.open(self._at(path), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.delete_file(self._at(path))

    @contextmanager
    def _removing(self, *paths: str) -> Iterator[None]:
        """Files that go again if what follows fails."""
        try:
            yield
        except BaseException:
            for path in paths:
                with suppress(*_FAILURES):
                    self._remove(path)
            raise


def _open(uri: str) -> tuple[fs.FileSystem, str]:
    if "://" in uri:
        return fs.FileSystem.from_uri(uri)
    return fs.LocalFileSystem(), str(Path(uri).expanduser().resolve())


def _part(what: str, name: str) -> str:
    """A part of a path. Raises BadRequest for a name that could lead elsewhere."""
    if not _PART.fullmatch(name):
        raise BadRequest(f"a {what} is named by letters, digits, '_', '.' and '-' here, got {name!r}")
    return name


def _beside(path: str) -> str:
    """Of a blob's manifest."""
    return path.removesuffix(".blob") + ".json"


def _stray(paths: Collection[str]) -> list[str]:
    """Blobs without a manifest, and manifests not in place."""
    known = {path.rpartition(".")[0] for path in paths if path.endswith((".json", _DAMAGED))}
    blobs = [path for path in paths if path.endswith(".blob") and path.rpartition(".")[0] not in known]
    return blobs + [path for path in paths if path.endswith(_TEMPORARY)]


@contextmanager
def _failing(doing: str, what: str, *, but: type[OSError] | tuple[()] = ()) -> Iterator[None]:
    """Raises Unavailable where the file system fails. but: an error that is let through."""
    try:
        yield
    except but:
        raise
    except _FAILURES as error:
        raise Unavailable(f"can't {doing} checkpoint {what}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
