"""What a service tells of itself besides its answers: log lines and traces."""

from __future__ import annotations

from dataclasses import dataclass, field

from riverrun.configs.durability import CheckpointConfig
from riverrun.models.base import BadRequest

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class LogConfig:
    """format: "text", or "json" (one object a line). level: the lowest of the service's own lines that is written; of a
    library's or a model's, nothing below info ever is."""

    format: str = "text"
    level: str = "info"

    def __post_init__(self) -> None:
        for name, allowed in (("format", FORMATS), ("level", LEVELS)):
            if getattr(self, name) not in allowed:
                raise BadRequest(f"log.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class TraceConfig:
    """endpoint: where spans go by OTLP over gRPC ("http://127.0.0.1:4317"; "": tracing is off and costs nothing).
    every: one chunk in so many is traced; 0: only those that a client asks for (a `traceparent` in its metadata)."""

    endpoint: str = ""
    every: int = 0

    def __post_init__(self) -> None:
        if self.every < 0:
            raise BadRequest(f"trace.every must not be negative, got {self.every}")
        if self.every and not self.endpoint:
            raise BadRequest("trace.every is set and trace.endpoint is not: where should spans go?")


@dataclass(frozen=True)
class Telemetry:
    """What every process of a service needs to know of it."""

    log: LogConfig = field(default_factory=LogConfig)
    trace: TraceConfig = field(default_factory=TraceConfig)


@dataclass(frozen=True)
class ActorSetup:
    """What the actors of a service are told when they start. checkpoints: where they lie; uri "": nowhere."""

    telemetry: Telemetry = field(default_factory=Telemetry)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
