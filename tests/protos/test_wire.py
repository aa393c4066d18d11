"""Round trips of frames through their wire form, and what a `Joiner` refuses."""

import numpy as np
import pytest

from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos import wire

HEADER = wire.Header(port="video", frame=7, chunk=2, index_in_chunk=1, pts=90_000, epoch=3, revision=4)
DTYPES = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
]


def join(parts):
    joiner = wire.Joiner()
    done = [joiner.add(pb.FramePart.FromString(part.SerializeToString())) for part in parts]
    assert all(one is None for one in done[:-1])
    return done[-1]


def picture(height=48, width=40):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("seed", range(60))
def test_raw_round_trip_of_random_shapes(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(0, 9, size=rng.integers(0, 4)))
    dtype = np.dtype(DTYPES[seed % len(DTYPES)])
    frame = np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype=np.uint8).copy()
    if dtype.kind == "b":
        frame %= 2
    frame = frame.view(dtype).reshape(shape)
    if seed % 3 == 0:
        frame = frame.T  # not row-major
    if seed % 5 == 0:
        frame = frame.astype(dtype.newbyteorder(">"))
    done = join(wire.split(frame, HEADER))
    assert done.header == HEADER
    assert done.array.dtype.name == dtype.name
    assert done.array.shape == frame.shape
    assert np.ascontiguousarray(done.array).tobytes() == frame.astype(dtype.newbyteorder("<")).tobytes()
    assert done.array.flags.writeable


def test_large_frames_come_in_parts_of_a_mebibyte():
    frame = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), dtype=np.uint8)
    parts = wire.split(frame, HEADER)
    assert [len(part.data) for part in parts[:-1]] == [wire.MAX_PART_BYTES] * (len(parts) - 1)
    assert max(part.ByteSize() for part in parts) < wire.MAX_PART_BYTES + 200
    np.testing.assert_array_equal(join(parts).array, frame)


def test_exactly_one_mebibyte_is_one_part():
    assert len(wire.split(np.zeros(wire.MAX_PART_BYTES, np.uint8), HEADER)) == 1
    assert len(wire.split(np.zeros(wire.MAX_PART_BYTES + 1, np.uint8), HEADER)) == 2


def test_png_is_exact_and_jpeg_is_near():
    frame = picture()
    np.testing.assert_array_equal(join(wire.split(frame, HEADER, wire.PNG)).array, frame)
    smooth = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None], (64, 64, 3))
    near = join(wire.split(smooth, HEADER, wire.JPEG, quality=95)).array
    assert np.abs(near.astype(int) - smooth).mean() < 3


def test_quality_changes_the_size():
    low, high = (len(wire.split(picture(), HEADER, wire.JPEG, quality=q)[0].data) for q in (10, 95))
    assert low < high


@pytest.mark.parametrize(
    ("frame", "codec", "says"),
    [
        (np.zeros((4, 4), np.float32), wire.JPEG, r"JPEG carries uint8 \[H, W, 3\], not float32 \[4, 4\]; use RAW"),
        (np.zeros((4, 4, 4), np.uint8), wire.PNG, "use RAW"),
        (np.zeros((0, 4, 3), np.uint8), wire.PNG, "empty"),
        (np.zeros((4, 4), np.complex64), wire.RAW, "complex64 can't be sent"),
        (np.array([object()]), wire.RAW, "object can't be sent"),
        (np.zeros((1, 2, 3, 4), np.uint8), wire.RAW, "needs its layout"),
        (np.zeros((4, 4, 3), np.uint8), 99, "unknown codec 99"),
    ],
)
def test_what_cannot_be_sent_says_so(frame, codec, says):
    with pytest.raises(wire.WireError, match=says):
        wire.split(frame, HEADER, codec)


def test_a_wrong_quality_says_so():
    with pytest.raises(wire.WireError, match=r"1\.\.100"):
        wire.split(picture(), HEADER, wire.JPEG, quality=101)


def big_parts():
    return wire.split(np.zeros((3, wire.MAX_PART_BYTES), np.uint8), HEADER)


def test_parts_out_of_order_are_refused_and_the_joiner_goes_on():
    joiner = wire.Joiner()
    parts = big_parts()
    assert joiner.add(parts[0]) is None
    with pytest.raises(wire.WireError, match="part 2 of 3 came where part 1 was due"):
        joiner.add(parts[2])
    assert [joiner.add(part) is None for part in parts] == [True, True, False]


def test_a_foreign_part_inside_a_frame_is_refused():
    joiner = wire.Joiner()
    parts = big_parts()
    joiner.add(parts[0])
    parts[1].frame = 8
    with pytest.raises(wire.WireError, match="before frame 7 of port 'video' was complete"):
        joiner.add(parts[1])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dtype": "O"}, "unknown dtype 'O'"),
        ({"dtype": ""}, "unknown dtype"),
        ({"parts": 0}, "0 parts"),
        ({"data": b"123"}, "3 bytes for uint8"),
        ({"codec": 77}, "unknown codec 77"),
        ({"codec": wire.JPEG}, "can't be decoded"),
    ],
)
def test_wrong_headers_are_refused(change, says):
    (part,) = wire.split(picture(), HEADER)
    for name, value in change.items():
        setattr(part, name, value)
    with pytest.raises(wire.WireError, match=says):
        wire.Joiner().add(part)


def test_a_declared_size_over_the_limit_is_refused_before_anything_is_kept():
    (part,) = wire.split(picture(), HEADER)
    part.shape[:] = [1 << 20, 1 << 20, 3]
    with pytest.raises(wire.WireError, match="at most"):
        wire.Joiner().add(part)


def test_a_picture_of_another_size_than_its_header_is_refused():
    (part,) = wire.split(picture(48, 40), HEADER, wire.PNG)
    part.shape[:] = [24, 40, 3]
    with pytest.raises(wire.WireError, match="a picture of 48x40"):
        wire.Joiner().add(part)
