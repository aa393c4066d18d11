"""What `bench.recache` counts: frames from the first that differs, and whether numbers, times and revisions do."""

import dataclasses

import numpy as np
import pytest

from riverrun.bench.recache import FRAMES, loss
from riverrun.client.types import Frame
from riverrun.models.base import Corrupt


def stream(count, off=0, at=10**6):
    """off: added to the pixels from frame `at` on."""
    return [Frame(np.full((2, 2, 3), 100 + off * (n >= at), np.uint8), "frames", n, n / 16, 0, 0) for n in range(count)]


def test_the_frames_after_the_recovery_are_compared():
    found = loss("recache", "sink", [(stream(150), stream(150, off=51, at=40)), (stream(150), stream(150))])
    assert (found.streams, found.changed, found.is_counted) == (2, FRAMES, True)
    assert found.worst == pytest.approx(10 * np.log10(25))  # 255 / 51 is 5
    assert found.mean == pytest.approx(10 * np.log10(50))  # the other stream has no error


def test_nothing_differs():
    found = loss("exact", "sink", [(stream(120), stream(120))])
    assert (found.changed, found.mean, found.worst, found.is_counted) == (0, None, None, True)


def test_a_frame_with_another_time_is_counted_otherwise():
    late = [dataclasses.replace(f, seconds=f.seconds + 1) if f.number == 7 else f for f in stream(120)]
    assert not loss("recache", "sink", [(stream(120), late)]).is_counted


def test_too_few_frames_are_said_so():
    with pytest.raises(Corrupt, match="20 frames follow the recovery"):
        loss("recache", "sink", [(stream(120), stream(120, off=1, at=100))])
