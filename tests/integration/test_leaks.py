"""Nothing is left of a session, however it ended: not in gateway, actors, store, object store or processes."""

from __future__ import annotations

import random
import time

import grpc
import pytest

from riverrun.configs import load_service

from .balance import RESIDENT_SLACK, left_over, steady
from .census import Census, forget_ended
from .conftest import Running, Stubs, eventually, own_models
from .endings import HOLDS, WAYS, Ender


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    """A service of this module's own, so that no other test's sessions are counted."""
    folder = tmp_path_factory.mktemp("leaks")
    own_models(folder)
    (folder / "greys" / "held.py").write_text(HOLDS)
    held = folder / "held"
    (folder / "held.yaml").write_text(
        f"name: held\nclass: greys.held:Held\nstage: generation\nargs: {{factor: 3, file: {held}}}\n"
    )
    (folder / "held-graph.yaml").write_text(
        "name: held\nstages: {make: {model: held}}\noutputs: {frames: make.frames}\n"
    )
    (folder / "turn.yaml").write_text(
        "name: turn\nstages: {turn: {model: synthetic}}\ninputs: {video: turn.frames}\noutputs: {frames: turn.frames}\n"
    )
    (folder / "chain.yaml").write_text(
        "name: chain\nstages: {make: {model: synthetic}, turn: {model: synthetic}}\n"
        "edges: [{from: make.frames, to: turn.frames}]\noutputs: {frames: turn.frames}\n"
    )
    graphs = ",".join(f"{folder}/{name}.yaml" for name in ("chain", "turn", "held-graph"))
    overrides = ["port=0", f"models=[synthetic,{folder}/held.yaml]", f"graphs=[{graphs}]", "ray_address=local"]
    service = Running(load_service(None, [*overrides, "drain_s=0.2"]))
    service.start()
    with grpc.insecure_channel(service.service.address) as channel:
        stubs = Stubs(channel)
        yield service, stubs, Ender(service.service.address, stubs, held)
    service.stop()


@pytest.mark.parametrize("way", WAYS)
def test_a_session_ends(leaky, way):
    service, stubs, ender = leaky
    WAYS[way](ender)
    eventually(lambda: stubs.status().sessions == 0)
    eventually(lambda: not any(a.sessions + a.held_bytes + a.reserved_bytes for a in stubs.status().actors))
    service.call(service.service.check())


def rounds(count: int) -> list[str]:
    """Names of `count` ways, each as often as the others, in an order that is always the same."""
    names = [name for _ in range(count // len(WAYS) + 1) for name in WAYS][:count]
    random.Random(4).shuffle(names)
    return names


@pytest.mark.parametrize(
    "count", [2 * len(WAYS), pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_nothing_is_left_of_sessions_that_ended_in_every_way(leaky, count):
    """After every way has run once, everything is counted; then `count` sessions run, and it is counted again."""
    service, stubs, ender = leaky
    for way in WAYS.values():
        way(ender)
    census = Census(service, stubs, ["synthetic", "held"])

    def counted() -> dict[str, int]:
        forget_ended(service.service.store_url)
        ender.live()  # reading a page takes what was forgotten out of the index
        return census.now()

    before = eventually(lambda: steady(counted))
    resident, began = census.resident(), time.monotonic()
    for name in rounds(count):
        WAYS[name](ender)
    took = time.monotonic() - began
    assert not left_over(before, counted)
    growth = {name: census.resident()[name] - bytes_ for name, bytes_ in resident.items()}
    print(f"{count} sessions in {took:.0f} s; resident bytes more: {growth}")
    assert max(growth.values()) < RESIDENT_SLACK, growth
    service.call(service.service.check())
