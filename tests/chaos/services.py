"""What a deployment has beside Ray: the store, gateways on it, and the files they are configured by."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import redis
import yaml

from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos import riverrun_pb2_grpc as rpc
from riverrun.store.embedded import server_binary

from .processes import free_port, kill, until

HERE = Path(__file__).parent
START_S = 180.0
SERVE = "from riverrun.client.cli import main; main()"


class Store:
    """A valkey server that can be killed and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.client = redis.Redis.from_url(self.url, socket_timeout=2)
        self.start()

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        words = f"--bind 127.0.0.1 --port {self.port} --dir {self.folder} --appendonly yes --save".split()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([server_binary(), *words, ""], stdout=log, stderr=log)
        until(self._answers, 30, "the store answers")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def wipe(self) -> None:
        shutil.rmtree(self.folder)

    def lose_tail(self, nbytes: int) -> None:
        """As a failover to a replica that had not had the last writes."""
        newest = max(self.folder.glob("appendonlydir/*.incr.aof"), key=lambda path: path.stat().st_mtime)
        os.truncate(newest, max(0, newest.stat().st_size - nbytes))

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(self.client.ping())
        return False

    def record(self, session: str) -> dict[str, Any]:
        text: Any = self.client.hget(f"rr:{{{session}}}:record", "json")
        return dict(json.loads(text)) if text else {}

    def gateway_address(self, name: str) -> str:
        found: Any = self.client.get(f"rr:gateway:{name}")
        return found.decode() if found else ""


@dataclass
class Setup:
    """Where the files of a run lie. blobs: the checkpoints' URI; chunks: a checkpoint every so many."""

    folder: Path
    blobs: str
    chunks: int = 8
    orders: Path = field(init=False)

    def __post_init__(self) -> None:
        self.orders = self.folder / "orders"
        self.orders.mkdir()

    def write(self, store: Store, ray_address: str) -> Path:
        """The service's configuration, one for all gateways."""
        mortal = {"name": "mortal", "class": "mortal:Mortal", "stage": "generation", "actor": _actor("mortal")}
        mortal |= {"args": {"folder": str(self.orders)}, "search_path": str(HERE / "models")}
        longlive = yaml.safe_load((HERE.parent.parent / "configs/models/longlive-world.yaml").read_text())
        longlive |= {"actor": _actor("longlive-world")}
        models = [self._yaml("mortal", mortal), self._yaml("longlive-world", longlive), "world-text"]
        service = {
            "redis_url": store.url,
            "ray_address": ray_address,
            "models": models,
            "graphs": [self._chain(n) for n in (1, 2, 3)],
            "idle_timeout_s": 300.0,
            "drain_s": 0.2,
            "checkpoints": {"uri": self.blobs, "shared": True, "chunks": self.chunks, "grace_s": 5.0},
        }
        return Path(self._yaml("service", service))

    def _chain(self, stages: int) -> str:
        names = [f"s{n}" for n in range(stages)]
        edges = [{"from": f"{a}.frames", "to": f"{b}.frames"} for a, b in pairwise(names)]
        graph = {"name": f"chain{stages}", "stages": {n: {"model": "mortal"} for n in names}, "edges": edges}
        return self._yaml(f"chain{stages}", graph | {"outputs": {"frames": f"{names[-1]}.frames"}})

    def _yaml(self, name: str, values: dict[str, Any]) -> str:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)


def _actor(model: str) -> dict[str, Any]:
    """Two actors, never on one node, which step every session by itself: frames are compared bit by bit."""
    return {"count": 2, "resources": {model: 1.0}, "max_sessions": 16, "max_batch": 1}


class Gateway:
    """One service process at an address of its own, which it keeps over restarts."""

    def __init__(self, config: Path, log: Path) -> None:
        self._home = config.parent / "gateways"  # checkpoints at "~/..." are not of this user
        self._home.mkdir(exist_ok=True)
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._config, self._log = config, log
        self.channel = grpc.insecure_channel(self.address, [("grpc.max_reconnect_backoff_ms", 500)])
        self.sessions, self.cluster = rpc.SessionsStub(self.channel), rpc.ClusterStub(self.channel)
        self.start()

    def start(self) -> None:
        """Returns at once; `ready` says when it serves."""
        command = [sys.executable, "-c", SERVE, "serve", "--config", str(self._config), f"port={self.port}"]
        env = {**os.environ, "HOME": str(self._home)}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", env=env
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def ready(self) -> bool:
        """Whether it serves. One that was killed is started again. Raises RuntimeError for one that ended by itself."""
        if not self.runs and self._process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"a gateway ended:\n{self._log.read_text(errors='replace')[-3000:]}")
        if not self.runs:
            self.start()
        return self.status() is not None

    def status(self) -> pb.StatusResponse | None:
        with contextlib.suppress(grpc.RpcError):
            return self.cluster.Status(pb.StatusRequest(), timeout=5)
        return None

    def kill(self) -> None:
        kill([self.pid])
        self._process.wait()

    def stop(self) -> None:
        self.channel.close()
        if self.runs:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            self.kill()
