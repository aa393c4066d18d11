"""The share of chunks in time, from when each came."""

import pytest

from riverrun.bench.tenants import in_time


@pytest.mark.parametrize(
    ("arrived", "share"),
    [
        ((0.0, 0.2, 0.4), 1.0),
        ((0.0, 1.0, 2.0), 1.0),  # just then
        ((0.0, 1.5, 2.5), 0.5),  # late once: what follows is played later too
        ((0.0, 1.5, 2.0, 4.0), 1 / 3),
    ],
)
def test_a_chunk_is_in_time_when_the_one_before_has_been_played(arrived, share):
    assert in_time(arrived, chunk_s=1.0) == pytest.approx(share)
