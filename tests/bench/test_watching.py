"""What is compared when the service is watched and when it is not."""

from __future__ import annotations

import pytest

from riverrun.bench.report import tables
from riverrun.bench.watching import COLUMNS, Turn, compared, observers, one_chunk
from riverrun.graphs.observer import Observer


def test_a_round_is_compared_with_the_turns_before_and_after_it() -> None:
    off = [Turn(100.0, 10.0), Turn(50.0, 20.0), Turn(80.0, 10.0)]
    on = [Turn(99.0, 11.0), Turn(60.0, 22.0), Turn(72.0, 11.0)]
    again = [Turn(100.0, 10.0), Turn(70.0, 20.0), Turn(80.0, 10.0)]
    figures = compared(off, on, again)
    assert figures["fps_ratio"] == pytest.approx(0.99)  # 0.99, 1.0, 0.9
    assert figures["cpu_us_ratio"] == pytest.approx(1.1)
    assert figures["fps_same"] == 1.0
    assert (figures["fps_off"], figures["fps_on"]) == (80.0, 72.0)
    assert "0.99" in tables(COLUMNS, {"stream": [{"case": "chunks of 1", **figures}]})


def test_every_observer_is_told_of_the_whole_chunk() -> None:
    class Told(Observer):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def asks(self, stage, request):
            self.heard.append("asks")
            return request

        def fetched(self, stage, chunk, fetch_s):
            self.heard.append("fetched")
            return chunk

        def sent(self, frame, codec, size, encode_s, send_s):
            self.heard.append("sent")

    told = Told()
    one_chunk(told)()
    assert told.heard == ["asks", "fetched", *["sent"] * 12]
    assert {"nobody", "metrics"} <= set(observers())
