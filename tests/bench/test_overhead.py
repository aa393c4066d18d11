"""`bench/overhead`: what it concludes from what it measured, and the frames it sends."""

import numpy as np
import pytest

from riverrun.bench.overhead import CASES, COLUMNS, Turn, compared, costs, first_figures, rates, spans
from riverrun.bench.report import tables
from riverrun.bench.trips import Case, codec_ms, picture
from riverrun.protos.wire import JPEG, MAX_PART_BYTES, RAW, Joiner


def test_added_latency_is_the_difference_of_medians_in_milliseconds():
    echo = [Turn([0.001, 0.003], 100.0), Turn([0.002], 100.0)]
    service = [Turn([0.005, 0.006], 40.0), Turn([0.100], 60.0)]
    figures = compared(echo, service)
    assert figures["added_ms"] == pytest.approx(4.0)
    assert figures["added_p99_ms"] == pytest.approx(97.0)
    assert figures["ratio"] == pytest.approx(0.5)


def test_a_ratio_is_of_rounds_not_of_medians():
    """A round in which the machine was busy counts for both sides."""
    assert rates([100.0, 10.0, 100.0], [50.0, 5.0, 60.0])["ratio"] == pytest.approx(0.5)


def test_the_cost_of_a_chunk_is_compared_round_by_round():
    assert costs([200.0, 400.0, 210.0], [250.0, 500.0, 210.0]) == {
        "bare_cpu_ms": 210.0,
        "service_cpu_ms": 250.0,
        "cpu_ratio": 0.8,
    }


def test_first_chunk_is_held_against_its_compute():
    assert first_figures([300.0, 250.0, 900.0], 100.0) == {"first_ms": 300.0, "chunk_ms": 100.0, "limit_ms": 250.0}


def test_spans_add_up_to_the_trip():
    trip = {"case": "64x64 jpeg", "echo_ms": 0.2, "service_ms": 2.0, "codec_ms": 0.5}
    calls = [{"frame": "64x64", "way": "Ray", "ms": 9.0}, {"frame": "64x64", "way": "line", "ms": 0.3}]
    (span,) = spans([trip], calls)
    assert span["gateway_ms"] == pytest.approx(1.0)
    assert span["call_ms"] == 0.3


def test_every_part_has_its_table():
    text = tables(COLUMNS, {"first": [{"case": "generate", **first_figures([1.0], 2.0)}]})
    assert "generate" in text
    assert "103" in text


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_is_one_whole_frame(case: Case):
    joiner = Joiner()
    *before, joined = [joiner.add(part) for part in case.parts()]
    assert not any(before)
    assert joined.array.shape == (case.height, case.width, 3)
    assert (len(before) > 0) == (case.codec == RAW and case.height * case.width * 3 > MAX_PART_BYTES)


def test_a_picture_is_soft_enough_to_compress_and_the_codec_takes_time():
    assert Case(64, 64, JPEG).parts()[0].ByteSize() < 64 * 64 * 3 / 2
    assert np.ptp(picture(64, 64)) > 100
    assert codec_ms(Case(64, 64, RAW)) == 0.0
    assert codec_ms(Case(64, 64, JPEG), times=1) > 0.0
