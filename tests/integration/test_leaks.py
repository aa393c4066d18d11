"""Nothing is left of a session, however it ended: not in gateway, actors, store, object store or processes."""

from __future__ import annotations

import contextlib
import random
import time

import grpc
import pytest

from riverrun.configs import load_service

from .census import Census, forget_ended
from .conftest import Running, Stubs, eventually, own_models
from .endings import HOLDS, WAYS, Ender

SLACK = {"files": 8, "threads": 4}
"""Ray and gRPC keep pools of them that grow a little with what was ever needed at once."""

RESIDENT_SLACK = 64 << 20
"""Of a process; the States of thirty sessions are as much."""


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
    left = before

    def is_back() -> bool:
        nonlocal left
        left = counted()
        return not grown(before, left)

    with contextlib.suppress(AssertionError):  # what is left says more than that it did not go
        eventually(is_back)
    assert not grown(before, left)
    growth = {name: census.resident()[name] - bytes_ for name, bytes_ in resident.items()}
    processes = {name: f"{before.get(name, 0)} -> {n}" for name, n in left.items() if name.startswith("process")}
    print(f"{count} sessions in {took:.0f} s; resident bytes more: {growth}; {processes}")
    assert max(growth.values()) < RESIDENT_SLACK, growth
    service.call(service.service.check())


def steady(counted) -> dict[str, int]:
    """What is counted twice alike; {} if it changes."""
    first = counted()
    return first if counted() == first else {}


def grown(before: dict[str, int], now: dict[str, int]) -> dict[str, tuple[int, int]]:
    """What there is more of than there was, as (before, now)."""
    slack = {name: SLACK.get(name.rpartition(": ")[2], 0) if name.startswith("process") else 0 for name in now}
    return {name: (before.get(name, 0), n) for name, n in now.items() if n > before.get(name, 0) + slack[name]}
