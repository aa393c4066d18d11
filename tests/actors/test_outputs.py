"""What a model hands out is checked, whatever it is."""

import dataclasses

import numpy as np
import pytest

from riverrun.actors.outputs import check_outputs
from riverrun.models.base import Chunk, Corrupt, Description, Kind, Port

SIZE = (4, 6)
GOOD: dict[Kind, np.ndarray] = {
    Kind.FRAMES: np.zeros((2, *SIZE, 3), np.uint8),
    Kind.DEPTH: np.ones((2, *SIZE), np.float32),
    Kind.POINTS: np.ones((2, *SIZE, 3), np.float32),
    Kind.CONFIDENCE: np.ones((2, *SIZE), np.float32),
    Kind.CAMERA: np.ones((2, 9), np.float32),
    Kind.TEXT: np.ones(2, np.int64),
    Kind.CONDITION: np.ones((2, 5), np.float32),
}


def about(kind: Kind, size: tuple[int, int] | None = SIZE) -> Description:
    return Description(inputs=(), outputs=(Port("out", kind),), chunk_frames=2, fps=16, frame_shape=size)


def made(data: object, frames: int = 2) -> Chunk:
    return Chunk("out", data, pts=0, frame_ticks=1, frames=frames)


@pytest.mark.parametrize("kind", Kind)
def test_what_fits_passes(kind: Kind) -> None:
    check_outputs([made(GOOD[kind])], about(kind))
    check_outputs([made(GOOD[kind])], about(kind, size=None))
    check_outputs([], about(kind))


@pytest.mark.parametrize("kind", Kind)
def test_what_does_not_fit_is_named(kind: Kind) -> None:
    data = GOOD[kind]
    wrong = [(data.astype(np.float64), 2), (data[0], 2), (data, 3), (data[:0], 0), (data.tolist(), 2), (None, 2)]
    if data.ndim >= 3:
        wrong += [(data[:, 1:], 2), (data[:, :, 1:], 2), (data[..., None], 2)]
    for value, frames in wrong:
        with pytest.raises(Corrupt, match=rf"port 'out' takes {data.dtype} \[{frames}.* the model made"):
            check_outputs([made(value, frames)], about(kind))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [kind for kind, data in GOOD.items() if data.dtype.kind == "f"])
def test_values_must_be_finite(kind: Kind, value: float) -> None:
    data = GOOD[kind].copy()
    data.flat[3] = value
    with pytest.raises(Corrupt, match=rf"port 'out' takes finite values, 1 of {data.size} that the model made are not"):
        check_outputs([made(data)], about(kind))


def test_ports_and_chunks_must_be_its_own() -> None:
    chunk = made(GOOD[Kind.DEPTH])
    with pytest.raises(Corrupt, match="of port 'other'; it has out"):
        check_outputs([dataclasses.replace(chunk, port="other")], about(Kind.DEPTH))
    with pytest.raises(Corrupt, match="something of type dict, not a chunk"):
        check_outputs([{}], about(Kind.DEPTH))  # type: ignore[list-item]
