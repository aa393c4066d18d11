"""The parts of `make realsize` that need no gigabytes: what a state is found to hold, the figures' table, the guard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from riverrun.bench import realsize
from riverrun.kernels.cache import CacheSpec, KVCache
from riverrun.kernels.histories import Histories
from riverrun.kernels.policies import Full
from riverrun.models.wan.vae import VAEConfig, WanVAE


@dataclass
class State:
    """As a model's: a cache, histories, tensors, and one tensor under two names."""

    cache: KVCache
    histories: Histories
    recent: Tensor
    views: dict[str, Tensor]


State.__module__ = "riverrun.test"


def test_everything_a_state_holds_is_found_once() -> None:
    cache = KVCache(CacheSpec("self", 2, 2, 4, "normed", page=3), Full(6))
    histories = Histories()
    histories.put("conv", torch.zeros(1, 4, 2))
    histories.mark_seen("time")
    recent = torch.zeros(10)
    state = State(cache, histories, recent, {"view": recent[:2], "other": torch.zeros(100)[:1]})
    measured = sum(storage.nbytes() for storage in realsize.held_by(state))
    assert measured == cache.nbytes + histories.nbytes + recent.nbytes + 400, "a view holds all it is a view of"


def test_random_weights_have_every_key_in_bfloat16() -> None:
    config = VAEConfig(3, 2, (1, 2), 1, (True,), (0.0, 0.0), (1.0, 1.0))
    with torch.device("meta"):
        vae = WanVAE(config)
    tensors = realsize.random_weights(vae, 0)
    assert {name: t.shape for name, t in tensors.items()} == {name: t.shape for name, t in vae.state_dict().items()}
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert float(tensors["decoder.head.0.gamma"].float().mean()) == pytest.approx(1, abs=0.05)


def test_the_table_says_whether_it_holds() -> None:
    figures = {
        "predicted_bytes": 100_000_000,
        "measured_bytes": 104_000_000,
        "difference_percent": -3.85,
        "predicted_bytes_480x832": 5_440_000_000,
        "tensors": 1019,
        "frames": [9, 64, 96, 3],
        "block_s": 5.0,
        "write_s": 20.0,
        "load_s": 1.0,
        "holds": False,
    }
    shown = realsize.show(figures)
    assert "100.00 MB" in shown
    assert "-3.85 %" in shown
    assert shown.endswith("within 3 %: NO")


def test_it_does_not_start_where_there_is_no_room(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(realsize, "DISK", 1 << 60)
    monkeypatch.setattr(realsize, "measure", lambda *_: pytest.fail("it started"))
    assert realsize.main([]) == 2
    assert "of disk free" in capsys.readouterr().err
    monkeypatch.setattr(realsize, "DISK", 0)
    monkeypatch.setattr(realsize, "MEMORY", 0)
    assert realsize.shortage(Path("/")) == ""
