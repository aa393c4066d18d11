"""Frames that go in: the ledger of what is sent and not acked, and what a reconnect sends again."""

import numpy as np
import pytest

from riverrun.client.feed import LEAST_HELD, MOST_HELD, MOST_HELD_BYTES, Feed


def frame(kilobytes: int = 1) -> np.ndarray:
    return np.zeros((kilobytes, 1024), np.uint8)


def test_frames_are_numbered_and_kept_until_they_are_acked():
    feed = Feed("frames")
    for n in range(5):
        assert feed.add(frame(), pts=n).number == n
    feed.ack(2)
    assert [sent.number for sent in feed.again()] == [3, 4]
    assert feed.held_bytes == 2 * 1024
    feed.ack(1)  # of a connection before
    feed.ack(4)
    assert list(feed.again()) == []
    assert feed.held_bytes == 0


def test_what_may_be_sent_is_bounded_by_frames_and_by_bytes():
    feed = Feed("frames")
    while feed.has_room:
        feed.add(frame(), pts=feed.number)
    assert feed.number == MOST_HELD
    large = Feed("frames")
    array = np.broadcast_to(np.uint8(0), (MOST_HELD_BYTES // 8,))  # no memory of its own
    while large.has_room:
        large.add(array, pts=large.number)
    assert large.number == LEAST_HELD


def test_times_rise_and_nothing_comes_after_the_end():
    feed = Feed("frames")
    feed.add(frame(), pts=10)
    with pytest.raises(ValueError, match="frame 1 of input 'frames': its time must lie after the last one's"):
        feed.add(frame(), pts=10)
    feed.finished = True
    with pytest.raises(ValueError, match="was finished"):
        feed.add(frame(), pts=11)
