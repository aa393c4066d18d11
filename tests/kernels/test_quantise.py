"""NVFP4: what the format says of codes and scales. Equality with the official codes is a parity test."""

from __future__ import annotations

import pytest
import torch

from riverrun.kernels.quantise import LEVELS, dequantise_nvfp4, quantise_nvfp4, smoothed


@pytest.mark.parametrize("rule", ["mse", "static_6"])
def test_every_level_survives(rule: str) -> None:
    levels = torch.tensor([*LEVELS, *(-level for level in LEVELS)])
    assert torch.equal(quantise_nvfp4(levels[None], rule).values, levels[None])  # type: ignore[arg-type]


def test_ties_go_to_the_even_code() -> None:
    row = torch.tensor([6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0] * 2)
    values = quantise_nvfp4(row[None], "static_6").values[0, :8]
    assert values.tolist() == [6.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]


@pytest.mark.parametrize("rule", ["mse", "static_6"])
def test_error_and_size(rule: str) -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    made = quantise_nvfp4(x, rule)  # type: ignore[arg-type]
    error = (dequantise_nvfp4(made) - x).norm() / x.norm()
    assert error < 0.12
    assert made.nbytes == 64 * 64 * 4.5 / 8 + 4


def test_mse_is_never_worse() -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    errors = {rule: (dequantise_nvfp4(quantise_nvfp4(x, rule)) - x).norm() for rule in ("mse", "static_6")}
    assert errors["mse"] < errors["static_6"]


def test_zeros_stay_zeros() -> None:
    assert not dequantise_nvfp4(quantise_nvfp4(torch.eye(2, 16), "mse"))[:, 2:].any()


def test_smoothed_keys_have_no_mean() -> None:
    assert smoothed(torch.randn(4, 8) + 5).mean(dim=-1).abs().max() < 1e-6


def test_rows_must_be_whole_groups() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        quantise_nvfp4(torch.zeros(2, 20))
