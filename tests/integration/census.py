"""What a service holds, counted everywhere: objects, tasks, threads, references, files, keys, bytes."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import psutil
import ray
import redis
from ray._private import internal_api

from riverrun.actors.host import Hosted
from riverrun.actors.session import StageSession, StepJob
from riverrun.actors.streams import Connection
from riverrun.graphs.consumer import Consumer
from riverrun.graphs.driver import StageDriver
from riverrun.graphs.edge import EdgeQueue
from riverrun.graphs.flow import Flow
from riverrun.graphs.ring import OutputRing, Slot
from riverrun.graphs.runner import Runner
from riverrun.models.base import Chunk
from riverrun.models.synthetic import SyntheticState
from riverrun.protos import riverrun_pb2 as pb
from riverrun.store.jobs import INDEX, RUNNING

from .conftest import Running, Stubs

HERE = (Hosted, Runner, Flow, StageDriver, EdgeQueue, OutputRing, Slot, Consumer, Connection, Chunk)
THERE = (StageSession, StepJob, SyntheticState, Chunk)


def objects(kinds: tuple[type, ...]) -> dict[str, int]:
    """How many instances of each there are in this process."""
    gc.collect()
    found = Counter(map(type, gc.get_objects()))
    return {kind.__name__: found[kind] for kind in kinds}


def references() -> int:
    """Objects of Ray's store that this process knows of."""
    return len(ray._private.worker.global_worker.core_worker.get_all_reference_counts())


def process(pid: int) -> dict[str, int]:
    """Open files and threads."""
    one = psutil.Process(pid)
    return {"files": one.num_fds(), "threads": one.num_threads()}


def in_actor(_: Any) -> dict[str, int]:
    """Of an actor's own process."""
    return objects(THERE) | {"references": references()}


async def tasks() -> dict[str, int]:
    """Of the event loop, by what they run."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    return dict(Counter(getattr(task.get_coro(), "__qualname__", "?") for task in others))


def keys(url: str) -> dict[str, int]:
    """Keys of the store by kind, and the members of its index."""
    store: Any = redis.Redis.from_url(url, decode_responses=True)
    try:
        kinds = Counter(key.rpartition(":")[2] if "{" in key else key.split(":")[1] for key in store.scan_iter("rr:*"))
        return dict(kinds) | {"members of the index": store.zcard("rr:sessions")}
    finally:
        store.close()


def forget_ended(url: str) -> None:
    """Lets the time pass after which the store forgets ended sessions and jobs."""
    store: Any = redis.Redis.from_url(url, decode_responses=True)
    try:
        for key in store.scan_iter("rr:*"):
            if key.startswith(("rr:{", "rr:client:")) and key not in (INDEX, RUNNING):
                assert store.pttl(key) > 0, key
                store.pexpire(key, 1)
    finally:
        store.close()


def object_store() -> dict[str, int]:
    """Ray's, over all nodes: bytes in use and objects held."""
    state = internal_api.get_state_from_address(ray.get_runtime_context().gcs_address)
    stats = internal_api.get_memory_info_reply(state).store_stats
    return {"bytes": stats.object_store_bytes_used, "objects": stats.num_local_objects}


def pids(url: str, status: pb.StatusResponse) -> dict[str, int]:
    """This process, the store, the actors and Ray's own."""
    store: Any = redis.Redis.from_url(url)
    found = {"gateway": os.getpid(), "store": store.info("server")["process_id"]}
    store.close()
    rays = {one.name(): one.pid for one in psutil.Process().children() if one.name() in ("raylet", "gcs_server")}
    return found | rays | {actor.actor: actor.pid for actor in status.actors}


class Census:
    """Of one service in this process. models: whose actors are asked too, all that live now."""

    def __init__(self, running: Running, stubs: Stubs, models: Sequence[str]) -> None:
        self._running, self._url = running, running.service.store_url
        status = stubs.status()
        self._pids = pids(self._url, status)
        directory: Any = running.service._gateway._host.directory
        find, there = directory._controller.find, [a for a in status.actors if a.model in models]
        places = ray.get([find.remote(a.model, a.actor, a.incarnation) for a in there])
        self._actors = {place.actor: place.handle for place in places}
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # an actor can't import the tests

    def now(self) -> dict[str, int]:
        """Counts by name; what is not there is not named."""
        calls = {name: handle.__ray_call__.remote(in_actor) for name, handle in self._actors.items()}
        parts: dict[str, dict[str, int]] = {
            "gateway": objects(HERE) | {"references": references()},
            "task": self._running.call(tasks()),
            "key": keys(self._url),
            "object store": object_store(),
            **{f"process {name}": process(pid) for name, pid in self._pids.items()},
            **{f"actor {name}": ray.get(call) for name, call in calls.items()},
        }
        return {f"{part}: {name}": count for part, counts in parts.items() for name, count in counts.items() if count}

    def resident(self) -> dict[str, int]:
        """Resident bytes by process."""
        return {name: psutil.Process(pid).memory_info().rss for name, pid in self._pids.items()}
