"""Jobs in both stores: one writer by version, found by client id, running ones apart, gone after a while."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from riverrun.models.base import Corrupt
from riverrun.store import jobs
from riverrun.store.jobs import JobRecord
from riverrun.store.records import Conflict, ScriptEntry
from riverrun.store.sessions import SessionStore


def record(job="j1", **fields):
    about = {"controls": (ScriptEntry(3, 1, "prompt", "sea", "a"),), "sinks": {"frames": "file:///x/a.mp4"}}
    return JobRecord(job, "g", {"a": {"height": 4}}, 7, 100, **(about | fields))


def test_a_job_is_read_as_it_was_written(with_store):
    async def body(store):
        made = await store.jobs.create(record(created=5.0, outputs={"frames": (16.0, 4, 4)}))
        found = await store.jobs.get("j1")
        assert replace(found, outputs={}) == replace(made, outputs={})
        assert tuple(found.outputs["frames"]) == (16.0, 4, 4)
        assert await store.jobs.get("other") is None
        await store.check()

    with_store(body)


def test_one_writer(with_store):
    async def body(store):
        made = await store.jobs.create(record(gateway="dead"))
        mine = await store.jobs.update(replace(made, gateway="g1"))
        with pytest.raises(Conflict):
            await store.jobs.update(replace(made, gateway="g2"))
        assert (await store.jobs.get("j1")).gateway == "g1"
        assert mine.version == made.version + 1

    with_store(body)


def test_a_client_id_stands_for_one_job(with_store):
    async def body(store):
        await store.jobs.create(record(client_id="mine", tenant="a"))
        assert (await store.jobs.create(record("j2", client_id="mine", tenant="a"))).id == "j1"
        assert (await store.jobs.create(record("j3", client_id="mine", tenant="b"))).id == "j3"
        assert (await store.jobs.create(record("j4"))).id == "j4"

    with_store(body)


def test_running_ones_and_a_tenant_s(with_store):
    async def body(store):
        made = [await store.jobs.create(record(f"j{n}", tenant="ab"[n % 2], created=float(n))) for n in range(4)]
        await store.jobs.update(replace(made[1], state="succeeded"))
        assert sorted(job.id for job in await store.jobs.running()) == ["j0", "j2", "j3"]
        assert [job.id for job in await store.jobs.all()] == ["j3", "j2", "j1", "j0"]
        assert [job.id for job in await store.jobs.all("b")] == ["j3", "j1"]
        await store.jobs.delete(made[2])
        assert sorted(job.id for job in await store.jobs.running()) == ["j0", "j3"]
        await store.check()

    with_store(body)


def test_the_list_is_bounded(server, monkeypatch):
    async def body():
        monkeypatch.setattr(jobs, "LISTED", 5)
        store = SessionStore(server.url)
        await store._redis.flushall()
        for n in range(12):
            await store.jobs.create(record(f"j{n:02d}", created=float(n)))
        assert [job.id for job in await store.jobs.all()] == ["j11", "j10", "j09", "j08", "j07"]
        assert await store._redis.zcard(jobs.INDEX) == 5
        assert len(await store.jobs.running()) == 12
        await store.close()

    asyncio.run(body())


def test_what_is_no_record_is_corrupt():
    for text in ("{", "[]", '{"id": 1}', '{"controls": [{"a": 1}]}'):
        with pytest.raises(Corrupt, match="job record can't be read"):
            JobRecord.from_json(text)
