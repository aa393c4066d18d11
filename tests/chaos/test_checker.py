"""What the checker of chaos runs finds: it must not pass a stream that misses something."""

import numpy as np
import pytest

from .checker import Faults, Got, chunk_seconds, first_changed, judge, seconds_to_recover, sha
from .workloads import synthetic


def expected(got):
    return got.number * 10, 0, f"pixels {got.number}"


def stream(*numbers, **changes):
    return [Got(n, n * 10, 0, f"pixels {n}", at=0.1 * i, chunk=n // 2) for i, n in enumerate(numbers)]


@pytest.mark.parametrize(
    ("numbers", "frames", "found"),
    [
        ([0, 1, 2, 3], 4, Faults()),
        ([0, 1, 2], None, Faults()),
        ([], None, Faults()),
        ([0, 1, 2], 4, Faults(lost=1)),
        ([], 4, Faults(lost=4)),
        ([0, 2, 3], 4, Faults(lost=1)),
        ([0, 2, 3], None, Faults(lost=1)),
        ([0, 1, 1, 2, 3], 4, Faults(duplicated=1)),
        ([0, 2, 1, 3], 4, Faults(disordered=1)),
        ([0, 1, 2, 3, 4], 4, Faults(changed=1)),
    ],
)
def test_a_stream_is_judged_by_its_numbers(numbers, frames, found):
    assert judge(stream(*numbers), expected, frames) == found


@pytest.mark.parametrize("change", [{"sha": "other"}, {"pts": 11}, {"revision": 1}])
def test_a_frame_unlike_the_undisturbed_run_is_found(change):
    got = stream(0, 1, 2)
    got[1] = Got(**{**vars(got[1]), **change})
    assert judge(got, expected, 3) == Faults(changed=1)
    assert first_changed(got, expected).startswith("frames frame 1: ")
    assert not first_changed(stream(0, 1, 2), expected)


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        ([0.0, 1.0, 2.0, 3.0, 4.0], 0.5),
        ([0.0, 1.0, 1.6, 1.7, 4.0, 4.1], 2.5),
        ([0.0, 1.0, 1.6, 1.7, 2.6, 3.2], 0.1),
        ([0.0, 1.0], float("inf")),
        ([], float("inf")),
    ],
)
def test_recovery_ends_with_the_longest_silence_after_the_fault(times, seconds):
    assert seconds_to_recover(times, 1.5, usual=0.5) == pytest.approx(seconds)


def test_the_time_between_chunks_is_a_median():
    assert chunk_seconds(stream(*range(8))) == pytest.approx(0.2)
    assert chunk_seconds(stream(0)) == 0.0


def test_a_computed_frame_is_what_the_chain_makes():
    """Odd chains show the colour, even ones its inverse; a frame of another prompt is another one."""
    one, two = (synthetic("", stages, 8, 3, 0.0, steered=True) for stages in (1, 2))
    at = Got(5, 0, 2, "", 0.0)
    assert one.computed(at)[:2] == (28125, 2)
    assert one.computed(at)[2] != two.computed(at)[2]
    assert one.computed(at)[2] != one.computed(Got(5, 0, 3, "", 0.0))[2]
    assert sha(np.zeros(3)) != sha(np.ones(3))
