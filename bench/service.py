"""The service of a benchmark: `riverrun serve` as its own process tree, and what can be measured from outside it.

The store is started here rather than by the service (it is the same server), so that its keys can be counted.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis

from riverrun.client.sync import connect
from riverrun.protos import riverrun_pb2 as pb
from riverrun.store.embedded import EmbeddedServer

_RAYS = ("IDLE", "DashboardAgent", "RuntimeEnvAgent")
START_SECONDS, STOP_SECONDS = 180.0, 60.0


@dataclass(frozen=True)
class Memory:
    """Of one process, in bytes. rss: resident. own: resident and not shared with another process or a file."""

    rss: int
    own: int


class Service:
    """A running service, seen from outside."""

    def __init__(self, root: psutil.Process, address: str, store: EmbeddedServer, log: Path) -> None:
        self.address, self.log = address, log
        self._root, self._store_pid = root, store.pid
        self._store = redis.Redis.from_url(store.url)

    def keys(self) -> int:
        """Keys in the session store."""
        return int(self._store.dbsize())  # type: ignore[arg-type]

    def store_bytes(self) -> int:
        """Sent to the session store so far, by this service and whoever else speaks to it."""
        return int(self._store.info("stats")["total_net_input_bytes"])  # type: ignore[index]

    def cpu_s(self, *actors: int) -> float:
        """Processor time that the gateway's process, and these of its actors', have used so far."""
        times = [process.cpu_times() for process in (self._root, *map(psutil.Process, actors))]
        return sum(time.user + time.system for time in times)

    def memory(self) -> dict[int, Memory]:
        """Of each process of the tree, of the store and of this one, by pid."""
        found = {}
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # Ray's idle workers come and go
                found[process.pid] = _memory(process)
        return found

    def names(self, status: pb.StatusResponse) -> dict[int, str]:
        """What each process does, by pid: actors as `status` calls them, Ray's own as "ray …"."""
        known = {actor.pid: f"actor {actor.actor}" for actor in status.actors if actor.pid}
        known |= {self._root.pid: "serve: gateway and runners", os.getpid(): "client"}
        if self._store_pid:
            known[self._store_pid] = "store"
        names: dict[int, str] = {}
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                name = known.get(process.pid) or _role(process)
                more = sum(other.partition(" #")[0] == name for other in names.values())
                names[process.pid] = f"{name} #{more + 1}" if more else name
        return names

    def close(self) -> None:
        self._store.close()

    def _processes(self) -> list[psutil.Process]:
        pids = [os.getpid(), *([self._store_pid] if self._store_pid else [])]
        return [*map(psutil.Process, pids), self._root, *self._root.children(recursive=True)]


@contextlib.contextmanager
def serving(*overrides: str) -> Iterator[Service]:
    """Starts `riverrun serve` on a free port in a process group of its own, and ends it. overrides: of its
    configuration, "limits.jobs=3". Raises RuntimeError."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="riverrun-bench-"))
        store = stack.enter_context(EmbeddedServer(Path(folder, "store")))
        log = Path(folder, "serve.log")
        code = "from riverrun.client.cli import main; main()"
        command = [sys.executable, "-c", code, "serve", f"port={port}", f"redis_url={store.url}", *overrides]
        with log.open("wb") as output:
            tree = subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
            )
        try:
            service = _started(tree, address, store, log)
            try:
                yield service
            finally:
                service.close()
        finally:
            _stop(tree)


def _started(tree: subprocess.Popen[bytes], address: str, store: EmbeddedServer, log: Path) -> Service:
    """Waits until the service answers. Raises RuntimeError with the end of its log if it never does."""
    deadline = time.monotonic() + START_SECONDS
    with connect(address) as rr:
        while not rr.reachable():
            if tree.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the service did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.2)
    return Service(psutil.Process(tree.pid), address, store, log)


def _stop(tree: subprocess.Popen[bytes]) -> None:
    """Asks the service to end as Ctrl-C does; what is left of its tree after a while is killed."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(tree.pid).children(recursive=True)
        tree.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            tree.wait(STOP_SECONDS)
        for process in [*family, psutil.Process(tree.pid)] if tree.returncode is None else family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    tree.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _memory(process: psutil.Process) -> Memory:
    info = process.memory_info()
    return Memory(rss=info.rss, own=info.rss - getattr(info, "shared", 0))


def _role(process: psutil.Process) -> str:
    """An actor by its class, as Ray titles its process; else the program, or the script an interpreter runs."""
    line = process.cmdline() or [process.name()]
    title = re.match(r"ray::(\w+)", line[0])
    if title:
        return f"ray {title[1]}" if title[1] in _RAYS else f"actor {title[1]}"
    script = next((part for part in line[1:] if part.endswith(".py")), line[0])
    path = Path(script)
    return f"ray {path.parent.name if path.stem in ('main', '__main__') else path.stem}"
