"""Rows of the table of models as stages of a service: their YAML, their weights, and what their clients send."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from riverrun.tests.models.table import ROWS, Row, built

Arrays = Iterator[np.ndarray]
RATE = 8
"""Tokens a second of media time: there are eleven text sessions, and a step of each token."""


@dataclass(frozen=True)
class Tiny:
    """A model of the service. row: of the table, whose weights it has. encoder: rows and width of its prompts'
    embeddings; None: it takes none. more: arguments beside the row's."""

    name: str
    row: str
    stage: str
    encoder: tuple[int, int] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> dict[str, Any]:
        """Puts its weights into `folder`; what its YAML says of it."""
        made = arguments(row(self.row), folder)
        about = {"name": self.name, "stage": self.stage, **made, "args": made["args"] | dict(self.more)}
        return about | ({"encoder": self.prompts} if self.encoder else {})

    @property
    def prompts(self) -> str:
        """The name of its encoder: one for all models whose embeddings have that form."""
        return "prompts-" + "x".join(map(str, self.encoder or ()))


MODELS = {
    tiny.name: tiny
    for tiny in (
        Tiny("longlive-tiny", "LongLive", "generation", (5, 8)),
        Tiny("ca2vdm", "Ca2-VDM", "generation", (5, 8)),
        Tiny("ca2vdm-rope", "Ca2-VDM, rope", "generation", (5, 8)),
        Tiny("ca2vdm-partial", "Ca2-VDM, partial", "generation", (5, 8)),
        Tiny("ca2vdm-plain", "Ca2-VDM, no captions", "generation"),
        Tiny("vidgpt", "ViD-GPT, bounded", "generation", (5, 8)),
        Tiny("easycontrol", "EasyControl", "generation", (6, 10)),
        Tiny("infvsr", "InfVSR", "super_resolution"),
        Tiny("infinitevggt", "InfiniteVGGT", "geometry"),
        Tiny("lm", "text wedlm", "text", more={"rate": RATE}),
        Tiny("locret", "Locret wedlm", "text", more={"rate": RATE}),
    )
}


def row(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


def arguments(row: Row, folder: Path) -> dict[str, Any]:
    """Class and arguments with which the row makes its model, its weights in `folder`."""
    cls: Any = type(built(row, folder))
    with mock.patch.object(cls, "__init__", autospec=True, return_value=None) as init:
        built(row, folder)  # writes the same weights again: it begins with the same seed
    _, *args = init.call_args.args
    names = init.call_args.kwargs | dict(zip(("weights", "vae"), args, strict=False))
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in names.items()}
    return {"class": f"{cls.__module__}:{cls.__name__}", "args": plain}


def fed(row: Row, number: int, only: Callable[[str], bool] = lambda port: True) -> Mapping[str, Arrays]:
    """By port, the frames that a client sends: without end, or the first of those given once, since each frame of a
    client is a chunk of its own. number: which of several unlike clients; only: ports that a client feeds at all."""
    once = {chunk.port: iter(list(chunk.data[:1])) for chunk in row.given(number) if only(chunk.port)}
    again = {chunk.port: _rounds(row, number, chunk.port) for chunk in row.feed(number, 0) if only(chunk.port)}
    return once | again  # what is given once goes first: a stage waits for it, its inputs may not


def _rounds(row: Row, number: int, port: str) -> Arrays:
    turn = 0
    while True:
        for chunk in row.feed(number, turn):
            if chunk.port == port:
                yield from chunk.data
        turn += 1
