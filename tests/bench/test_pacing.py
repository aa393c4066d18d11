"""What the pacing benchmark makes of its turns. The service itself is measured by running it."""

from __future__ import annotations

import pytest

from riverrun.bench.pacing import COLUMNS, MIB, Turn, figures_of
from riverrun.bench.report import tables


def test_rates_are_compared_round_by_round_and_memory_in_the_first():
    turns = {
        0: [Turn(1000.0, 100 * MIB, 0, 0), Turn(500.0, 300 * MIB, 0, 0), Turn(800.0, 300 * MIB, 0, 0)],
        8: [Turn(900.0, 180 * MIB, 32, 16), Turn(500.0, 300 * MIB, 40, 16), Turn(400.0, 301 * MIB, 32, 17)],
    }
    alone, beside = figures_of(turns)
    assert (alone["ratio"], alone["each_mib"], alone["fps"]) == (1.0, None, 800.0)
    assert beside["ratio"] == pytest.approx(0.9)
    assert (beside["gateway_mib"], beside["each_mib"], beside["gateway_last_mib"]) == (180.0, 10.0, 301.0)
    assert (beside["each_frames"], beside["each_steps"]) == (5.0, 17 / 8)
    assert tables({"rows": COLUMNS}, {"rows": [alone, beside]}).count("\n") == 3
