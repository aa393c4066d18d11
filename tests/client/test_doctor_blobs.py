"""What `riverrun doctor` says of the place for checkpoints."""

from dataclasses import replace

import pytest

from riverrun.client.doctor_blobs import GIB, BlobFacts, checkpoints, judged
from riverrun.configs import ServiceConfig
from riverrun.configs.durability import CheckpointConfig

RIGHT = BlobFacts("/x", "", 50 * GIB, is_shared=False, is_cluster=False, keeps_store=True)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"uri": "", "keeps_store": False}, []),
        ({"uri": ""}, ["note gone when the service ends"]),
        ({"fault": "no access"}, ["missing /x: no access"]),
        ({"free": GIB}, ["note 1024 MiB free"]),
        ({"free": None}, []),
        ({"is_cluster": True}, ["note a folder of this node"]),
        ({"is_cluster": True, "is_shared": True}, []),
        ({"free": 0, "is_cluster": True}, ["note 0 MiB free", "note a folder of this node"]),
    ],
)
def test_what_is_said_of_a_place(change, expected):
    said = [f"{f.state} {f.found}" for f in judged(replace(RIGHT, **change)) if f.state != "ok"]
    assert said == expected


def config(monkeypatch, **keep) -> ServiceConfig:
    for name in ("REDIS_URL", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return ServiceConfig(checkpoints=CheckpointConfig(**keep))


def test_a_folder_is_written_and_left_as_it_was(monkeypatch, tmp_path):
    (tmp_path / "mine").write_text("x")
    (found,) = checkpoints(config(monkeypatch, uri=str(tmp_path)))
    assert found.state in ("ok", "note")
    assert str(tmp_path) in found.found
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_is_not_there_yet_is_not_made(monkeypatch, tmp_path):
    assert checkpoints(config(monkeypatch, uri=str(tmp_path / "a" / "b")))[0].state == "ok"
    assert not list(tmp_path.iterdir())


def test_a_place_that_can_not_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("x")
    (found,) = checkpoints(config(monkeypatch, uri=str(tmp_path / "file")))
    assert (found.state, found.found) == ("missing", f"{tmp_path}/file: {tmp_path}/file is a file")
    (found,) = checkpoints(config(monkeypatch, uri="nowhere://bucket/x"))
    assert found.state == "missing"
    assert "nowhere://bucket/x" in found.found


def test_none_are_kept(monkeypatch):
    (found,) = checkpoints(config(monkeypatch, chunks=0))
    assert (found.state, found.found) == ("note", "none are kept")
