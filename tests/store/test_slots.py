"""Cluster slots: all that one command or script touches lies in one, by Redis's own CRC16."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from redis.crc import key_slot

from riverrun.models.base import Unavailable
from riverrun.store.connection import plain
from riverrun.store.embedded import EmbeddedServer
from riverrun.store.jobs import JobRecord
from riverrun.store.records import ControlEntry, SessionRecord, SessionState
from riverrun.store.sessions import SessionStore, log_key, record_key


@pytest.fixture
def touched(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Keys of each script that ran."""
    calls: list[tuple[str, ...]] = []
    register = SessionStore.__init__

    def init(self: SessionStore, *args: Any, **options: Any) -> None:
        register(self, *args, **options)
        for holder in (self, self.jobs):
            for name, script in vars(holder).items():
                if hasattr(script, "registered_client"):
                    setattr(holder, name, noted(script))

    def noted(script: Any) -> Any:
        async def run(keys: list[str], args: list[Any]) -> Any:
            calls.append(tuple(keys))
            return await script(keys=keys, args=args)

        return run

    monkeypatch.setattr(SessionStore, "__init__", init)
    return calls


def test_a_session_s_keys_share_a_slot_and_sessions_are_spread() -> None:
    slots = {key_slot(record_key(str(n)).encode()) for n in range(1000)}
    assert all(key_slot(record_key(str(n)).encode()) == key_slot(log_key(str(n)).encode()) for n in range(1000))
    assert len(slots) > 900  # of 16,384: few meet by chance
    thirds = [sum(slot * 3 // 16384 == third for slot in slots) for third in range(3)]
    assert min(thirds) > 250


def test_a_cluster_that_does_not_answer_is_unavailable() -> None:
    async def body() -> None:
        store = SessionStore("redis+cluster://127.0.0.1:1", timeout_s=0.5)
        with pytest.raises(Unavailable, match="the session store does not answer"):
            await store.ping()
        await store.close()

    asyncio.run(asyncio.wait_for(body(), 60))


def test_a_clusters_node_that_is_spoken_to_as_if_it_were_alone_says_so(cluster: str) -> None:
    async def body() -> None:
        store = SessionStore(plain(cluster))
        elsewhere = next(str(n) for n in range(100) if key_slot(record_key(str(n)).encode()) > 6000)  # its: 0..5460
        with pytest.raises(Unavailable, match="the session store refuses"):
            await store.get(elsewhere)
        await store.close()

    asyncio.run(asyncio.wait_for(body(), 60))


def test_every_script_touches_one_slot(server: EmbeddedServer, touched: list[tuple[str, ...]]) -> None:
    async def body() -> None:
        store = SessionStore(server.url)
        await store._redis.flushall()
        made = await store.create(SessionRecord("s1", "g", nonce="n", tenant="t", client_id="c"))
        assert await store.admit(made, 3)
        await store.log(made, ControlEntry(1, "prompt"))
        await store.update(replace(made, state=SessionState.CLOSED))
        await store.delete("s1")
        job = await store.jobs.create(JobRecord("j1", "g", {}, 0, 4, (), {}, tenant="t", client_id="c"))
        await store.jobs.update(replace(job, state="succeeded"))
        await store.close()

    asyncio.run(body())
    assert len(touched) == 8
    assert [keys for keys in touched if len({key_slot(key.encode()) for key in keys}) > 1] == []
