"""What clients say, as values of ours. Pure functions; each raises BadRequest with one line."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import duration_pb2, json_format, struct_pb2

from riverrun.models.base import BadRequest, Control
from riverrun.protos import riverrun_pb2 as pb

MAX_BYTES = 64 << 10
"""Of a session's parameters, or of one control: records and control logs keep them, so they must be small."""

TRACEPARENT = "traceparent"

MAX_SECONDS = 366 * 86_400
MAX_REASON = 200


def values_of(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Parameters as plain values."""
    _check_size("parameters", struct.ByteSize())
    try:
        return json_format.MessageToDict(struct)
    except (ValueError, json_format.Error):  # JSON, and so the record, has no NaN and no infinity
        raise BadRequest("parameters must be text, true or false, finite numbers, lists or mappings") from None


def traceparent(context: grpc.aio.ServicerContext) -> str:
    """Under which the caller asks that a chunk be traced, by the metadata of its call; "": it does not."""
    return next((str(value) for name, value in context.invocation_metadata() or () if name == TRACEPARENT), "")


def seconds_of(span: duration_pb2.Duration, what: str) -> float:
    """A length of time of at most a year."""
    seconds = float(span.seconds + span.nanos / 1e9)
    if not 0 <= seconds <= MAX_SECONDS:
        raise BadRequest(f"{what} must be 0..{MAX_SECONDS} s, got {seconds:g} s")
    return seconds


def reason_of(text: str, default: str) -> str:
    """One line of at most 200 characters."""
    return " ".join(text.split())[:MAX_REASON] or default


def control_of(message: pb.Control) -> Control:
    """The control that a message means."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise BadRequest("a control needs one of prompt, pause, parameters")
    if message.revision < 1:
        raise BadRequest("a control's revision must be at least 1")
    _check_size(f"control {message.revision}", message.ByteSize())
    value: Any = getattr(message, kind)
    return Control(revision=message.revision, kind=kind, value=values_of(value) if kind == "parameters" else value)


def _check_size(what: str, size: int) -> None:
    if size > MAX_BYTES:
        raise BadRequest(f"{what}: {size} bytes, at most {MAX_BYTES}")
