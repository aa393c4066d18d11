"""A Redis Cluster of three servers on this machine."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

from riverrun.store.embedded import server_binary

SLOTS = 16384
DEADLINE_S = 60.0


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


@contextmanager
def redis_cluster(folder: Path) -> Iterator[str]:
    """Its URL, when every slot is served."""
    ports = free_ports(6)
    nodes = list(zip(ports[:3], ports[3:], strict=True))
    with ExitStack() as stack:
        clients = [stack.enter_context(_node(folder / str(port), port, bus)) for port, bus in nodes]
        for n, client in enumerate(clients):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", SLOTS * n // 3, SLOTS * (n + 1) // 3 - 1)
            for port, bus in nodes[:n]:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus)
        until = time.monotonic() + DEADLINE_S
        while not all(_is_whole(client) for client in clients):
            assert time.monotonic() < until, "the cluster is not whole"
        yield f"redis+cluster://127.0.0.1:{ports[0]}"


def _is_whole(client: redis.Redis) -> bool:
    about = client.execute_command("CLUSTER", "INFO")
    text = about if isinstance(about, str) else "\n".join(f"{key}:{value}" for key, value in about.items())
    return "cluster_state:ok" in text and "cluster_known_nodes:3" in text


@contextmanager
def _node(folder: Path, port: int, bus: int) -> Iterator[redis.Redis]:
    folder.mkdir()
    settings = {
        "port": port,
        "cluster-port": bus,
        "dir": folder,
        "bind": "127.0.0.1",
        "cluster-enabled": "yes",
        "save": "",
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen([server_binary(), *flags], stdout=subprocess.DEVNULL)
    client = redis.Redis(port=port, decode_responses=True)
    try:
        until = time.monotonic() + DEADLINE_S
        while not _answers(client):
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < until, "the server does not answer"
        yield client
    finally:
        client.close()
        process.kill()
        process.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
