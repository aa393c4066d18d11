"""What can be configured: frozen dataclasses are the schema and hold the defaults, YAML and overrides hold values.

defaults < file < dotted overrides, merged by OmegaConf. An unknown key, a wrong type and a missing value each raise
BadRequest with one line that names the key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from riverrun.cluster.autoscale import HOLD_S
from riverrun.cluster.slack import SPEND
from riverrun.configs.auth import AuthConfig, TlsConfig
from riverrun.configs.durability import CheckpointConfig
from riverrun.configs.telemetry import LogConfig, TraceConfig
from riverrun.models.base import BadRequest
from riverrun.protos import DEFAULT_PORT

FOLDER = Path(__file__).parent
STAGES = ("generation", "super_resolution", "geometry", "text", "encoder")
T = TypeVar("T")


@dataclass(frozen=True)
class ActorConfig:
    """How the actors of one model are run.

    count: how many; max_count: as many as that where load asks for more (null: `count`), and fewer again when fewer
    would have done for `shrink_s`. threads: torch threads each. max_sessions: sessions each. max_bytes: budget for
    their States and steps, each (null: no limit). max_batch: the most sessions that share a step (null: all that can).
    slack_share: of the time until a viewer has played all there is, what its step may take longer because others share
    it. num_gpus, resources: what Ray must have free for one. eager: started with the service, not at first use.
    headroom: a new session is refused unless the sessions of any one actor would find room on the others, should it
    die.
    """

    count: int = 1
    max_count: int | None = None
    shrink_s: float = HOLD_S
    threads: int = 1
    max_sessions: int = 8
    max_bytes: int | None = None
    max_batch: int | None = None
    slack_share: float = SPEND
    num_gpus: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)
    eager: bool = True
    headroom: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """One model: `class: pkg.mod:Class` in YAML is `class_path` here.

    stage: one of `STAGES`. args: for its constructor; a value `package:weights/x.safetensors` is a file of the
    installed package. encoder: the model that turns its prompts into embeddings, if it wants them.
    search_path: folder to import the class from besides the installed packages (the YAML's own, if outside the tree).
    """

    name: str = MISSING
    class_path: str = MISSING
    stage: str = MISSING
    args: dict[str, Any] = field(default_factory=dict)
    encoder: str | None = None
    actor: ActorConfig = field(default_factory=ActorConfig)
    licence: str = ""
    search_path: str | None = None


@dataclass(frozen=True)
class Limits:
    """What one service takes at most. connections: open `Streams.Connect` calls. job_frames: frames of one job."""

    sessions: int = 256
    connections: int = 1024
    jobs: int = 16
    job_frames: int = 1_000_000


@dataclass(frozen=True)
class ServiceConfig:
    """One service.

    host, port: where gRPC listens (port 0: any free one). redis_url: the store ("": REDIS_URL, else an embedded one).
    ray_address: "local" starts a Ray of its own, "auto" or an address joins one and shares its models, graphs and
    actors with the services that are there ("": RAY_ADDRESS, else "local").
    models: names in `configs/models` or paths of YAML files. graphs: likewise, besides the shipped ones whose models
    are there. idle_timeout_s: a session without client and delivery ends after this. step_timeout_s: an actor whose
    step is older (and than 20 times its p99) is replaced. drain_s: time clients get to leave at shutdown.
    stall_s: a connection is ended when the client has not read for so long what is being sent (0: never). lead_s: media
    a session may be ahead of what its controller has played, unless it is asked for another one (0: no limit).
    store_grace_s: when the store was restarted or has lost data, sessions that run get so long to be told to it again
    before others are opened. data_dir: of the embedded store ("": a temporary folder). jobs_dir: jobs write only below
    it, those of a tenant in its own folder there ("": anywhere, which is for an open service that only this machine
    reaches).
    metrics_host, metrics_port: where Prometheus finds its figures, for which nobody is asked a token (port null: none
    are kept; 0: any free one). metrics_ray: they go through Ray's own exporter, too, or only. log, trace: see
    `configs/telemetry.py`, checkpoints: `configs/durability.py`; what the service which starts a cluster's controller
    says goes for its actors.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    redis_url: str = ""
    ray_address: str = ""
    models: list[str] = field(
        default_factory=lambda: ["synthetic", "world-text", "longlive-world", "infvsr-world", "infinitevggt-world"]
    )
    graphs: list[str] = field(default_factory=list)
    idle_timeout_s: float = 60.0
    step_timeout_s: float = 30.0
    drain_s: float = 5.0
    stall_s: float = 60.0
    lead_s: float = 0.0
    store_grace_s: float = 10.0
    data_dir: str = ""
    jobs_dir: str = ""
    limits: Limits = field(default_factory=Limits)
    auth: AuthConfig = field(default_factory=AuthConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    metrics_ray: bool = False
    log: LogConfig = field(default_factory=LogConfig)
    trace: TraceConfig = field(default_factory=TraceConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise BadRequest(f"port must be 0..65535, got {self.port}")  # gRPC would take it modulo 65536
        if self.metrics_port is not None and not 0 <= self.metrics_port < 1 << 16:
            raise BadRequest(f"metrics_port must be 0..65535 or null, got {self.metrics_port}")
        for name in ("idle_timeout_s", "step_timeout_s", "drain_s", "stall_s", "lead_s", "store_grace_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise BadRequest(f"{name} must be finite and not negative, got {getattr(self, name)}")

    @property
    def is_exposed(self) -> bool:
        """Whether others than this machine may reach it."""
        try:
            return self.host != "localhost" and not ip_address(self.host.strip("[]")).is_loopback
        except ValueError:  # a name
            return True

    @property
    def is_open(self) -> bool:
        """Whether whoever reaches it may do anything: nobody is asked for a token or a certificate."""
        return not (self.auth.tokens_file or self.tls.client_ca)


def load_service(source: str | None = None, overrides: Sequence[str] = ()) -> ServiceConfig:
    """The service's configuration. source: a name in `configs` ("cluster") or a path. overrides: "limits.jobs=3"."""
    values = _read(find(source, FOLDER)) if source else {}
    return merge(ServiceConfig, source or "configuration", values, overrides)


def load_model(source: str, overrides: Sequence[str] = ()) -> ModelConfig:
    """A model's configuration. source: a name in `configs/models` or a path of a YAML file."""
    path = find(source, FOLDER / "models")
    values = _read(path)
    if "class" in values:
        values["class_path"] = values.pop("class")
    if not path.resolve().is_relative_to(FOLDER.resolve()):
        values.setdefault("search_path", str(path.resolve().parent))
    config = merge(ModelConfig, path.name, values, overrides)
    if not all(config.class_path.partition(":")):
        raise BadRequest(f"{path.name}: class must be 'package.module:Class', got {config.class_path!r}")
    if config.stage not in STAGES:
        raise BadRequest(f"{path.name}: stage must be one of {', '.join(STAGES)}, got {config.stage!r}")
    return config


def find(source: str, folder: Path) -> Path:
    """The YAML that `source` means: a path, or the name of one in `folder`. Raises BadRequest listing those there."""
    if source.endswith((".yaml", ".yml")) or "/" in source:
        path = Path(source).expanduser()
        if not path.is_file():
            raise BadRequest(f"there is no file {source}")
        return path
    path = folder / f"{source}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none"
        raise BadRequest(f"there is no {source!r} in configs; there are {there} (or give a path ending in .yaml)")
    return path


def merge(schema: type[T], where: str, values: dict[str, Any], overrides: Sequence[str] = ()) -> T:
    """An instance of the dataclass `schema`: its defaults, under `values`, under dotted `overrides`."""
    config = OmegaConf.structured(schema)
    OmegaConf.set_readonly(config, False)  # frozen dataclasses come read-only, and could not be merged
    try:
        config = OmegaConf.merge(config, values)
        where = "override" if overrides else where
        config = OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides)))
        return OmegaConf.to_object(config)  # type: ignore[return-value]
    except (OmegaConfBaseException, YAMLError) as error:
        raise BadRequest(f"{where}: {_line(error)}") from None


def _line(error: Exception) -> str:
    key = str(getattr(error, "full_key", None) or "").replace("class_path", "class")
    if isinstance(error, MissingMandatoryValue):
        return f"{key} is missing"
    if isinstance(error, ConfigKeyError):
        return f"unknown key {key!r}"
    return f"{key + ': ' if key else ''}{str(error).splitlines()[0]}"


def _read(path: Path) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise BadRequest(f"{path.name}: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise BadRequest(f"{path.name}: must hold keys and values")
    return {str(key): value for key, value in values.items()}
