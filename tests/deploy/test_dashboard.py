"""The dashboard: Grafana's own data model takes all of it, and every figure that it asks for is exported."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import ray
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

import riverrun

from .exported import RAYS, asked, exported, unknown

PATH = Path(riverrun.__file__).parent / "deploy" / "grafana" / "riverrun.json"
VARIABLES = {"${name}": "ray_riverrun", "$__rate_interval": "5m", "$graph": ".*"}


@pytest.fixture
def board() -> dict[str, Any]:
    return json.loads(PATH.read_text())


def queries(board: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(panel's title, query), variables filled in."""
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            text = target["expr"]
            for variable, value in VARIABLES.items():
                text = text.replace(variable, value)
            yield panel["title"], text


def lost(there: Any, back: Any, at: str = "") -> Iterator[str]:
    """Where `back` has not what `there` has."""
    if isinstance(there, dict):
        for key in there:
            yield from lost(there[key], back.get(key) if isinstance(back, dict) else None, f"{at}.{key}")
    elif isinstance(there, list) and isinstance(back, list) and len(there) == len(back):
        for n, (one, other) in enumerate(zip(there, back, strict=True)):
            yield from lost(one, other, f"{at}[{n}]")
    elif there != back:
        yield at


def through_grafana(board: dict[str, Any]) -> dict[str, Any]:
    """Read into Grafana's published types, and written again: what they don't know is not there any more."""
    register_default_plugins()
    return json.loads(json.dumps(Dashboard.from_json(board).to_json(), cls=JSONEncoder))


def test_grafanas_data_model_takes_all_of_it(board: dict[str, Any]) -> None:
    assert list(lost(board, through_grafana(board))) == []


def test_the_data_model_bites(board: dict[str, Any]) -> None:
    wrong = copy.deepcopy(board)
    panel = next(n for n, p in enumerate(wrong["panels"]) if p["type"] == "timeseries")
    wrong["panels"][panel]["targets"][0]["legend_format"] = "x"
    wrong["panels"][panel]["gridpos"] = {}
    lacks = list(lost({**wrong, "gridpos": {"x": 1}}, through_grafana(wrong)))
    assert lacks == [f".panels[{panel}].targets[0].legend_format", ".gridpos.x"]


def test_every_figure_it_asks_for_is_exported(board: dict[str, Any]) -> None:
    found = [(title, unknown(query)) for title, query in queries(board)]
    assert len(found) > 20
    assert [(title, names) for title, names in found if names] == []


def test_rays_own_figures_are_those_that_its_agent_makes() -> None:
    text = (Path(ray.__file__).parent / "dashboard" / "modules" / "reporter" / "reporter_agent.py").read_text()
    assert [name for name in RAYS if f'"{name.removeprefix("ray_")}"' not in text] == []


@pytest.mark.parametrize(
    "query", ["ray_riverrun_sesions", 'ray_riverrun_sessions{stage="x"}', "sum by (stage) (ray_riverrun_sessions)"]
)
def test_the_check_bites(query: str) -> None:
    assert unknown(query) in ({"ray_riverrun_sesions"}, {"stage"})


def test_what_an_operator_must_see_is_shown(board: dict[str, Any]) -> None:
    shown = set().union(*(asked(query)[0] for _, query in queries(board)))
    ours = {name for name in exported() if not name.endswith(("_count", "_sum", "_info"))} - RAYS.keys()
    details = {"ray_riverrun_chunks_total", "ray_riverrun_sent_frames_total", "ray_riverrun_step_sessions_bucket"}
    details |= {"ray_riverrun_actor_steps_total", "ray_riverrun_actor_step_p99_seconds"}
    assert ours - shown == details


def test_panels_have_their_own_ids_and_places(board: dict[str, Any]) -> None:
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [tuple(panel["gridPos"][key] for key in "xywh") for panel in panels]
    assert all(x >= 0 and x + w <= 24 for x, _, w, _ in places)
    apart = [
        ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay
        for (ax, ay, aw, ah), (bx, by, bw, bh) in combinations(places, 2)
    ]
    assert all(apart)
