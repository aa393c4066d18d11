"""Profiles: what policies are told of a model, as measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from riverrun.cluster.sim.truth import PROFILES, Measured, profile


@pytest.mark.parametrize(
    ("steps", "n", "expected"),
    [((10.0, 15.0), 1, 10.0), ((10.0, 15.0), 2, 15.0), ((10.0, 15.0), 4, 25.0), ((10.0,), 3, 30.0)],
)
def test_a_measured_latency_goes_on_as_it_ended(steps: tuple[float, ...], n: int, expected: float) -> None:
    assert Measured(steps).chunk_ms(10.0, n, 8) == expected
    assert Measured(steps).chunk_ms(20.0, n, 8) == 2 * expected


@pytest.mark.parametrize("steps", [(), (0.0,), (5.0, 4.0)])
def test_a_latency_that_falls_is_refused(steps: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="step_ms"):
        Measured(steps)


def test_a_profile_by_name_or_file(tmp_path: Path) -> None:
    assert profile("h100") is PROFILES["h100"]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"step_ms": [20, 30], "chunk_s": 0.5, "places": 2}))
    mine = profile(str(file))
    assert (mine.name, mine.alone_ms, mine.chunk_s, mine.places) == ("mine", 20.0, 0.5, 2)
    file.write_text(json.dumps({"step_ms": [20], "frames": 3}))
    with pytest.raises(ValueError, match="may have chunk_s, places, state_bytes"):
        profile(str(file))
    with pytest.raises(ValueError, match="port, h100 or a JSON file"):
        profile("a100")
