"""Bytes of a session are measured by stepping one, and counted with at admission."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from riverrun.actors.footprint import STEPS, Footprint, described, measure
from riverrun.actors.sessions import NoRoom
from riverrun.actors.stage import StageWorker
from riverrun.cluster.admission import Need
from riverrun.graphs.stage import Epoch, OpenRequest
from riverrun.models.base import BadRequest, Description
from riverrun.models.synthetic import Synthetic, SyntheticParams, SyntheticState
from riverrun.tests.models.table import ROWS, built

MB = 1_000_000
ABOUT = Description(inputs=(), outputs=(), chunk_frames=4, fps=16, frame_shape=(10, 10), retained_bytes=100)


@dataclass
class Growing(SyntheticState):
    """Keeps a megabyte more for each of its first five steps."""

    @property
    def nbytes(self) -> int:
        return super().nbytes + MB * min(self.steps, 5)


class Greedy(Synthetic):
    """Fills 32 MB in each step."""

    def open(self, params, seed):
        state = super().open(params, seed)
        return Growing(**{field.name: getattr(state, field.name) for field in dataclasses.fields(state)})

    def step(self, states):
        scratch = np.ones((32, MB), np.uint8)
        chunks = super().step(states)
        assert scratch[-1, -1]
        return chunks


class Shy(Synthetic):
    def ready(self, state):
        return False


def test_a_step_is_measured_where_memory_is_given_out() -> None:
    found = measure(Greedy(), SyntheticParams(state_bytes=1000), seconds=600)
    assert found is not None
    assert (found.steps, found.retained) == (STEPS, 1000 + 5 * MB)
    assert found.extra is not None, "this machine has no /proc/self/clear_refs"
    assert 31 * MB < found.extra < 64 * MB


def test_the_time_of_a_warm_up_is_bounded() -> None:
    found = measure(Synthetic(), SyntheticParams(step_ms=20), seconds=0)
    assert found is not None
    assert found.steps == 2


def test_what_cannot_be_stepped_counts_as_described(caplog: pytest.LogCaptureFixture) -> None:
    assert measure(Shy(), SyntheticParams()) is None
    assert measure(Synthetic(), SyntheticParams(fail_at=1)) is None
    assert "the warm-up failed, sessions count as described: RuntimeError: told to fail at step 1" in caplog.text
    worker = StageWorker(Shy(), "one", 2)
    worker.warm_up({"state_bytes": 500})
    assert (worker.health().retained_bytes, worker.health().peak_bytes) == (500, 500 + 4 * 32 * 32 * 3)
    with pytest.raises(BadRequest, match="unknown parameter"):
        worker.warm_up({"no_such": 1})


@pytest.mark.parametrize(
    ("change", "need"),
    [
        ({}, Need(150, 350)),
        ({"frame_shape": (20, 10), "retained_bytes": 200}, Need(300, 700)),  # twice as large, all through
        ({"retained_bytes": 1000}, Need(1500, 1700)),  # keeps more, and its frames are as large
        ({"chunk_frames": 8}, Need(150, 550)),
        ({"peak_bytes": 900}, Need(150, 900)),  # the model knows of more
    ],
)
def test_other_parameters_cost_in_proportion(change: dict, need: Need) -> None:
    found = Footprint(ABOUT, retained=150, extra=200, steps=9)
    assert found.need(dataclasses.replace(ABOUT, **change)) == need


def test_without_figures_the_description_stands() -> None:
    unseen = Footprint(ABOUT, retained=90, extra=None, steps=9)
    assert unseen.need(ABOUT) == Need(100, 100)
    assert unseen.need(dataclasses.replace(ABOUT, peak_bytes=300)) == Need(100, 300)
    assert described(ABOUT) == Need(100, 100)
    bare = dataclasses.replace(ABOUT, frame_shape=None, retained_bytes=0)
    assert Footprint(bare, 10, 5, 9).need(bare) == Need(10, 15)
    assert Footprint(bare, 10, 5, 9).need(ABOUT) == Need(100, 105)


@pytest.mark.parametrize("row", [row for row in ROWS if row.name == "LongLive"], ids=lambda row: row.name)
def test_longlive_is_measured_to_a_full_window(row, tmp_path: Path) -> None:
    model = built(row, tmp_path)
    params = model.Params(**row.params)
    found = measure(model, params, seconds=60)
    assert found is not None
    assert (found.steps, found.retained) == (STEPS, model.describe(params).retained_bytes)


def test_admission_counts_one_step_at_a_time_where_no_more_share_it() -> None:
    worker = StageWorker(Greedy(), "one", max_sessions=8, max_bytes=90 * MB, max_batch=1)
    worker.warm_up({}, seconds=600)
    health = worker.health()
    assert (health.max_bytes, health.reserved_bytes, health.retained_bytes) == (90 * MB, 0, 5 * MB)
    assert 36 * MB < health.peak_bytes < 69 * MB
    opened = worker.open(OpenRequest("a", Epoch(1, "a"), {}, 0))
    assert opened.description.peak_bytes == health.peak_bytes
    worker.open(OpenRequest("b", Epoch(1, "a"), {}, 0))
    assert worker.health().reserved_bytes == health.peak_bytes + 5 * MB
    with pytest.raises(NoRoom, match=r"smaller parameters would fit: \d+\.\d MB with the default ones"):
        worker.open(OpenRequest("c", Epoch(1, "a"), {"state_bytes": 200 * MB}, 0))
    worker.check()


def test_torch_memory_is_seen_as_well() -> None:
    class Tensors(Synthetic):
        def step(self, states):
            scratch = torch.ones(32, MB, dtype=torch.uint8)
            chunks = super().step(states)
            assert scratch[-1, -1]
            return chunks

    found = measure(Tensors(), SyntheticParams())
    assert found is not None
    assert found.extra is not None
    assert 31 * MB < found.extra < 64 * MB
