"""Files of a job that several writers make, one after the other: they are those of a single one."""

from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest

from riverrun.actors.mp4_file import MOST_FRAMES, Mp4File, part_frames
from riverrun.actors.sinks import NOTED, PngFolder

SHAPE = (32, 48)


def picture(number):
    array = np.zeros((*SHAPE, 3), np.uint8)
    array[:] = (number * 5 % 256, 40, 255 - number * 5 % 256)
    return array


def mp4(folder, key="job"):
    return Mp4File(folder / "film.mp4", 16.0, SHAPE, key)


def png(folder, key="job"):
    return PngFolder(folder, key)


def write(writer, first, end):
    for number in range(first, end):
        writer.add(number, picture(number))
    return writer


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("make", [mp4, png])
@pytest.mark.parametrize("at", [1, MOST_FRAMES - 1, MOST_FRAMES, NOTED, 50])
def test_another_goes_on_after_what_is_on_disk(tmp_path, make, at):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    write(make(tmp_path / "one"), 0, 60).close(whole=True)
    lost = write(make(tmp_path / "two"), 0, at)
    next_one = make(tmp_path / "two")
    assert next_one.durable == lost.durable <= at
    assert at - lost.durable < MOST_FRAMES
    write(next_one, next_one.durable, 60).close(whole=True)
    lost.leave()
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_films_that_are_written_side_by_side_are_those_of_one_that_is_written_alone(tmp_path):
    def film(number):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(mp4(folder), 0, 60).close(whole=True)
        return files(folder)

    alone = film(0)
    with ThreadPoolExecutor(8) as threads:
        assert all(other == alone for other in threads.map(film, range(1, 49)))


def test_the_joined_film_has_every_frame_once_at_its_time(tmp_path):
    write(mp4(tmp_path), 0, 60).close(whole=True)
    with av.open(str(tmp_path / "film.mp4")) as film:
        frames = list(film.decode(video=0))
        assert film.streams.video[0].average_rate == 16
    assert [round(float(frame.time) * 16) for frame in frames] == list(range(60))
    for number, frame in enumerate(frames):
        got = frame.to_ndarray(format="rgb24")[16, 24].astype(int)
        assert np.abs(got - picture(number)[16, 24]).max() <= 12, number


@pytest.mark.parametrize("make", [mp4, png])
def test_a_frame_out_of_turn_is_refused(tmp_path, make):
    writer = write(make(tmp_path), 0, 3)
    for wrong in (2, 4):
        with pytest.raises(ValueError, match=f"frame {wrong} came where 3 was due"):
            writer.add(wrong, picture(wrong))
    writer.close(whole=False)


@pytest.mark.parametrize("make", [mp4, png])
def test_one_that_comes_late_disturbs_nothing_and_finds_out(tmp_path, make):
    late = write(make(tmp_path), 0, 40)
    other = make(tmp_path)
    write(other, other.durable, 60).close(whole=True)
    before = files(tmp_path)
    with pytest.raises(OSError, match="No such file"):
        write(late, 40, 60)
    late.leave()
    assert {name: data for name, data in files(tmp_path).items() if name in before} == before
    assert not [name for name in files(tmp_path) if name.startswith(".")]


def test_a_part_of_large_frames_is_short():
    assert part_frames((64, 64)) == MOST_FRAMES
    assert part_frames((2160, 3840)) == 4
