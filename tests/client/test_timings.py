"""Figures from a made-up clock."""

from riverrun.client.timings import RECENT_CHUNKS, Timings


def test_first_frame_rate_and_chunk_latency():
    timings = Timings(start=10.0)
    for chunk in range(11):
        for place in range(4):
            timings.note(chunk, 12.0 + chunk * 0.5 + place * 0.001)
    summary = timings.summary()
    assert summary["first_frame_s"] == 2.0
    assert summary["chunks"] == 11
    assert summary["chunk_ms_p50"] == 500.0
    assert summary["fps"] == round(43 / 5.003, 2)


def test_without_frames_and_with_one():
    timings = Timings(start=0.0)
    assert timings.summary()["first_frame_s"] is None
    timings.note(0, 1.0)
    assert (timings.fps, timings.chunk_ms(99), timings.summary()["chunks"]) == (0.0, 0.0, 1)


def test_an_endless_stream_keeps_a_bounded_number_of_readings():
    timings = Timings(start=0.0)
    for chunk in range(RECENT_CHUNKS + 100):
        timings.note(chunk, float(chunk))
    assert len(timings.chunks) == RECENT_CHUNKS
