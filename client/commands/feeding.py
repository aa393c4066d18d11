"""What `run --in` adds to a stream: frames that go in, and what their size and number say about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from riverrun.client.commands.common import err
from riverrun.client.errors import BadRequest
from riverrun.client.export import Writer
from riverrun.client.film import FilmWriter
from riverrun.client.geometry.folder import GeometryFolder
from riverrun.client.pump import Pump
from riverrun.client.sources import Picture, Source
from riverrun.client.sync import Client, Stream

PORT = "frames"
"""The input of the graphs that take a film."""


@dataclass(frozen=True)
class Input:
    """What goes in. frames: at most so many of it."""

    source: Source
    frames: int | None = None

    @classmethod
    def of(cls, source: Source, frames: int | None, seconds: float | None) -> Input:
        return cls(source, frames if seconds is None else max(1, round(seconds * source.look.fps)))

    @property
    def total(self) -> int | None:
        """How many go in, as far as that is known."""
        known = [count for count in (self.source.total, self.frames) if count]
        return min(known) if known else None


def options_for(
    rr: Client, graph: str, given: Input | None, params: Mapping[str, Any], length: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and length of the session. A model that takes frames and asks for their size is told it."""
    if given is None:
        return dict(params), dict(length)
    height, width = given.source.size
    stages = rr.graph(graph).stages
    models = {model.name: model for model in rr.models(start=[stage.model for stage in stages])}
    sizes: dict[str, Any] = {}
    for stage in stages:
        about = models.get(stage.model)
        names = {param.name for param in about.params} if about and about.inputs else set()
        if {"height", "width"} <= names and not {"height", "width"} & set(params):
            sizes |= {f"{stage.stage}.height": height, f"{stage.stage}.width": width}
    return sizes | dict(params), {}


@contextmanager
def fed(stream: Stream, given: Input | None, writers: Mapping[str, Writer]) -> Iterator[int | None]:
    """The input goes into the stream meanwhile; how many frames it has, if it is known. Raises SourceError where it
    broke off, when all that came before is out."""
    if given is None:
        yield None
        return
    films = [writer for writer in writers.values() if isinstance(writer, FilmWriter)]
    folders = [writer for port, writer in writers.items() if isinstance(writer, GeometryFolder) and port == "image"]
    numbers = count()

    def expect(picture: Picture) -> None:
        number = next(numbers)
        for folder in folders:
            folder.original(number, picture.array)
        for film in films:
            film.expect(picture)
            film.is_cut = film.expected == given.frames

    pump = Pump(stream, given.source, given.frames, expect, PORT)
    try:
        yield given.total
    finally:
        stream.close()  # else a reader that failed would leave the pump waiting
    pump.end()
    given.source.close()
    if pump.dropped:
        err.print(f"{pump.dropped} frames of the camera were dropped: they came quicker than they could be taken")
    if not pump.sent:
        raise BadRequest("no frame went in", "INVALID_ARGUMENT")
