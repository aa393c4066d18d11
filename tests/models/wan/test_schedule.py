"""Flow matching: what longlive.md §5 says of tables and conversions. The numbers themselves are parity tests."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from riverrun.models.wan.schedule import FlowSchedule, euler

SCHEDULE = FlowSchedule.shifted(5.0)


def test_the_released_steps() -> None:
    assert SCHEDULE.warp([1000, 750, 500, 250]).tolist() == pytest.approx([1000, 937.5, 833.3333, 625])
    assert SCHEDULE.warp([0]).tolist() == [0]


def test_a_step_outside_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.\.1000, got 1001"):
        SCHEDULE.warp([1000, 1001])


def test_timestep_zero_is_not_noiseless() -> None:
    assert float(SCHEDULE.sigma(torch.tensor(0.0))) == pytest.approx(0.0049801, abs=1e-7)


def test_flow_and_x0_are_inverse() -> None:
    x0, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    t = torch.tensor([[1000.0, 900.0, 600.0], [300.0, 10.0, 625.0]])
    x = SCHEDULE.add_noise(x0, noise, t)
    torch.testing.assert_close(SCHEDULE.flow_to_x0(noise - x0, x, t), x0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(SCHEDULE.x0_to_flow(x0, x, t), noise - x0, atol=1e-3, rtol=1e-3)


def test_euler_along_a_straight_flow_arrives() -> None:
    x0, noise = torch.randn(2, 4), torch.randn(2, 4)
    x = noise
    sigmas = [*FlowSchedule.shifted(3.0, 5).sigmas, torch.tensor(0.0)]
    for now, then in pairwise(sigmas):
        x = euler(x, noise - x0, now, then)
    torch.testing.assert_close(x, x0)
