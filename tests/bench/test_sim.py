"""bench.sim and bench.decisions: what their tables say, and that they run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from riverrun.bench import decisions, sim, sim_plot
from riverrun.cluster.sim.grid import Figure, Grid, Result

FEW = sim.Plan((2,), 2, 30.0, (8,), 10.0)


@pytest.fixture(scope="module")
def found() -> list[Result]:
    return list(Grid(("W2", "W4"), ("B1", "B5", "ours"), 2, 2, seconds=30.0).play())


def test_ours_is_set_beside_each_baseline(found: list[Result]) -> None:
    rows = sim.beside(found)
    assert [row["ours against"] for row in rows] == ["B1", "B5"]
    ours, other = ([each for each in found if each.policy == name] for name in ("ours", "B5"))
    cost = sum(a.cost.mean / b.cost.mean for a, b in zip(ours, other, strict=True)) / 2
    assert rows[1]["cost"] == f"{100 * (cost - 1):+.1f} %"
    lower = sum(a.worst.mean < b.worst.mean and a.cost.mean < b.cost.mean for a, b in zip(ours, other, strict=True))
    assert rows[1]["lower in both"] == f"{lower} of 2"


def test_an_ablation_is_set_beside_the_whole() -> None:
    rows = sim.gains(list(sim.ablation(FEW)))
    assert [(row["ours"], row["paper's cost"]) for row in rows] == [("moves off", "+15.0 %"), ("scale off", "+42.9 %")]
    assert rows[1]["cost"].startswith("+")


def test_a_crowd_takes_nine_in_ten_places() -> None:
    day = sim.crowd(50, 60.0)
    assert 0.5 * 200 < day.active_at_once < day.peak_active <= 200


def test_spread_is_over_the_seeds() -> None:
    assert Figure.of([1.0, 3.0]) == Figure(2.0, 1.0, 3.0)
    assert Figure.of([1000.0, 3000.0]).text() == "2,000 ±1000"


def test_the_bench_runs_and_its_figures_can_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sim, "QUICK", FEW)
    file = tmp_path / "run.json"
    assert sim.main(["--quick", "--only", "grid,pareto,large", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "ours against" in shown
    assert "run took s" in shown
    figures = json.loads(file.read_text())["figures"]
    assert {row["policy"] for row in figures["grid"]} == {*sim.BASELINES, "ours"}
    assert all(row["seeds"] == 2 for row in figures["grid"])
    sim_plot.main([str(file), "--to", str(tmp_path / "plots")])
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) == ["sim_grid.png", "sim_pareto.png"]


@pytest.mark.parametrize(("sessions", "workers"), [(100, 25), (1000, 256), (7, 3)])
def test_a_snapshot_has_room_for_who_waits(sessions: int, workers: int) -> None:
    there, waiting = decisions.snapshot(sessions, workers, 0)
    assert len(there) == workers
    assert sum(len(worker.sessions) for worker in there) + len(waiting) == sessions
    assert all(len(worker.sessions) <= worker.places for worker in there)
    assert sum(worker.room for worker in there) >= len(waiting)


def test_decisions_are_measured_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "QUICK", decisions.Plan(((100, 25), (300, 80)), 1))
    file = tmp_path / "decisions.json"
    assert decisions.main(["--quick", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["figures"]["decisions"]
    assert [(row["sessions"], row["limit_ms"]) for row in rows] == [(100, None), (300, None)]
    assert all(0 < row["moves"] <= 12 and row["ms"] > 0 for row in rows)
    sim_plot.main([str(file), "--to", str(tmp_path)])
    assert (tmp_path / "decisions.png").stat().st_size > 1000
