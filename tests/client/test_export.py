"""Files read back: the MP4 through PyAV, PNGs and the contact sheet through Pillow."""

import numpy as np
import pytest
from PIL import Image

from riverrun.client.export import ExportError, Mp4Writer, PngFolder, Segments, writer_for, zoom
from riverrun.client.sheet import COLUMNS, ROWS, ContactSheet, Segment
from riverrun.client.types import Frame

av = pytest.importorskip("av")
PURPLE = (160, 32, 200)


def frame(number, size=(64, 64), fps=16, revision=0, colour=PURPLE):
    array = np.full((*size, 3), colour, np.uint8)
    return Frame(array, "frames", number, number / fps, number // 4, revision)


def read(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(video=0))
        return stream, frames


def test_an_mp4_has_every_frame_at_its_own_time(tmp_path):
    path = tmp_path / "deep" / "a.mp4"
    with Mp4Writer(path, 16) as writer:
        for number in range(8, 30):
            writer.add(frame(number))
        assert not path.exists()
    stream, frames = read(path)
    assert stream.codec_context.name == "h264"
    assert stream.codec_context.pix_fmt == "yuv420p"
    assert (stream.width, stream.height) == (256, 256)
    assert [round(float(f.time), 4) for f in frames] == [n / 16 for n in range(22)]
    middle = frames[5].to_ndarray(format="rgb24")[100, 100]
    assert np.abs(middle.astype(int) - PURPLE).max() < 12
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("fps", "frames"), [(12, 24), (23.976, 48), (29.97, 31), (30, 1)])
def test_an_mp4_lasts_as_long_as_its_frames(tmp_path, fps, frames):
    with Mp4Writer(tmp_path / "a.mp4", fps) as writer:
        for number in range(frames):
            writer.add(frame(number, fps=fps))
    _, read_back = read(tmp_path / "a.mp4")
    assert len(read_back) == frames
    assert float(read_back[-1].time) == pytest.approx((frames - 1) / fps, abs=1e-3)


def test_odd_and_large_sizes(tmp_path):
    with Mp4Writer(tmp_path / "a.mp4", 16) as writer:
        writer.add(frame(0, size=(301, 257)))
    stream, _ = read(tmp_path / "a.mp4")
    assert (stream.height, stream.width) == (302, 258)


def test_what_is_no_picture_or_changes_its_size_says_so(tmp_path):
    with Mp4Writer(tmp_path / "a.mp4", 16) as writer:
        with pytest.raises(ExportError, match=r"port 'depth' carries float32 \[4, 4\], not pictures"):
            writer.add(Frame(np.zeros((4, 4), np.float32), "depth", 0, 0.0, 0, 0))
        writer.add(frame(0))
        with pytest.raises(ExportError, match="another size"):
            writer.add(frame(1, size=(128, 64)))


def test_no_frame_no_file(tmp_path):
    Mp4Writer(tmp_path / "a.mp4", 16).close()
    assert list(tmp_path.iterdir()) == []


def test_segments_are_bounded(tmp_path):
    writer = Segments(tmp_path / "a.mp4", 16, frames_each=4, keep=2)
    for number in range(18):
        writer.add(frame(number))
    writer.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-00004.mp4", "a-00005.mp4"]
    assert [len(read(tmp_path / f"a-0000{n}.mp4")[1]) for n in (4, 5)] == [4, 2]


def test_a_folder_has_pngs_or_arrays(tmp_path):
    writer = writer_for(tmp_path / "pictures", 16)
    assert isinstance(writer, PngFolder)
    writer.add(frame(7))
    writer.add(Frame(np.ones((4, 4), np.float32), "depth", 8, 0.5, 0, 0))
    writer.close()
    with Image.open(tmp_path / "pictures" / "000007.png") as picture:
        assert picture.size == (64, 64)
        assert picture.getpixel((3, 3)) == PURPLE
    assert np.load(tmp_path / "pictures" / "000008.npy").sum() == 16


def test_another_suffix_says_what_there_is(tmp_path):
    with pytest.raises(ExportError, match=r"must end in \.mp4"):
        writer_for(tmp_path / "a.gif", 16)


@pytest.mark.parametrize(("side", "factor"), [(8, 32), (64, 4), (100, 2), (256, 1), (1080, 1)])
def test_small_pictures_are_enlarged_by_a_whole_factor(side, factor):
    assert zoom(side, side // 2) == factor


def test_a_segment_keeps_a_bounded_even_choice_and_its_first_frame():
    segment = Segment("a", limit=16)
    for number in range(100, 1100):
        segment.add(frame(number))
    assert len(segment.samples) <= 16
    picked = [sample.number for sample in segment.pick(6)]
    assert picked[0] == 100
    assert picked[-1] > 1000
    assert len(picked) == 6
    steps = np.diff(picked)
    assert steps.max() - steps.min() <= 2 * segment.stride
    assert [s.number for s in Segment("a", samples=segment.samples[:2]).pick(6)] == [100, 100 + segment.stride]


def sheet_of(frames, switches):
    sheet = ContactSheet("title", "first")
    for revision, prompt in switches.items():
        sheet.switch(revision, prompt)
    for one in frames:
        sheet.add(one)
    return sheet


def test_the_sheet_marks_where_the_prompt_changed(tmp_path):
    frames = [frame(n, revision=int(n >= 20), colour=(250, 250, 250)) for n in range(40)]
    sheet = sheet_of(frames, {1: "second"})
    assert [change.number for change in sheet.changes()] == [20]
    sheet.save(tmp_path / "deep" / "sheet.png")
    with Image.open(tmp_path / "deep" / "sheet.png") as page:
        pixels = np.asarray(page)
    mark = (pixels == (217, 72, 15)).all(-1)
    lines = np.flatnonzero(mark.all(axis=1))
    assert len(lines) >= 4
    assert lines.max() - lines.min() < 8
    border = np.flatnonzero(mark[:, 8])  # left of the first picture, which begins at column 10
    assert border.max() > lines.max() + 256
    rows = 2 * ROWS
    assert page.size[0] == 10 + COLUMNS * 266
    assert page.size[1] > rows * 256


def test_several_switches_and_one_that_was_overtaken():
    frames = [frame(n, revision=[0, 1, 3][n // 8]) for n in range(24)]
    sheet = sheet_of(frames, {1: "b", 2: "overtaken", 3: "d"})
    assert [segment.prompt for segment in sheet.segments] == ["first", "b", "d"]
    assert [change.number for change in sheet.changes()] == [8, 16]
    sheet.draw()


def test_other_controls_do_not_begin_a_row():
    sheet = sheet_of([frame(n, revision=int(n > 3)) for n in range(8)], {})
    assert len(sheet.segments) == 1


def test_a_long_prompt_is_cut_and_an_empty_sheet_refused():
    sheet = ContactSheet("title", "a large red ball " * 40)
    with pytest.raises(ValueError, match="no frame"):
        sheet.draw()
    sheet.add(frame(0))
    assert sheet.draw().size[0] == 10 + COLUMNS * 266


def test_the_sheet_marks_what_happened_and_the_longest_part_has_most_rows():
    sheet = sheet_of([frame(n) for n in range(40)], {})
    moment = sheet.cut("something")
    for n in range(40, 50):
        sheet.add(frame(n))
    moment.label = "it was this"
    assert [(segment.prompt, segment.samples[0].number) for segment in sheet.segments] == [("first", 0), ("first", 40)]
    assert (sheet.segments[1].begins, sheet.changes()) == (moment, [])
    pixels = np.asarray(sheet.draw())
    assert (pixels == (134, 46, 156)).all(-1).all(axis=1).sum() >= 4
    assert pixels.shape[0] < (ROWS + 2) * (256 + 62)
