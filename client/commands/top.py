"""`riverrun top`: what runs now, refreshed until Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from riverrun.client.commands.common import PIPED_WIDTH, Address, client, out
from riverrun.client.sync import Client
from riverrun.protos import riverrun_pb2 as pb

ID_CHARACTERS = 12
"""Of a session's or node's id in a terminal; a pipe gets all of it. `drain` takes a node's first ones."""


@dataclass(frozen=True)
class Look:
    """What the service said at one moment. at: seconds of a clock that only goes on."""

    at: float
    status: pb.StatusResponse
    sessions: Sequence[pb.Session]


def top(
    address: Address = None,
    interval: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one table, of what happened in one interval.")] = False,
) -> None:
    """Show actors and sessions as they are now, until Ctrl-C. In a pipe, one table after another."""
    with client(address) as rr:
        screens = _screens(rr, interval)
        if once or not out.is_terminal:
            console = out if out.is_terminal else Console(width=PIPED_WIDTH)
            for each in islice(screens, 1 if once else None):
                console.print(each)
            return
        with Live(console=out, screen=True, auto_refresh=False) as live:
            for each in screens:
                live.update(each, refresh=True)


def _screens(rr: Client, interval: float) -> Iterator[RenderableType]:
    before = look(rr)
    while True:
        time.sleep(interval)
        now = look(rr)
        yield screen(before, now, rr.address)
        before = now


def look(rr: Client) -> Look:
    """Asks the service now."""
    status, sessions = rr.status(), rr.sessions()
    return Look(time.monotonic(), status, sessions)


def screen(before: Look, now: Look, address: str) -> RenderableType:
    """One line over all, then the actors, then the sessions with a line for each stage."""
    fps = _rates(before, now, *({s.session_id: s.frames_delivered for s in look.sessions} for look in (before, now)))
    title = Text.assemble(
        (f"riverrun {now.status.version}", "bold"),
        f" at {address}, {datetime.now():%H:%M:%S}: {len(now.sessions)} sessions,"
        f" {sum(fps.values()):.1f} frames/s, store {now.status.store}",
    )
    return Group(title, Text(), _actors(before, now), Text(), _sessions(now, fps))


def _actors(before: Look, now: Look) -> Table:
    steps = _rates(before, now, *({a.incarnation: a.steps for a in look.status.actors} for look in (before, now)))
    names = (
        "actor",
        "model",
        "sessions",
        "held",
        "reserved",
        "steps/s",
        "step ms p50",
        "p99",
        "in step s",
        "pid",
        "node",
    )
    grid = _grid(names, left=2)
    for a in now.status.actors:
        if not a.up:
            grid.add_row(a.actor, a.model, "[yellow]loads, or does not answer[/]")
            continue
        sizes = (decimal(a.held_bytes), decimal(a.reserved_bytes))
        times = (_number(steps.get(a.incarnation)), f"{a.step_ms_p50:.1f}", f"{a.step_ms_p99:.1f}")
        node = a.node[:ID_CHARACTERS] if out.is_terminal else a.node
        where = (str(a.pid or "-"), node or "-")
        grid.add_row(a.actor, a.model, _places(a), *sizes, *times, f"{a.step_age_s:.1f}", *where)
    return grid


def _sessions(now: Look, fps: Mapping[str, float]) -> Table:
    names = ("session", "graph", "state", "stage", "on", "frames/s", "lead s", "queue", "wait ms p50", "step ms p50")
    grid = _grid((*names, "held"), left=5)
    for s in now.sessions:
        name = s.session_id[:ID_CHARACTERS] if out.is_terminal else s.session_id
        own = (_number(fps.get(s.session_id)), f"{s.lead_s:.1f}")
        for stage in s.stages:
            times = (f"{stage.wait_ms_p50:.1f}", f"{stage.compute_ms_p50:.1f}", decimal(stage.held_bytes))
            where = (s.graph, _state(s), stage.stage, stage.actor)
            grid.add_row(name, *where, *own, str(stage.queued), *times)
            own = ("", "")
    return grid


def _grid(columns: Sequence[str], left: int) -> Table:
    """The first `left` columns hold names, the others numbers."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        grid.add_column(column, no_wrap=True, justify="left" if place < left else "right")
    return grid


def _rates(before: Look, now: Look, then: Mapping[str, int], count: Mapping[str, int]) -> dict[str, float]:
    """What was added each second, by key; only of what was there in both looks."""
    took = now.at - before.at
    return {key: (count[key] - then[key]) / took for key in count.keys() & then.keys()} if took > 0 else {}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _places(actor: pb.ActorStatus) -> str:
    return f"{actor.sessions}/{actor.max_sessions}" if actor.max_sessions else "shared"


def _state(session: pb.Session) -> str:
    if session.paused or session.parked:
        return "paused" if session.paused else "parked"
    return pb.SessionState.Name(session.state).removeprefix("SESSION_STATE_").lower()
