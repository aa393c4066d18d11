"""Checkpoints come back as they were, or not at all: damage is found, and nothing half-written can be seen."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import logging
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import fs

from riverrun.models.base import BadRequest, Corrupt, Unavailable
from riverrun.models.snapshot import Snapshotting, to_tensors
from riverrun.store.blob_format import PIECE
from riverrun.store.blobs import BlobStore
from riverrun.store.checkpoints import Damaged, Engine, Manifest, Mark

MARK = Mark(seq=7, consumed={"frames": 3}, chunks={"out": 6}, frames={"out": 18}, ready=True, revision=2, seen=3)
TENSORS: dict[str, np.ndarray] = {
    "cache": np.arange(11, dtype=np.float32).reshape(1, 11),
    "none": np.zeros((0, 4)),
    "ids": np.arange(3),
}


def manifest(session: str = "s-1", stage: str = "generate", epoch: int = 1, seq: int = 7) -> Manifest:
    mark = dataclasses.replace(MARK, seq=seq)
    engine = Engine("longlive", "abc", "float32", "torch", 1)
    return Manifest(session, stage, epoch, "n0nce", "exact", mark, meta={"a": [1, None]}, engine=engine, created=5.0)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(str(tmp_path / "blobs"))


def paths(store: BlobStore) -> list[Path]:
    return sorted(path for path in Path(store.uri).rglob("*") if path.is_file())


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


class Held(Snapshotting):
    """A State of these tensors."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def parts(self, kind: str) -> Any:
        return {}, self._tensors


# -- round trip --------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back(store: BlobStore) -> None:
    written = store.write(manifest(), TENSORS)
    assert written.path.startswith("s-1/generate/00000001-000000000007-")
    assert store.manifests("s-1") == [written]
    assert store.manifest(written.path) == written
    assert dataclasses.replace(written, path="", tensors=()) == manifest()
    read = store.read(written)
    assert list(read) == list(TENSORS)
    assert all(same(read[name], TENSORS[name]) for name in TENSORS)
    assert all(array.flags.owndata and array.flags.writeable for array in read.values())
    store.check()


@pytest.mark.parametrize(
    "dtype",
    ["float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "int64", "int32", "int16", "int8", "uint8", "bool"],
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0, 3), (2, 3, 5)])
def test_every_dtype_of_a_state_comes_back_bit_for_bit(store: BlobStore, dtype: str, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(0, 2, (*shape, 8)).to(getattr(torch, dtype))
    taken = Held({"t": tensor, "last": tensor[..., 0]}).snapshot()
    back = to_tensors(store.read(store.write(manifest(), taken.tensors)), taken.meta["dtypes"], "cpu")
    assert back["t"].dtype == tensor.dtype
    assert torch.equal(back["t"].float(), tensor.float())
    assert back["last"].shape == shape


def test_arrays_of_any_memory_order_come_back(store: BlobStore) -> None:
    whole = np.arange(24, dtype=">i4").reshape(2, 3, 4)
    tensors = {"turned": whole.T, "strided": whole[:, ::2], "backwards": whole[::-1], "nothing": whole[:0]}
    read = store.read(store.write(manifest(), tensors))
    assert all(same(read[name], tensors[name]) for name in tensors)


def test_a_tensor_of_several_pieces_comes_back(store: BlobStore) -> None:
    big = np.random.default_rng(0).integers(0, 255, 2 * PIECE + 5, dtype=np.uint8)
    assert same(store.read(store.write(manifest(), {"big": big}))["big"], big)


def test_a_checkpoint_without_tensors_is_one(store: BlobStore) -> None:
    written = store.write(manifest(), {})
    assert store.read(store.manifest(written.path)) == {}
    store.check()


def test_objects_are_refused(store: BlobStore) -> None:
    with pytest.raises(BadRequest, match="'names' is of dtype object"):
        store.write(manifest(), {"names": np.array(["a", None])})
    assert not paths(store)


def test_writing_and_reading_hold_no_second_copy(store: BlobStore) -> None:
    big = {"big": np.ones(64 << 20, np.uint8)}
    tracemalloc.start()
    try:
        written = store.write(manifest(), big)
        peak_writing = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        read = store.read(written)
        peak_reading = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_writing < 8 << 20  # a second copy would be 64 MiB; other threads are counted too
    assert 64 << 20 <= peak_reading < 72 << 20
    assert same(read["big"], big["big"])


# -- damage ------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_and_every_lost_byte_of_a_blob_is_found(store: BlobStore) -> None:
    written = store.write(manifest(), TENSORS)
    path = Path(store.uri) / written.path
    sound = path.read_bytes()
    assert len(sound) > 64 > TENSORS["cache"].nbytes  # zeros between the tensors are looked at too
    for at, bit in itertools.product(range(len(sound)), range(8)):
        flipped = bytearray(sound)
        flipped[at] ^= 1 << bit
        path.write_bytes(flipped)
        with pytest.raises(Corrupt, match=r"tensor '(cache|none|ids)' of the blob .* has changed"):
            store.read(written)
    for length in range(len(sound)):
        path.write_bytes(sound[:length])
        with pytest.raises(Corrupt, match=f"has {length} bytes, its manifest says {len(sound)}"):
            store.read(written)
    path.write_bytes(sound + b"\0")
    with pytest.raises(Corrupt, match="its manifest says"):
        store.read(written)
    path.write_bytes(sound)
    store.read(written)


def test_every_flipped_bit_and_every_lost_byte_of_a_manifest_is_found(
    store: BlobStore, caplog: pytest.LogCaptureFixture
) -> None:
    written = store.write(manifest(), TENSORS)
    path = (Path(store.uri) / written.path).with_suffix(".json")
    sound = path.read_bytes()
    damaged = [sound[:length] for length in range(len(sound))] + [sound + b"\n"]
    for at in range(len(sound)):
        flipped = bytearray(sound)
        flipped[at] ^= 1 << at % 8
        damaged.append(bytes(flipped))
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(Corrupt, match="truncated or has changed"):
            store.manifest(written.path)
    with caplog.at_level(logging.WARNING):
        assert store.manifests("s-1") == []
    assert written.path.removesuffix(".blob") in caplog.text
    path.write_bytes(sound)
    assert store.manifests("s-1") == [written]


def test_a_damaged_checkpoint_is_set_aside_and_kept_as_evidence(store: BlobStore) -> None:
    older, newer = (store.write(manifest(seq=seq), TENSORS) for seq in (1, 2))
    blob = Path(store.uri) / newer.path
    blob.write_bytes(blob.read_bytes()[:-1])
    assert store.manifests("s-1") == [older, newer], "nobody has read it yet"
    with pytest.raises(Damaged):
        store.read(newer)
    assert store.manifests("s-1") == BlobStore(store.uri).manifests("s-1") == [older]
    with pytest.raises(Damaged):
        store.read(newer)  # by somebody who was told of it before
    assert store.sweep("s-1") == 0
    store.check()
    assert blob.exists()
    assert (blob.with_suffix(".damaged")).exists()
    blob.unlink()
    assert store.max_epoch("s-1") == 1
    store.delete_session("s-1")
    assert not paths(store)


def test_a_damaged_manifest_is_looked_at_once(store: BlobStore, caplog: pytest.LogCaptureFixture) -> None:
    written = store.write(manifest(), TENSORS)
    path = (Path(store.uri) / written.path).with_suffix(".json")
    path.write_bytes(path.read_bytes()[:-2])
    with caplog.at_level(logging.WARNING):
        assert store.manifests("s-1") == []
        assert "is set aside" in caplog.text
        caplog.clear()
        assert store.manifests("s-1") == []
    assert not caplog.text
    assert path.with_suffix(".damaged").exists()


def test_a_damaged_checkpoint_that_cannot_be_set_aside_is_refused_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = BlobStore(str(tmp_path)).write(manifest(), TENSORS)
    (tmp_path / written.path).write_bytes(b"")
    with caplog.at_level(logging.WARNING), pytest.raises(Damaged):
        full(tmp_path, 1 << 20, moves=False).read(written)
    assert "can't be set aside: " in caplog.text


def test_another_schema_is_left_out_naming_both(store: BlobStore, caplog: pytest.LogCaptureFixture) -> None:
    store.write(dataclasses.replace(manifest(), schema=99), TENSORS)
    with caplog.at_level(logging.WARNING):
        assert store.manifests("s-1") == []
    assert "schema version 99, this program reads 1" in caplog.text
    assert any(path.suffix == ".json" for path in paths(store)), "a newer program can read it"


def test_a_manifest_of_another_blob_is_left_out(store: BlobStore) -> None:
    written = store.write(manifest(), TENSORS)
    path = (Path(store.uri) / written.path).with_suffix(".json")
    path.rename(path.with_name("00000009-000000000007-aaaa.json"))
    assert store.manifests("s-1") == []


def test_a_manifest_whose_tensors_overlap_is_refused(store: BlobStore) -> None:
    written = store.write(manifest(), TENSORS)
    shifted = tuple(dataclasses.replace(entry, offset=0) for entry in written.tensors)
    with pytest.raises(Corrupt, match=r"'none' of .* can't be 0 bytes at 0: 0 bytes at 64 follow"):
        store.read(dataclasses.replace(written, tensors=shifted))


def test_a_missing_blob_or_manifest_is_said(store: BlobStore) -> None:
    written = store.write(manifest(), TENSORS)
    (Path(store.uri) / written.path).unlink()
    with pytest.raises(Corrupt, match="is missing or of another size"):
        store.check()
    with pytest.raises(Corrupt, match=r"the blob s-1/generate/.* is missing"):
        store.read(written)
    assert store.manifests("s-1") == []
    store.delete(written)
    with pytest.raises(Corrupt, match=r"the manifest of s-1/generate/.* is missing"):
        store.manifest(written.path)


# -- writers that fail -------------------------------------------------------------------------------------------


class Full(fs.FileSystemHandler):
    """A local file system with room for `room` bytes; `moves` or not."""

    def __init__(self, room: int, moves: bool = True) -> None:
        self.inner, self.room, self.moves = fs.LocalFileSystem(), room, moves

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.PythonFile(Tap(self, self.inner.open_output_stream(path)), mode="w")

    def move(self, src: str, dest: str) -> None:
        if not self.moves:
            raise OSError(errno.EIO, "Input/output error")
        self.inner.move(src, dest)

    def get_file_info(self, paths: list[str]) -> Any:
        return self.inner.get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> Any:
        return self.inner.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self.inner.create_dir(path, recursive=recursive)

    def delete_file(self, path: str) -> None:
        self.inner.delete_file(path)

    def delete_dir(self, path: str) -> None:
        self.inner.delete_dir(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(open(path, "rb"), mode="r")  # arrow closes it

    def get_type_name(self) -> str:
        return "full"

    def normalize_path(self, path: str) -> str:
        return path

    def _unused(self, *_: Any) -> None:
        raise NotImplementedError

    open_input_stream = open_append_stream = copy_file = _unused
    delete_dir_contents = delete_root_dir_contents = _unused


class Tap:
    """A file that takes bytes while the disk has room."""

    def __init__(self, disk: Full, file: pa.NativeFile) -> None:
        self.disk, self.file, self.closed = disk, file, False

    def write(self, data: bytes) -> int:
        self.disk.room -= len(data)
        if self.disk.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.closed = True
        self.file.close()


def full(path: Path, room: int, moves: bool = True) -> BlobStore:
    return BlobStore(str(path), filesystem=fs.PyFileSystem(Full(room, moves)))


def test_a_disk_that_fills_at_any_byte_leaves_nothing(tmp_path: Path) -> None:
    store = full(tmp_path, 1 << 20)
    store.write(manifest(seq=1), TENSORS)
    whole = sum(path.stat().st_size for path in paths(store))
    before = paths(store)
    for room in range(whole):
        with pytest.raises(Unavailable, match=r"can't write checkpoint s-1/generate/.*No space left"):
            full(tmp_path, room).write(manifest(seq=2), TENSORS)
        assert paths(store) == before
    full(tmp_path, whole).write(manifest(seq=2), TENSORS)
    store.check()
    assert [found.mark.seq for found in store.manifests("s-1")] == [1, 2]


def test_a_manifest_that_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    store = full(tmp_path, 1 << 20, moves=False)
    with pytest.raises(Unavailable, match="Input/output error"):
        store.write(manifest(), TENSORS)
    assert not paths(store)


def test_what_a_dead_writer_left_is_invisible_and_swept(store: BlobStore) -> None:
    kept, torn = store.write(manifest(seq=1), TENSORS), store.write(manifest(seq=2), TENSORS)
    blob = Path(store.uri) / torn.path
    at = blob.with_suffix(".json")
    at.rename(f"{at}.tmp")  # it died before the manifest was in place
    assert store.manifests("s-1") == [kept]
    with pytest.raises(Corrupt, match="without a manifest"):
        store.check()
    assert store.sweep("s-1", before=blob.stat().st_mtime - 1) == 0  # it may be under way
    assert store.sweep("s-1") == 2
    store.check()
    assert store.manifests("s-1") == [kept]
    assert len(paths(store)) == 2


def test_threads_write_and_delete_at_once(store: BlobStore) -> None:
    kept: list[Manifest] = []

    def work(number: int) -> None:
        for seq in range(20):
            written = store.write(manifest(seq=seq), {"x": np.full(100, number)})
            assert store.read(written)["x"].tolist() == [number] * 100
            if seq % 2:
                store.delete(written)
            else:
                kept.append(written)
            store.manifests("s-1")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(m.path for m in store.manifests("s-1")) == sorted(m.path for m in kept)
    assert len(kept) == 40
    store.check()


# -- sessions ----------------------------------------------------------------------------------------------------


def test_manifests_come_in_order_and_epochs_count(store: BlobStore) -> None:
    for epoch, seq in ((2, 3), (1, 12), (2, 1), (10, 0)):
        store.write(manifest(epoch=epoch, seq=seq), {})
    assert [found.order for found in store.manifests("s-1")] == [(1, 12), (2, 1), (2, 3), (10, 0)]
    assert store.max_epoch("s-1") == 10
    assert store.max_epoch("s-2") == 0
    assert store.manifests("s-2") == []


def test_an_unfinished_blob_counts_as_an_epoch(store: BlobStore) -> None:
    written = store.write(manifest(epoch=123_456_789), {})
    (Path(store.uri) / written.path).with_suffix(".json").unlink()
    assert store.max_epoch("s-1") == 123_456_789


def test_a_session_goes_with_all_it_has(store: BlobStore) -> None:
    for session, stage in (("a", "generate"), ("a", "upscale"), ("b", "generate")):
        store.write(manifest(session, stage), TENSORS)
    assert sorted(store.sessions()) == ["a", "b"]
    store.delete_session("a")
    store.delete_session("a")
    assert list(store.sessions()) == ["b"]
    one = store.manifests("b")[0]
    store.delete(one)
    store.delete(one)
    store.delete_session("b")
    assert list(store.sessions()) == []
    assert list(Path(store.uri).iterdir()) == []


def test_age_is_that_of_the_newest_file(store: BlobStore) -> None:
    written = store.write(manifest(), TENSORS)
    newest = max(path.stat().st_mtime for path in paths(store))
    assert store.age_s("s-1", newest + 60) == pytest.approx(60)
    assert store.age_s("s-2", newest) == float("inf")
    store.delete(written)
    assert store.age_s("s-1", newest) == float("inf")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a b", "ä", "a\n", "a\0"])
def test_names_that_could_lead_elsewhere_are_refused(store: BlobStore, name: str) -> None:
    with pytest.raises(BadRequest, match="a session is named by"):
        store.write(manifest(session=name), {})
    with pytest.raises(BadRequest, match="a stage is named by"):
        store.write(manifest(stage=name), {})
    for method in (store.manifests, store.delete_session, store.max_epoch, store.sweep):
        with pytest.raises(BadRequest, match="a session is named by"):
            method(name)


# -- opening -----------------------------------------------------------------------------------------------------


def test_a_path_and_its_uri_are_one_store(tmp_path: Path) -> None:
    written = BlobStore(str(tmp_path / "here")).write(manifest(), TENSORS)
    assert BlobStore((tmp_path / "here").as_uri()).manifests("s-1") == [written]


def test_only_what_other_nodes_see_is_shared(tmp_path: Path) -> None:
    assert not BlobStore(str(tmp_path)).is_shared
    assert BlobStore(str(tmp_path), shared=True).is_shared
    assert full(tmp_path, 0).is_shared


@pytest.mark.parametrize("uri", ["nosuch://bucket", "file://elsewhere/folder", "{file}", "{file}/below"])
def test_what_cannot_be_opened_is_said_in_one_line(tmp_path: Path, uri: str) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(BadRequest, match="checkpoints can't be kept at") as caught:
        BlobStore(uri.format(file=file))
    assert "\n" not in str(caught.value)


def test_a_file_elsewhere_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadRequest, match="checkpoints need a folder"):
        full(tmp_path / "file", 0)
