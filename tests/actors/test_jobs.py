"""Jobs without a service: what is refused before anything is opened, and where files may go."""

import dataclasses

import pytest

from riverrun.actors.job import JobSpec
from riverrun.actors.sinks import Mp4File, sink_path, writer_for
from riverrun.graphs.script import TimedControl
from riverrun.models.base import BadRequest, Control

RIGHT = JobSpec("g", {}, 0, "", 8, (), {"frames": "file:///x/a.mp4"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frames": 0}, "frames must be 1..100, got 0"),
        ({"frames": 101}, "frames must be 1..100, got 101"),
        ({"sinks": {}}, "sinks is empty"),
        ({"controls": (TimedControl(0, Control(1, "pause", True)),)}, "takes no pause"),
        (
            {"controls": (TimedControl(0, Control(2, "prompt", "x")), TimedControl(9, Control(1, "prompt", "y")))},
            "must rise",
        ),
    ],
)
def test_refused(change, words):
    RIGHT.check(100)
    with pytest.raises(BadRequest, match=words):
        dataclasses.replace(RIGHT, **change).check(100)


@pytest.mark.parametrize(
    "uri",
    [
        "a.mp4",
        "/a.mp4",
        "http://x/a.mp4",
        "file://host/a.mp4",
        "file:///a.mov",
        "file:a.mp4",
        "file:///a%00.mp4",
        "file://[/a.mp4",
    ],
)
def test_only_local_mp4_files_and_folders(uri):
    with pytest.raises(BadRequest):
        sink_path(uri)


def test_paths_are_unquoted():
    assert str(sink_path("file:///a%20b/c.mp4")[0]) == "/a b/c.mp4"
    assert sink_path("file:///a/") == (sink_path("file:///a/")[0], True)


@pytest.mark.parametrize("sink", ["a.mp4", "new/deep/a.mp4", "", "new/", "inner/a.mp4"])
def test_sinks_below_the_jobs_folder(tmp_path, sink):
    root = tmp_path / "jobs dir"
    (root / "kept").mkdir(parents=True)
    (root / "inner").symlink_to(root / "kept")
    path, is_folder = sink_path(f"{root.as_uri()}/{sink}", str(root))
    assert is_folder == (not sink.endswith(".mp4"))
    assert path == root / sink.replace("inner", "kept")


@pytest.mark.parametrize(
    "sink",
    [
        *("/etc/a.mp4", "/", "{0}s/a.mp4", "{0}/../a.mp4", "{0}/x/%2e%2e/a.mp4"),
        *("{0}/out/a.mp4", "{0}/film.mp4", "{0}/loop/a.mp4"),
    ],
)
def test_sinks_elsewhere_are_refused_with_one_line(tmp_path, sink):
    root = tmp_path / "jobs"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    (root / "film.mp4").symlink_to(tmp_path / "film.mp4")
    (root / "loop").symlink_to(root / "loop")
    uri = f"file://{sink.format(root)}"
    for refuse in (
        lambda: dataclasses.replace(RIGHT, sinks={"frames": uri}).check(100, str(root)),
        lambda: writer_for(uri, 16.0, (16, 16), str(root)),
    ):
        with pytest.raises(BadRequest) as caught:
            refuse()
        said = f"sink {uri!r} must be below file://{root}/ (jobs_dir), with no '..' and no link out of it"
        assert str(caught.value) == said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["jobs"]


def test_an_unfinished_file_is_removed_and_depth_can_not_be_a_video(tmp_path):
    writer = writer_for((tmp_path / "a.mp4").as_uri(), 16.0, (16, 16))
    assert isinstance(writer, Mp4File)
    writer.close(whole=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadRequest, match="only ports that carry frames"):
        writer_for((tmp_path / "a.mp4").as_uri(), 16.0, None)
