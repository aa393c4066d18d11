"""A `Joiner` under any input: what `split` made comes back whole, and all else is a WireError and nothing worse."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos import wire

DTYPES = sorted(wire._DTYPES)
HEADERS = st.builds(
    wire.Header,
    port=st.text(max_size=8),
    frame=st.integers(0, 2**64 - 1),
    chunk=st.integers(0, 2**64 - 1),
    index_in_chunk=st.integers(0, 2**32 - 1),
    pts=st.integers(-(2**63), 2**63 - 1),
    epoch=st.integers(0, 2**64 - 1),
    revision=st.integers(0, 2**64 - 1),
)
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6))
)
PICTURES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3)))


def again(parts):
    return [pb.FramePart.FromString(part.SerializeToString()) for part in parts]


def cut(part: pb.FramePart, ends: list[int]) -> list[pb.FramePart]:
    """The one part of a frame as several, its data cut at these places."""
    places = [0, *sorted(end % (len(part.data) + 1) for end in ends), len(part.data)]
    parts = []
    for number in range(len(places) - 1):
        piece = pb.FramePart()
        piece.CopyFrom(part)
        piece.part, piece.parts = number, len(places) - 1
        piece.data = part.data[places[number] : places[number + 1]]
        parts.append(piece)
    return parts


def join(joiner: wire.Joiner, parts):
    """What the parts make, the last one at the end; None for one that was refused."""
    made = []
    for part in parts:
        try:
            made.append(joiner.add(part))
        except wire.WireError:
            made.append(None)
    return made


@given(ARRAYS, HEADERS, st.lists(st.integers(0, 2**16), max_size=5))
@settings(max_examples=60, deadline=None)
def test_any_split_of_a_frame_gives_it_back(array, header, ends):
    (part,) = wire.split(array, header)
    *before, whole = join(wire.Joiner(), again(cut(part, ends)))
    assert before == [None] * len(before)
    assert whole.header == header
    assert (whole.array.dtype, whole.array.shape) == (array.dtype, array.shape)
    assert whole.array.tobytes() == array.tobytes()


@given(PICTURES, HEADERS, st.lists(st.integers(0, 2**16), max_size=3))
@settings(max_examples=40, deadline=None)
def test_any_split_of_a_png_gives_the_picture_back(array, header, ends):
    (part,) = wire.split(array, header, wire.PNG)
    assert np.array_equal(join(wire.Joiner(), cut(part, ends))[-1].array, array)


CHANGES = st.sampled_from(
    [
        lambda parts, n: parts[:n] + parts[n + 1 :],  # lost
        lambda parts, n: parts[: n + 1] + parts[n:],  # twice
        lambda parts, n: parts[n:] + parts[:n] if n else parts[::-1],  # in another order
        lambda parts, n: _with(parts, n, data=parts[n].data + b"x"),
        lambda parts, n: _with(parts, n, data=parts[n].data[:-1]),
        lambda parts, n: _with(parts, n, frame=parts[n].frame ^ 1),
        lambda parts, n: _with(parts, n, port=parts[n].port + "x"),
        lambda parts, n: _with(parts, n, parts=parts[n].parts + 1),
        lambda parts, n: _with(parts, n, dtype="float64"),
        lambda parts, n: _with(parts, n, codec=77),
    ]
)


def _with(whole, n, **fields):
    for name, value in fields.items():
        setattr(whole[n], name, value)
    return whole


@given(st.integers(2, 5), st.data(), HEADERS)
@settings(deadline=None)
def test_any_damage_to_a_frame_in_parts_makes_none_and_the_next_one_is_whole(count, data, header):
    array = np.arange(count * 7, dtype=np.uint8)
    (part,) = wire.split(array, header)
    sound = cut(part, [7 * n for n in range(1, count)])
    damaged = data.draw(CHANGES)(again(sound), data.draw(st.integers(0, count - 1)))
    joiner = wire.Joiner()
    made = [whole for whole in join(joiner, damaged) if whole]
    assert all(whole.array.tobytes() == array.tobytes() for whole in made)  # a part that came twice spoils no other
    join(joiner, [pb.FramePart(parts=1, dtype="uint8", shape=[1], part=9)])  # whatever was begun is given up
    assert join(joiner, sound)[-1].array.tobytes() == array.tobytes()


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "port": st.text(max_size=4),
        "frame": st.integers(0, 2**64 - 1),
        "pts": st.integers(-(2**63), 2**63 - 1),
        "codec": st.integers(-(2**31), 2**31 - 1) | st.integers(0, 3),
        "dtype": st.sampled_from([*DTYPES, "object", "O", ">f4", "U9", "datetime64[ns]", "", "uint8 "])
        | st.text(max_size=5),
        "shape": st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 4), max_size=70),
        "layout": st.text(max_size=4),
        "part": st.integers(0, 2**32 - 1) | st.integers(0, 2),
        "parts": st.integers(0, 2**32 - 1) | st.integers(0, 3),
        "data": st.binary(max_size=64),
    },
)


@given(st.lists(FIELDS, max_size=6))
@settings(max_examples=200, deadline=None)
def test_any_parts_at_all_are_a_frame_or_a_wire_error(fields):
    joiner = wire.Joiner()
    for whole in join(joiner, [pb.FramePart(**each) for each in fields]):
        assert whole is None or whole.array.nbytes <= wire.MAX_FRAME_BYTES


@given(
    PICTURES,
    st.sampled_from([wire.PNG, wire.JPEG]),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, 2**16),
)
@settings(max_examples=200, deadline=None)
def test_a_damaged_picture_is_a_picture_of_its_size_or_a_wire_error(array, codec, flips, keep):
    (part,) = wire.split(array, wire.Header("p", 0, 0, 0, 0, 0, 0), codec)
    data = bytearray(part.data)
    for place, value in flips:
        data[place % len(data)] = value
    part.data = bytes(data[: keep % (len(data) + 1)] if keep % 2 else data)
    (whole,) = join(wire.Joiner(), [part])
    assert whole is None or (whole.array.shape, whole.array.dtype) == (array.shape, np.uint8)
