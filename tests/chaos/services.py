"""What a deployment has beside Ray: the store, gateways on it, and the files they are configured by."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import redis
import yaml

from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos import riverrun_pb2_grpc as rpc
from riverrun.store.embedded import server_binary

from .processes import free_port, kill, until
from .tiny import MODELS, Tiny
from .workloads import Workload

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
    """Where the files of a run lie. blobs: the checkpoints' URI; chunks: a checkpoint every so many; kind: of which.
    is_batched: sessions share steps."""

    folder: Path
    blobs: str
    works: Sequence[Workload]
    is_batched: bool = False
    chunks: int = 8
    kind: str = "exact"
    orders: Path = field(init=False)

    def __post_init__(self) -> None:
        self.orders = self.folder / "orders"
        self.orders.mkdir()
        self._models = [path for model in self.models for path in self._model(model)]
        self._graphs = {work.graph_name: self._graph(work) for work in self.works}

    @property
    def models(self) -> list[str]:
        """That run in stage actors."""
        return sorted({model for work in self.works for model in work.models})

    def write(self, store: Store, ray_address: str) -> Path:
        """The service's configuration, one for all gateways."""
        service = {
            "redis_url": store.url,
            "ray_address": ray_address,
            "models": list(dict.fromkeys(self._models)),
            "graphs": list(self._graphs.values()),
            "idle_timeout_s": 1800.0,
            "drain_s": 0.2,
            "checkpoints": {
                "uri": self.blobs,
                "shared": True,
                "chunks": self.chunks,
                "grace_s": 5.0,
                "kind": self.kind,
            },
        }
        return Path(self._yaml("service", service))

    def _model(self, name: str) -> list[str]:
        """Its YAML, and that of its encoder."""
        if name == "mortal":
            about: dict[str, Any] = {"class": "riverrun.models.synthetic:Synthetic", "stage": "generation", "args": {}}
        elif name in MODELS:
            (weights := self.folder / f"weights-{name}").mkdir()
            about = MODELS[name].write(weights)
        else:
            about = yaml.safe_load((HERE.parent.parent / f"configs/models/{name}.yaml").read_text())
        about |= {
            "name": name,
            "class": "mortal:make",
            "actor": self._actor(name),
            "search_path": str(HERE / "models"),
            "args": {"of": about["class"], "folder": str(self.orders), **about["args"]},
        }
        encoders = [self._encoder(MODELS[name])] if name in MODELS else [about.get("encoder")]
        return [self._yaml(name, about), *filter(None, encoders)]

    def _encoder(self, tiny: Tiny) -> str | None:
        if tiny.encoder is None:
            return None
        rows, width = tiny.encoder
        about = {
            "name": tiny.prompts,
            "class": "prompts:Drawn",
            "stage": "encoder",
            "args": {"rows": rows, "width": width},
        }
        return self._yaml(tiny.prompts, about | {"search_path": str(HERE / "models")})

    def _actor(self, model: str) -> dict[str, Any]:
        """Two actors, never on one node. They step every session by itself, so that frames can be compared bit by bit,
        unless batches are what is looked at."""
        limits = {"count": 2, "resources": {model: 1.0}, "max_sessions": 32}
        return limits if self.is_batched else limits | {"max_batch": 1}

    def _graph(self, work: Workload) -> str:
        return self._yaml(f"graph-{work.graph_name}", {"name": work.graph_name, **work.graph})

    def _yaml(self, name: str, values: dict[str, Any]) -> str:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)


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
