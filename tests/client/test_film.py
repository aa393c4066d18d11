"""A film made of another one's frames has its times, rotation, colours and sound."""

import av
import numpy as np
import pytest

from riverrun.client.export import ExportError
from riverrun.client.film import FilmWriter, check_codec
from riverrun.client.sources import Source, open_source
from riverrun.client.types import Frame

from .test_sources import UNEVEN, film


def enlarged(array: np.ndarray, number: int) -> Frame:
    return Frame(array.repeat(4, 0).repeat(4, 1), "frames", number, 0.0, 0, 0)


def written(source: Source, path, frames: int | None = None) -> FilmWriter:
    """As `run --in` does it, with a model that repeats pixels; a few frames lie in between."""
    writer, waiting = FilmWriter(path, source.look, source.path), []
    for number, picture in enumerate(source):
        writer.expect(picture)
        waiting.append(enlarged(picture.array, number))
        writer.is_cut = writer.expected == frames
        if writer.is_cut:
            break
        if len(waiting) > 3:
            writer.add(waiting.pop(0))
    for frame in waiting:
        writer.add(frame)
    writer.close()
    return writer


def packets(path) -> list[tuple[int, bytes]]:
    with av.open(str(path)) as container:
        return [(p.pts, bytes(p)) for p in container.demux(audio=0) if p.dts is not None]


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.mov"])
def test_times_rotation_colours_and_sound_are_kept(tmp_path, name):
    path = film(tmp_path / "in.mp4", UNEVEN, rotation=90, sound=True, colorspace=1, color_primaries=1, color_trc=1)
    writer = written(open_source(str(path)), tmp_path / name)
    assert writer.frames == len(UNEVEN)
    assert writer.written == [tmp_path / name]
    assert not list(tmp_path.glob("*.part"))
    with av.open(str(path)) as before, av.open(str(tmp_path / name)) as after:
        one, two = list(before.decode(video=0)), list(after.decode(video=0))
        assert [(f.width, f.height) for f in two] == [(128, 96)] * len(UNEVEN)
        assert {f.rotation for f in two} == {90}
        if name.endswith("mkv"):  # which has milliseconds, and shifts all that sound may not begin below zero
            assert [f.time - two[0].time for f in two] == pytest.approx([f.time for f in one], abs=0.0011)
        else:
            assert [f.pts * f.time_base for f in two] == [f.pts * f.time_base for f in one]
        assert {f.colorspace for f in two} == {1}
        apart = [
            np.abs(a.to_ndarray(format="rgb24")[3, 3].astype(int) - b.to_ndarray(format="rgb24")[12, 12]).max()
            for a, b in zip(one, two, strict=True)
        ]
        assert max(apart) < 8
    if name.endswith("mkv"):
        assert [data for _, data in packets(tmp_path / name)] == [data for _, data in packets(path)]
    else:
        assert packets(tmp_path / name) == packets(path)


def test_of_a_part_of_a_film_the_sound_ends_with_it(tmp_path):
    path = film(tmp_path / "in.mp4", [512 * n for n in range(50)], sound=True)
    written(open_source(str(path)), tmp_path / "out.mp4", frames=20)
    kept, whole = packets(tmp_path / "out.mp4"), packets(path)
    assert kept == whole[: len(kept)]
    assert kept[-1][0] / 8000 < 19 / 25 <= kept[-1][0] / 8000 + 2 * 1024 / 8000


def test_frames_of_another_size_go_on_in_another_film(tmp_path):
    path = film(tmp_path / "in.mp4", [512 * n for n in range(6)], sound=True)
    source = open_source(str(path))
    writer = FilmWriter(tmp_path / "out.mp4", source.look, source.path)
    for number, picture in enumerate(source):
        writer.expect(picture)
        writer.add(enlarged(picture.array if number < 3 else picture.array[:7, :9], number))
    writer.close()
    assert writer.written == [tmp_path / "out.mp4", tmp_path / "out-2.mp4"]
    sizes, times, sound = [], [], []
    for part in writer.written:
        with av.open(str(part)) as container:
            frames = list(container.decode(video=0))
        sizes.append({(f.height, f.width) for f in frames})
        times += [f.time for f in frames]
        sound += [data for _, data in packets(part)]
    assert sizes == [{(96, 128)}, {(28, 36)}]
    assert times == pytest.approx([n / 25 for n in range(6)])
    assert sound == [data for _, data in packets(path)]


def test_a_film_of_no_frames_is_no_file(tmp_path):
    source = open_source(str(film(tmp_path / "in.mp4", [0])))
    FilmWriter(tmp_path / "out.mp4", source.look, source.path).close()
    assert not (tmp_path / "out.mp4").exists()


def test_what_is_no_picture_and_what_nobody_sent_are_refused(tmp_path):
    source = open_source(str(film(tmp_path / "in.mp4", [0])))
    writer = FilmWriter(tmp_path / "out.mp4", source.look)
    with pytest.raises(ExportError, match="carries float32"):
        writer.add(Frame(np.zeros((4, 4), np.float32), "depth", 0, 0.0, 0, 0))
    with pytest.raises(ExportError, match="frame 3 of port 'frames' came, 0 went in"):
        writer.add(enlarged(np.zeros((4, 4, 3), np.uint8), 3))
    with pytest.raises(ExportError, match=r"ends in .mp4, .mov, .mkv"):
        FilmWriter(tmp_path / "out.avi", source.look)


def test_sound_that_a_container_can_t_hold_is_said_at_once(tmp_path):
    check_codec(tmp_path / "out.mp4", "aac")
    with pytest.raises(ExportError, match=r".mp4 can't hold the input's sound \(wmav2\); take another of"):
        check_codec(tmp_path / "out.mp4", "wmav2")
