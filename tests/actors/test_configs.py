"""Configuration: defaults < file < overrides, and one clear line for what is wrong."""

import asyncio

import pytest

from riverrun.actors.serve import Service
from riverrun.configs import ServiceConfig, load_model, load_service
from riverrun.models.base import BadRequest


def test_defaults_file_and_overrides(tmp_path):
    assert load_service() == ServiceConfig()
    file = tmp_path / "mine.yaml"
    file.write_text("port: 7\nlimits: {jobs: 2}\n")
    config = load_service(str(file), ["limits.sessions=3", "port=8"])
    assert (config.port, config.limits.jobs, config.limits.sessions, config.host) == (8, 2, 3, "127.0.0.1")
    assert load_service("cluster").ray_address == "auto"


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("prot: 7", [], r"mine.yaml: unknown key 'prot'"),
        ("limits: {job: 7}", [], r"mine.yaml: unknown key 'limits.job'"),
        ("port: seven", [], r"mine.yaml: port: Value 'seven' of type 'str' could not be converted to Integer"),
        ("", ["limits.job=7"], r"override: unknown key 'limits.job'"),
        ("port: 99999", [], r"port must be 0..65535, got 99999"),
        ("drain_s: -1", [], r"drain_s must be finite and not negative, got -1.0"),
        ("stall_s: -1", [], r"stall_s must be finite and not negative, got -1.0"),
        ("lead_s: .nan", [], r"lead_s must be finite and not negative, got nan"),
        ("port: [", [], r"mine.yaml: while parsing"),
        ("- port", [], r"mine.yaml: must hold keys and values"),
    ],
)
def test_wrong_values_are_named(tmp_path, text, overrides, words):
    file = tmp_path / "mine.yaml"
    file.write_text(text or "{}")
    with pytest.raises(BadRequest, match=words) as caught:
        load_service(str(file), overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "exposed"),
    [
        *((near, False) for near in ("127.0.0.1", "localhost", "::1", "[::1]", "127.1.2.3")),
        *((far, True) for far in ("0.0.0.0", "::", "[::]", "10.0.0.7", "box.example")),
    ],
)
def test_who_can_reach_a_host(host, exposed):
    assert ServiceConfig(host=host).is_exposed == exposed


def test_a_service_that_others_reach_must_say_where_jobs_write():
    async def start():
        async with Service(ServiceConfig(host="0.0.0.0", port=0)):
            pass

    with pytest.raises(
        BadRequest, match=r"jobs_dir must be set: others reach host 0\.0\.0\.0, and their jobs write files"
    ):
        asyncio.run(start())
    assert load_service("cluster").jobs_dir


def test_models_inside_and_outside_the_tree(tmp_path):
    inside = load_model("synthetic")
    assert (inside.class_path, inside.search_path) == ("riverrun.models.synthetic:Synthetic", None)
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nclass: mypkg.mod:MyModel\nstage: generation\nargs: {deep: {er: [1, 2]}}\n")
    outside = load_model(str(file), ["actor.max_sessions=2"])
    assert (outside.search_path, outside.args, outside.actor.max_sessions) == (
        str(tmp_path),
        {"deep": {"er": [1, 2]}},
        2,
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class: a:B\nstage: generation", "mine.yaml: name is missing"),
        ("name: mine\nstage: generation", "mine.yaml: class is missing"),
        ("name: mine\nclass: a.B\nstage: generation", "class must be 'package.module:Class', got 'a.B'"),
        ("name: mine\nclass: a:B\nstage: dance", "stage must be one of generation, "),
    ],
)
def test_wrong_models_are_named(tmp_path, text, words):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(BadRequest, match=words):
        load_model(str(file))


def test_unknown_names_list_what_there_is():
    with pytest.raises(BadRequest, match=r"no 'synthetik' in configs; there are .*synthetic"):
        load_model("synthetik")
    with pytest.raises(BadRequest, match=r"there is no file nowhere/x.yaml"):
        load_model("nowhere/x.yaml")
