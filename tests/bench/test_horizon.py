"""What the horizon benchmark makes of its samples, and the model that keeps an early State.

The service itself is measured by running it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from riverrun.bench.growth import Plan, Sample, growths
from riverrun.bench.horizon import figures_of, show, twin_model
from riverrun.bench.service import Memory
from riverrun.bench.twin import TIMES, Twin
from riverrun.configs import load_model
from riverrun.models.base import Control
from riverrun.models.synthetic import Synthetic, frame_number

MIB = 2**20
NAMES = {10: "ray raylet", 20: "store", 30: "actor synthetic-0", 40: "actor of a later day"}
EVEN = {"late": [2.0, 2.0, 2.0], "early": [2.0, 2.0, 2.0]}


def samples(plan: Plan, leak: int, bulge: int = 0) -> list[Sample]:
    """The stage gains `leak` bytes a chunk, and holds `bulge` bytes from chunk 600 to 700; all others stay. Warm-up is
    steep everywhere."""
    found = []
    for chunk in range(0, plan.chunks, plan.every):
        warm = 100 * MIB * min(chunk, plan.settled) // plan.settled
        more = warm + leak * chunk + (bulge if 600 <= chunk < 700 else 0)
        stage = Memory(rss=300 * MIB + more, own=200 * MIB + more)
        steady = Memory(rss=200 * MIB + warm, own=0)
        found.append(Sample(chunk, {10: steady, 20: steady, 30: stage}, keys=5))
    return found


def figures(plan: Plan, found: list[Sample], twin: dict = EVEN) -> dict:
    return figures_of(growths(found, NAMES, plan), found, [10.0] * plan.chunks, twin, plan)


@pytest.mark.parametrize(("chunks", "wanted"), [(3000, (300, 100, 15, 450, 150)), (1000, (300, 100, 5, 450, 150))])
def test_plan_of_a_judged_run(chunks: int, wanted: tuple[int, ...]) -> None:
    plan = Plan.of(chunks, 40)
    assert (plan.settled, plan.window, plan.every, plan.kept, plan.twin) == wanted
    assert plan.is_judged
    assert not Plan.of(999, 40).is_judged


@pytest.mark.parametrize("leak", [0, 20_000])
def test_growth_counts_from_the_warm_up_on(leak: int) -> None:
    plan = Plan.of(1000, 40)
    found = growths(samples(plan, leak), NAMES, plan)
    assert [growth.process for growth in found] == ["store", "actor synthetic-0", "ray raylet"]
    assert [growth.ours for growth in found] == [True, True, False]
    stage = found[1]
    settled = 400 * MIB + leak * 347.5  # the median of chunks 300, 305, …, 395
    assert stage.percent == pytest.approx(100 * leak * (947.5 - 347.5) / settled)
    assert stage.widest_percent == stage.percent
    assert stage.settled_mib == pytest.approx(settled / MIB)
    assert found[0].percent == 0
    assert len(stage.mib) == 200


def test_growth_that_is_over_at_the_end_is_seen() -> None:
    plan = Plan.of(1000, 40)
    stage = growths(samples(plan, 0, bulge=40 * MIB), NAMES, plan)[1]
    assert stage.percent == 0
    assert stage.widest_percent == pytest.approx(10)


def test_holds_only_if_memory_keys_and_steps_do() -> None:
    plan = Plan.of(1000, 40)
    good = samples(plan, 0)
    more_keys = [*good[:-1], replace(good[-1], keys=6)]
    slower = {"late": [2.2, 2.2, 2.0], "early": [2.0, 2.0, 2.2]}
    assert figures(plan, good)["holds"] is True
    assert figures(plan, samples(plan, 20_000))["holds"] is False
    assert figures(plan, samples(plan, -20_000))["holds"] is False
    assert figures(plan, more_keys)["holds"] is False
    assert figures(plan, good, slower)["holds"] is False
    assert figures(short := Plan.of(500, 40), samples(short, 20_000))["holds"] is None


@pytest.mark.parametrize(
    ("chunks", "leak", "ending"),
    [(1000, 0, "early ones: yes"), (1000, 20_000, "early ones: NO"), (500, 0, "take 1000 or more")],
)
def test_show_ends_with_the_verdict(chunks: int, leak: int, ending: str) -> None:
    plan = Plan.of(chunks, 40)
    text = show(figures(plan, samples(plan, leak)), plan)
    assert "| store  " in text
    assert f"store keys after chunk {plan.settled}: 5 to 5" in text
    assert "ratio 1.000" in text
    assert text.endswith(ending)


def test_twin_steps_the_early_state_beside_the_late_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Twin("synthetic", keep_at=3, compare_from=6, chunks=4, folder=str(tmp_path))
    inner, seen = Synthetic.step, []

    def step(self: Synthetic, states: list) -> list:
        made = inner(self, states)
        seen.append((states[0].prompt, frame_number(made[0][0].data[0]) // 4))
        return made

    monkeypatch.setattr(Synthetic, "step", step)
    params = model.Params(prompt="red", state_bytes=1000)
    state, plain = model.open(params, seed=5), Synthetic().open(params, seed=5)
    for number in range(12):
        if number == 8:
            model.control(state, Control(1, "prompt", "blue"))
            Synthetic().control(plain, Control(1, "prompt", "blue"))
        made, expected = model.step([state]), inner(Synthetic(), [plain])
        assert np.array_equal(made[0][0].data, expected[0][0].data)
    assert [step[1] for step in seen[:6]] == list(range(6))
    threes = [seen[at : at + 3] for at in range(6, 18, 3)]  # the session's own step, then its twins in turn first
    assert threes[0] == [("red", 6), ("red", 3), ("red", 6)]
    assert threes[1] == [("red", 7), ("red", 7), ("red", 4)]
    assert threes[2] == [("blue", 8), ("blue", 5), ("blue", 8)]
    assert len(seen) == 6 + 12 + 2
    times = json.loads((tmp_path / TIMES).read_text())
    assert len(times["late"]) == len(times["early"]) == 4
    state = model.open(params, seed=6)  # a session after that is not compared
    for _ in range(12):
        model.step([state])
    assert json.loads((tmp_path / TIMES).read_text()) == times


def test_twin_model_goes_by_the_name_of_the_model_it_wraps(tmp_path: Path) -> None:
    config = load_model(str(twin_model("longlive-world", Plan.of(3000, 40), tmp_path)))
    assert (config.name, config.encoder, config.class_path) == (
        "longlive-world",
        "world-text",
        "riverrun.bench.twin:Twin",
    )
    assert config.args["keep_at"] == 450


def test_plot_draws_every_run(tmp_path: Path) -> None:
    plotting = pytest.importorskip("riverrun.bench.horizon_plot", reason="the extra `viz` is not installed")
    plan = Plan.of(200, 40)
    run = {"settings": {"model": "synthetic", "settled": plan.settled, "chunks": plan.chunks}}
    run["figures"] = figures(plan, samples(plan, 0))
    (tmp_path / "run.json").write_text(json.dumps(run))
    plotting.main([str(tmp_path / "run.json"), str(tmp_path / "run.json"), "--to", str(tmp_path / "x" / "plot.png")])
    assert (tmp_path / "x" / "plot.png").read_bytes().startswith(b"\x89PNG")
