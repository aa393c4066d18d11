"""`cluster.yaml` is one that `ray up` takes: checked with Ray's own schema and by Ray's own code."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

import riverrun

ROOT = Path(riverrun.__file__).parent


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def test_fits_the_schema(config: dict[str, Any], schema: dict[str, Any]) -> None:
    jsonschema.validate(config, schema)


def test_the_schema_bites(config: dict[str, Any], schema: dict[str, Any]) -> None:
    config["idle_timeout_minutes"] = "ten"
    with pytest.raises(jsonschema.ValidationError, match="'ten' is not of type 'number'"):
        jsonschema.validate(config, schema)


def test_ray_prepares_and_accepts_it(config: dict[str, Any]) -> None:
    """What `ray up` does before it talks to the cloud; it fills in what the file leaves out."""
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    types = prepared["available_node_types"]
    assert types[prepared["head_node_type"]]["max_workers"] == 0
    assert sum(kind["min_workers"] for kind in types.values()) <= prepared["max_workers"]


def test_gpu_workers_have_bounds_and_room_for_stages(config: dict[str, Any]) -> None:
    workers = {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}
    assert workers
    for kind in workers.values():
        assert kind["resources"]["GPU"] >= 1
        assert 0 <= kind["min_workers"] <= kind["max_workers"] <= config["max_workers"]
    assert config["idle_timeout_minutes"] > 0
    assert not config["file_mounts"]


def test_nodes_install_this_version(config: dict[str, Any]) -> None:
    assert f"pip install 'riverrun=={riverrun.__version__}'" in config["setup_commands"]
