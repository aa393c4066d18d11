"""What the client checks and fills in before it calls the service. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import duration_pb2

from riverrun.client import errors
from riverrun.client.stream import Wish
from riverrun.protos import riverrun_pb2 as pb
from riverrun.protos.wire import CODECS

MAX_SECONDS = 366 * 86_400


def length(frames: int | None, seconds: float | None, fps: float) -> int:
    """Frames to make for what the user gave; 0: endless. Raises BadRequest."""
    if frames is not None and seconds is not None:
        raise errors.BadRequest("give frames or seconds, not both", "INVALID_ARGUMENT")
    given = frames if frames is not None else seconds
    if given is None:
        return 0
    if not given > 0:
        raise errors.BadRequest(f"the length must be above 0, got {given}", "INVALID_ARGUMENT")
    if frames is None and fps <= 0:
        raise errors.BadRequest("this graph states no frames a second; give frames", "INVALID_ARGUMENT")
    return uint64("the length", frames if frames is not None else max(1, round(min(given * fps, 2.0**64))))


def uint64(what: str, value: int) -> int:
    """`value`, if the wire can carry it. Raises BadRequest."""
    if not 0 <= value < 2**64:
        raise errors.BadRequest(f"{what} must be 0..2^64-1, got {value}", "INVALID_ARGUMENT")
    return value


def duration(what: str, seconds: float) -> duration_pb2.Duration:
    """`seconds` as the wire has them. Raises BadRequest unless they are 0 to a year."""
    if not 0 <= seconds <= MAX_SECONDS:
        raise errors.BadRequest(f"{what} must be 0..{MAX_SECONDS} s, got {seconds}", "INVALID_ARGUMENT")
    span = duration_pb2.Duration()
    span.FromMicroseconds(round(seconds * 1_000_000))
    return span


def wishes_for(
    session: pb.Session, ports: Sequence[str] | None, codec: str, quality: int, buffer: int | None
) -> list[Wish]:
    """How each wanted output is to be sent; pictures with `codec`, anything else raw. Raises BadRequest."""
    if codec not in CODECS:
        raise errors.BadRequest(f"unknown codec {codec!r}; there are {', '.join(CODECS)}", "INVALID_ARGUMENT")
    outputs = {output.port: output for output in session.outputs}
    unknown = sorted(set(ports or ()) - set(outputs))
    if unknown:
        raise errors.BadRequest(
            f"unknown output {unknown[0]!r}; there are {', '.join(outputs) or 'none'}", "INVALID_ARGUMENT"
        )
    if buffer is not None and buffer < 1:
        raise errors.BadRequest(f"buffer must be at least 1 frame, got {buffer}", "INVALID_ARGUMENT")
    return [
        Wish(
            port=port,
            codec=CODECS[codec] if outputs[port].kind == "frames" else CODECS["raw"],
            quality=quality,
            window=buffer or 2 * max(1, outputs[port].chunk_frames, outputs[port].first_frames),
        )
        for port in ports or outputs
    ]


def fill(struct: Any, params: Mapping[str, Any]) -> None:
    """Puts parameters into a protobuf Struct. Raises BadRequest for what it can't hold."""
    try:
        struct.update(dict(params))
    except (ValueError, TypeError) as error:
        raise errors.BadRequest(
            f"parameters must be text, numbers, lists or mappings: {error}", "INVALID_ARGUMENT"
        ) from None


def sink_uri(out: str | Path) -> str:
    """A URI for a path: a file if it has a suffix, else a folder (ending in "/"). A URI stays as it is."""
    text = str(out)
    if "://" in text:
        return text
    return Path(text).resolve().as_uri() + ("/" if text.endswith("/") or not Path(text).suffix else "")
