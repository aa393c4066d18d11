"""`riverrun sim`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from riverrun.client.cli import app

FAST = ["sim", "--workload", "W4", "--gpus", "2", "--seeds", "2", "--seconds", "20", "--policy", "B1,ours"]


def run(*more: str) -> str:
    found = CliRunner().invoke(app, [*FAST, *more])
    assert found.exit_code == 0, found.output
    return found.output


def test_a_line_for_each_policy_with_its_spread(tmp_path: Path) -> None:
    file, picture = tmp_path / "run.json", tmp_path / "run.png"
    lines = run("--json", str(file), "--plot", str(picture)).splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["W4", "2", "B1"], ["W4", "2", "ours"]]
    assert "unplaced s" in lines[0]
    assert "±" in lines[1]
    rows = json.loads(file.read_text())
    assert [(row["policy"], row["seeds"]) for row in rows] == [("B1", 2), ("ours", 2)]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_trace_in_the_published_form_is_played(tmp_path: Path) -> None:
    rows = [
        {"time_s": float(n), "sequence": n, "event_type": "arrival", "session_id": f"s{n}", "payload": {"active": True}}
        for n in range(8)
    ]
    rows.append({"time_s": 20.0, "sequence": 9, "event_type": "departure", "session_id": "s0", "payload": {}})
    (tmp_path / "mine.json").write_text(json.dumps({"events": rows}))
    assert "mine" in run("--trace", str(tmp_path / "mine.json")).splitlines()[1]


def test_a_slower_model_and_deaths_show(tmp_path: Path) -> None:
    (tmp_path / "slow.json").write_text(json.dumps({"step_ms": [900, 1900], "chunk_s": 1.0, "places": 2}))
    file = tmp_path / "run.json"
    run("--latency", str(tmp_path / "slow.json"), "--kill-every-s", "8", "--json", str(file))
    row = json.loads(file.read_text())[0]
    assert row["profile"] == "slow"
    assert row["cpr"]["mean"] < 0.9
    assert row["worst"]["mean"] > 2000  # the two seconds of a recovery


@pytest.mark.parametrize(
    "wrong",
    [["--policy", "B77"], ["--workload", "W9"], ["--latency", "a100"], ["--gpus", "0"], ["--trace", "/no/file"]],
)
def test_wrong_usage_says_what_there_is(wrong: list[str]) -> None:
    found = CliRunner().invoke(app, [*FAST, *wrong])
    assert found.exit_code == 2
