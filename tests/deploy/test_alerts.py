"""The alarms: queries that parse, of figures that are exported, each explained on the operator's page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import riverrun

from .exported import unknown

ROOT = Path(riverrun.__file__).parent
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alarm_asks_for_what_is_exported(rule: dict[str, Any]) -> None:
    assert unknown(rule["expr"]) == set()
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("page", "ticket", "info")
    assert rule["annotations"]["summary"]


def test_the_operators_page_explains_each_and_no_other() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    explained = re.findall(r"^\| `(Riverrun\w+)` \|", page, re.M)
    assert explained == [rule["alert"] for rule in RULES]
