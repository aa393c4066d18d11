"""Jobs without a service: what is refused before anything is opened, and where files may go."""

import dataclasses

import pytest

from riverrun.actors.jobs import JobSpec
from riverrun.actors.sinks import Mp4File, sink_path, writer_for
from riverrun.actors.timed import TimedControl
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
    "uri", ["a.mp4", "/a.mp4", "http://x/a.mp4", "file://host/a.mp4", "file:///a.mov", "file:a.mp4"]
)
def test_only_local_mp4_files_and_folders(uri):
    with pytest.raises(BadRequest):
        sink_path(uri)


def test_paths_are_unquoted():
    assert str(sink_path("file:///a%20b/c.mp4")[0]) == "/a b/c.mp4"
    assert sink_path("file:///a/") == (sink_path("file:///a/")[0], True)


def test_an_unfinished_file_is_removed_and_depth_can_not_be_a_video(tmp_path):
    writer = writer_for((tmp_path / "a.mp4").as_uri(), 16.0, (16, 16))
    assert isinstance(writer, Mp4File)
    writer.close(whole=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadRequest, match="only ports that carry frames"):
        writer_for((tmp_path / "a.mp4").as_uri(), 16.0, None)
