"""What goes in: films, folders, live sources; whole, cut off, damaged, empty, with uneven times."""

import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from riverrun.client.sources import Newest, Picture, SourceError, open_source

BASE = Fraction(1, 12800)
UNEVEN = [0, 512, 1100, 1536, 2600, 2601, 3100, 4000]


def picture(number: int, height: int = 24, width: int = 32) -> np.ndarray:
    return np.full((height, width, 3), (40 + 20 * number, 90, 60), np.uint8)


def film(path: Path, pts: list[int], rotation: int = 0, sound: bool = False, **codec: object) -> Path:
    """A short H.264 film whose frames are at `pts`, in units of BASE."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10", "g": "4"})
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        stream.codec_context.time_base = BASE
        for name, value in codec.items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(rotation)
        audio = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        for number, at in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = at, BASE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio:
            rng = np.random.default_rng(0)
            noise = rng.normal(0, 0.1, (1, int(8000 * (pts[-1] + 512) * BASE))).astype(np.float32)
            beat = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
            beat.sample_rate, beat.pts = 8000, 0
            container.mux(audio.encode(beat))
            container.mux(audio.encode(None))
    return path


def test_a_film_s_frames_have_their_own_times(tmp_path):
    source = open_source(str(film(tmp_path / "in.mp4", UNEVEN, rotation=90)))
    pictures = list(source)
    assert [p.pts for p in pictures] == UNEVEN
    assert [p.seconds for p in pictures] == pytest.approx([at / 12800 for at in UNEVEN])
    assert (source.size, source.total, source.look.rotation, source.is_live) == ((24, 32), 8, 90, False)
    assert all(np.abs(p.array.astype(int) - picture(n)).max() < 12 for n, p in enumerate(pictures))


def test_a_film_that_is_cut_off_gives_what_it_has_and_says_where_it_ends(tmp_path):
    path = tmp_path / "in.mp4"
    with (
        av.open(str(film(tmp_path / "whole.mp4", [512 * n for n in range(40)]))) as whole,
        av.open(str(path), "w", options={"movflags": "+faststart"}) as front,
    ):
        stream = front.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                front.mux(packet)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    source, found = open_source(str(path)), list[Picture]()
    with pytest.raises(SourceError, match=r"in.mp4: frame (\d+) can't be read") as caught:
        found.extend(source)  # keeps what came before
    said = int(str(caught.value).split("frame ")[1].split()[0])
    assert said < 40
    assert found or said == 0


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.mp4", b"", "empty.mp4 can't be read"),
        ("junk.mp4", b"no film at all" * 50, "junk.mp4 can't be read"),
        ("gone.mp4", None, "there is no file"),
    ],
)
def test_no_film(tmp_path, name, data, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=message):
        open_source(str(tmp_path / name))


def test_sound_alone_is_no_film(tmp_path):
    with av.open(str(tmp_path / "in.m4a"), "w", format="mp4") as container:
        audio = container.add_stream("aac", rate=8000, layout="mono")
        beat = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        beat.sample_rate, beat.pts = 8000, 0
        container.mux(audio.encode(beat))
        container.mux(audio.encode(None))
    with pytest.raises(SourceError, match=r"in.m4a has no video"):
        open_source(str(tmp_path / "in.m4a"))


def test_a_folder_s_pictures_come_in_the_order_of_their_numbers(tmp_path):
    for n in (0, 2, 10):
        Image.fromarray(picture(n, 3, 5 + n)).save(tmp_path / f"img{n}.png")
    Image.fromarray(picture(1, 3, 5)[..., 0]).save(tmp_path / "img1.png")  # grey
    source = open_source(str(tmp_path), fps=10)
    pictures = list(source)
    assert [p.array.shape for p in pictures] == [(3, 5, 3), (3, 5, 3), (3, 7, 3), (3, 15, 3)]
    assert [p.seconds for p in pictures] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert source.size == (3, 5)


def test_a_damaged_picture_is_named(tmp_path):
    for n in range(3):
        Image.fromarray(np.random.default_rng(n).integers(0, 255, (30, 30, 3), np.uint8)).save(tmp_path / f"{n}.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:200])
    found = list[Picture]()
    with pytest.raises(SourceError, match=r"frame 2 \(2.png\) can't be read"):
        found.extend(open_source(str(tmp_path)))
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(SourceError, match=r"frame 0 \(0.png\) can't be read"):
        open_source(str(tmp_path))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(SourceError, match="has no pictures"):
        open_source(str(tmp_path))


def test_a_live_source_gives_the_newest_frame_and_drops_what_nobody_took():
    pictures = [Picture(picture(n), n, BASE, n / 25) for n in range(6)]
    taken, all_read = threading.Event(), threading.Event()

    class Camera:
        def __iter__(self):
            yield pictures[0]
            taken.wait(60)
            yield from pictures[1:]
            all_read.set()

    newest = Newest(Camera())
    frames = iter(newest)
    assert next(frames).pts == 0
    taken.set()
    assert all_read.wait(60)
    assert [frame.pts for frame in frames] == [5]
    assert newest.dropped == 4


def test_a_camera_that_breaks_off_says_so_where_its_frames_are_taken():
    class Camera:
        def __iter__(self):
            yield Picture(picture(0), 0, BASE, 0.0)
            raise SourceError("camera: frame 1 can't be read: unplugged")

    with pytest.raises(SourceError, match="unplugged"):
        list(Newest(Camera()))


def test_a_device_is_read_like_a_film():
    """FFmpeg's test picture stands for a camera."""
    from riverrun.client.sources import FilmSource

    source = FilmSource("testsrc=size=32x24:rate=10:duration=1", is_live=True, form="lavfi")
    assert (source.size, source.is_live, source.path) == ((24, 32), True, None)
    assert len(list(source)) == 10
