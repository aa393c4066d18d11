"""What `run` does with a stream that has geometry among its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from riverrun.client.commands.feeding import Input
from riverrun.client.export import Both, Writer
from riverrun.client.geometry.folder import FORMATS, GeometryFolder
from riverrun.client.geometry.views import PORTS
from riverrun.client.sync import Stream
from riverrun.protos import riverrun_pb2 as pb


def parse_formats(text: str) -> list[str]:
    """The --formats option; a usage error for one that there is not."""
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := sorted(set(wanted) - set(FORMATS)):
        raise typer.BadParameter(f"knows {', '.join(FORMATS)}, not {unknown[0]}", param_hint="--formats")
    return wanted


def has_geometry(session: pb.Session) -> bool:
    """Whether all that one frame's geometry consists of comes out of it."""
    return set(PORTS) <= {output.port for output in session.outputs}


def plain_outputs(session: pb.Session) -> list[pb.OutputPort]:
    """Those that are written by themselves."""
    return [o for o in session.outputs if not (has_geometry(session) and o.port in PORTS)]


def geometry_for(
    stream: Stream, output: Path, formats: Sequence[str], given: Input | None, params: Mapping[str, Any]
) -> dict[str, Writer]:
    """A writer for all ports of geometry, in the folder `output` (its name without an ending); none without any.

    COLMAP's images are those that went in, or else the last output of pictures but the geometry's own: what a chain's
    last stage was fed.
    """
    session = stream.session
    if not has_geometry(session):
        return {}
    pictures = [o.port for o in plain_outputs(session) if o.kind == "frames"]
    originals = pictures[-1] if pictures and given is None else None
    fit: Any = next((value for name, value in params.items() if name.rpartition(".")[2] == "fit"), "crop")
    folder: Writer = GeometryFolder(output.with_suffix(""), formats, originals=originals, fit=fit)
    return dict.fromkeys((*PORTS, originals) if originals else PORTS, folder)


def joined(one: Mapping[str, Writer], other: Mapping[str, Writer]) -> dict[str, Writer]:
    """Both, where a port has two writers."""
    shared = {port: Both(one[port], other[port]) for port in one.keys() & other.keys()}
    return {**one, **other, **shared}
