"""The table and the JSON of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import riverrun
from riverrun.bench.report import machine, table, write_json


def test_table_lines_up_and_is_markdown() -> None:
    text = table(["process", "MiB", "grew"], [["gateway", 1234, 0.5], ["stage", 7, None]])
    assert text.splitlines() == [
        "| process |   MiB | grew |",
        "|---------|------:|-----:|",
        "| gateway | 1,234 |  0.5 |",
        "| stage   |     7 |    - |",
    ]


def test_table_without_rows_is_its_head() -> None:
    assert table(["a"], []).splitlines() == ["| a   |", "|-----|"]


def test_json_says_where_it_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "new" / "horizon.json"
    write_json(path, "horizon", {"chunks": 10}, {"growth": 0.1})
    document = json.loads(path.read_text())
    assert document["benchmark"] == "horizon"
    assert document["version"] == riverrun.__version__
    assert document["figures"] == {"growth": 0.1}
    assert document["settings"] == {"chunks": 10}
    assert document["machine"]["cores"] == machine().cores >= 1


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", "x", {}, {"value": float("nan")})
