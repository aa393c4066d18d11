"""Histories: three-valued slots, snapshots that round-trip, and batches of streams in one phase."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from riverrun.kernels.histories import Histories, assign_paths


def filled(value: float) -> Histories:
    histories = Histories()
    histories.put("a.conv", torch.full((1, 2, 3), value))
    histories.mark_seen("a.time")
    return histories


def test_a_slot_is_empty_seen_or_a_tensor() -> None:
    histories = filled(1.0)
    assert histories.is_empty("b")
    assert not histories.is_empty("a.time")
    assert histories.get("a.time") is None
    assert histories.get("b") is None
    assert histories.get("a.conv") is not None
    assert list(histories.paths()) == ["a.conv", "a.time"]
    histories.clear()
    assert histories.is_empty("a.time")


def test_put_keeps_a_copy_of_its_own() -> None:
    activation = torch.zeros(1, 2, 100)
    histories = Histories()
    histories.put("conv", activation[:, :, -2:])
    activation.fill_(7)
    kept = histories.get("conv")
    assert kept is not None
    assert not kept.any()
    assert kept.untyped_storage().nbytes() == histories.nbytes == 2 * 2 * 4


def test_clone_is_independent() -> None:
    one = filled(1.0)
    other = one.clone()
    other.put("a.conv", torch.zeros(1, 2, 3))
    other.mark_seen("more")
    assert float(one.get("a.conv").sum()) == 6  # type: ignore[union-attr]
    assert one.is_empty("more")


def test_snapshot_round_trips_through_json() -> None:
    meta, tensors = filled(3.0).snapshot()
    again = Histories.restore(json.loads(json.dumps(meta)), tensors)
    assert again.phase == filled(3.0).phase
    assert torch.equal(again.get("a.conv"), torch.full((1, 2, 3), 3.0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'a.conv'"):
        Histories.restore(meta, {})


def test_streams_in_one_phase_share_a_step() -> None:
    streams = [filled(1.0), filled(2.0)]
    stacked = Histories.stack(streams)
    assert stacked.get("a.conv").shape == (2, 2, 3)  # type: ignore[union-attr]
    for one, again in zip(streams, stacked.unstack(), strict=True):
        assert torch.equal(one.get("a.conv"), again.get("a.conv"))  # type: ignore[arg-type]
        assert not again.is_empty("a.time")
        assert again.nbytes == again.get("a.conv").untyped_storage().nbytes()  # type: ignore[union-attr]


def test_the_order_of_first_use_is_no_phase() -> None:
    one, other = Histories(), Histories()
    for histories, paths in ((one, "ab"), (other, "ba")):
        for path in paths:
            histories.put(path, torch.zeros(1, 2))
    assert one.phase == other.phase
    assert Histories.stack([one, other]).nbytes == one.nbytes + other.nbytes


def test_streams_in_two_phases_do_not() -> None:
    with pytest.raises(ValueError, match="2 different phases"):
        Histories.stack([filled(1.0), Histories()])


def test_paths_are_those_of_the_state_dict() -> None:
    class Conv(nn.Conv1d):
        path = ""

    root = nn.Sequential(nn.Sequential(Conv(1, 1, 1)), Conv(1, 1, 1))
    assign_paths(root, Conv)
    assert [root[0][0].path, root[1].path] == ["0.0", "1"]
