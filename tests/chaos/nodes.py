"""A local Ray cluster of several nodes that can be killed, frozen and replaced one by one.

Ray starts a node by forking, which a process with gRPC's threads must not do: `_Starter` runs in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from .processes import kill, tree, until

HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""Ray's own values are 5000, 3000, 10000 and 5: a dead node would be noticed after 13 to 16 s."""

ENV = {"MALLOC_ARENA_MAX": "2", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
"""Ray's niceness of workers is 15: beside clients and gateways on the same cores they would hardly load."""

STORE_BYTES = 150 << 20
TRIES = 3
"""A node that is started while the machine is very busy may give up on itself."""


@dataclass(frozen=True)
class Node:
    """home: its own folder, in which checkpoints at "~/..." lie; gone with the node. pids: of what Ray started for it;
    workers are below them."""

    id: str
    home: Path
    raylet: int
    pids: tuple[int, ...]


class Nodes:
    """A head for gateways and controller, and `count` nodes for stage actors. models: a node takes one actor of each,
    so that they spread."""

    def __init__(self, folder: Path, count: int, models: Sequence[str]) -> None:
        self._folder, self._count, self._models, self._made = folder, count, models, 0
        self.workers: list[Node] = []
        spawn = multiprocessing.get_context("spawn")
        self._pipe, other = spawn.Pipe()
        spawn.Process(target=_serve, args=(other,), daemon=True).start()
        self.start()

    def start(self) -> None:
        self.address = self._ask("begin")
        self.head = self._add({})
        self.address = self._ask("address")
        self.refill()

    def refill(self) -> None:
        """As many nodes as at first."""
        while len(self.workers) < self._count:
            self.workers.append(self._add(dict.fromkeys(self._models, 1)))

    def _add(self, resources: Mapping[str, float]) -> Node:
        self._made += 1
        home = self._folder / f"node{self._made}"
        home.mkdir()
        return Node(*self._ask("add", home, resources))

    def _ask(self, what: str, *args: Any) -> Any:
        self._pipe.send((what, args))
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, node: Node) -> None:
        """The raylet and all its workers at once, and its disk with them."""
        kill(tree(node.raylet))
        self.lose(node)

    def lose(self, node: Node) -> None:
        """Takes a node that is dead out of the list, and what is left of it away."""
        self.workers = [other for other in self.workers if other is not node]
        kill(pid for own in node.pids for pid in tree(own))
        shutil.rmtree(node.home, ignore_errors=True)

    def freeze(self, node: Node) -> None:
        """Its raylet alone; its workers run on."""
        os.kill(node.raylet, signal.SIGSTOP)

    def thaw(self, node: Node) -> None:
        os.kill(node.raylet, signal.SIGCONT)

    def is_alive(self, node: Node) -> bool:
        """Whether the cluster takes it for alive."""
        return node.id in self._ask("live")

    def kill_all(self) -> None:
        """The head and every node."""
        for node in [self.head, *self.workers]:
            self.lose(node)
            until(lambda: not any(map(_runs, node.pids)), 30, "the processes of a killed node end")  # noqa: B023


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class _Starter:
    """Starts nodes and asks the cluster who lives."""

    def begin(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(shutdown_at_exit=False)

    def add(self, home: Path, resources: Mapping[str, float]) -> tuple[str, Path, int, tuple[int, ...]]:
        import ray._private.utils

        env = {**os.environ, **ENV, "HOME": str(home)}
        options: dict[str, Any] = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "resources": dict(resources)}
        if self._cluster.head_node is None:
            options |= {"include_dashboard": False, "_system_config": {**HEALTH, "task_events_report_interval_ms": 0}}
        with (
            mock.patch.dict(os.environ, env),
            mock.patch.object(ray._private.utils, "write_ray_address"),  # others on this machine must not find it
        ):
            node = self._made(options, env)
        processes = node.all_processes
        pids = tuple(info.process.pid for infos in processes.values() for info in infos)
        return node.node_id, home, processes["raylet"][0].process.pid, pids

    def _made(self, options: dict[str, Any], env: dict[str, str]) -> Any:
        for left in reversed(range(TRIES)):
            try:
                return self._cluster.add_node(env_vars=env, **options)
            except Exception:  # Ray says no more than that
                if not left:
                    raise

    def address(self) -> str:
        return str(self._cluster.address)

    def live(self) -> list[str]:
        return [str(node["NodeID"]) for node in self._cluster.global_state.node_table() if node["Alive"]]


def _serve(pipe: Connection) -> None:
    starter = _Starter()
    while True:
        try:
            what, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(getattr(starter, what)(*args))
        except Exception as error:  # noqa: BLE001 - raised where it was asked for
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
