"""The store's benchmark counts what it wrote, and leaves nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import redis

from riverrun.bench.records import USED, WRITES_S, Load, measured
from riverrun.store.embedded import EmbeddedServer


def test_it_writes_what_it_says_and_leaves_no_session(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        load = asyncio.run(measured(server.url, 20, 3))
        with redis.Redis.from_url(server.url) as client:
            assert client.keys("rr:{*") == []
    assert (load.sessions, load.servers, load.writes) == (20, 1, 60)
    assert load.bytes > 1000
    assert load.cpu_us > 0


def test_sessions_are_those_whose_writes_take_the_share_of_a_core() -> None:
    load = Load(1, 1, 1, 1.0, 1.0, cpu_us=100.0)
    assert load.carried * WRITES_S * 100e-6 <= USED < (load.carried + 1) * WRITES_S * 100e-6 + 1e-3
