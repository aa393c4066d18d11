"""What the checkpoint benchmark counts; times are whatever they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from riverrun.bench import checkpoint
from riverrun.bench.adherence import Rig
from riverrun.bench.checkpoint_sizes import released
from riverrun.store.blobs import BlobStore
from riverrun.tests.models.table import ROWS, built


def test_a_row_is_measured_in_each_kind_and_nothing_is_left(tmp_path: Path) -> None:
    row = next(row for row in ROWS if row.name == "Ca2-VDM")
    model, store = built(row, tmp_path), BlobStore(str(tmp_path / "blobs"))
    state = checkpoint.warmed(row, model, row.window)
    exact, recache = (checkpoint.cost(row, model, state, kind, store, 1) for kind in model.snapshot_kinds())
    assert exact.held == recache.held == state.nbytes
    assert recache.nbytes < exact.nbytes <= state.nbytes
    assert not list(store.sessions())


def test_released_sizes() -> None:
    """LongLive: the sink's quarter of 3.45 GB of keys and values, 39 latents and the prompt, against all of it."""
    sizes = {each.model: each for each in released()}
    assert sizes["LongLive 1.3B"].recache == 3 * 2 * 30 * 1560 * 1536 * 2 + 39 * 16 * 60 * 104 * 2 + 512 * 4096 * 2
    assert sizes["LongLive 1.3B"].exact == pytest.approx(5.35e9, rel=0.002)
    assert sizes["Qwen3-8B"].exact == 4096 * (36 * 2 * 8 * 128 * 2 + 8)
    assert all(each.recache is None or each.recache < each.exact / 6 for each in sizes.values())


def test_drift_is_counted_from_the_first_frame_after_a_restore() -> None:
    """In a stream's beginning all its latents are known, and nothing drifts but for rounding."""
    rig = Rig()
    (state,) = rig.open(checkpoint.held_out_scenes(1))
    for _ in range(2):
        rig.block([state])
    taken = state.snapshot("recache")
    near = checkpoint._drift("near", rig, [state], [rig.model.restore(state.params, taken)], taken.nbytes)
    assert near.is_counted
    assert near.worst is None or near.worst > 50
