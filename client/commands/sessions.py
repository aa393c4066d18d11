"""`riverrun sessions`: what runs."""

from __future__ import annotations

from datetime import UTC
from typing import Annotated

import typer

from riverrun.client.commands.common import Address, AsJson, client, out, show_json, table
from riverrun.protos import riverrun_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="List, look at and end sessions.")
Id = Annotated[str, typer.Argument(metavar="SESSION", help="A session's id.")]


@app.command("ls")
def list_sessions(
    include_ended: Annotated[bool, typer.Option("--all", help="Ended ones too.")] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """List the sessions."""
    with client(address) as rr:
        sessions = rr.sessions(include_ended)
    if as_json:
        show_json(sessions)
        return
    rows = [(s.session_id, s.graph, _state(s), s.frames_delivered, _when(s), s.reason) for s in sessions]
    table(("session", "graph", "state", "frames", "created", "reason"), rows, "no sessions")


@app.command("get")
def get_session(session_id: Id, address: Address = None, as_json: AsJson = False) -> None:
    """Show one session and its stages."""
    with client(address) as rr:
        session = rr.session(session_id)
    if as_json:
        show_json(session)
        return
    out.print(
        f"{session.session_id}: graph {session.graph}, {_state(session)} {session.reason}",
        highlight=False,
        markup=False,
    )
    rows = [
        (s.stage, s.model, s.incarnation, s.steps, s.held_bytes, f"{s.compute_ms_p50:.1f}", f"{s.compute_ms_p99:.1f}")
        for s in session.stages
    ]
    table(("stage", "model", "incarnation", "steps", "held bytes", "step ms p50", "p99"), rows, "no stages")


@app.command("close")
def close_session(
    session_id: Id,
    reason: Annotated[str, typer.Option(help="Kept in its record.")] = "closed from the command line",
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """End a session and free its state."""
    with client(address) as rr:
        _show(rr.close_session(session_id, reason), as_json)


@app.command("suspend")
def suspend_session(
    session_id: Id,
    reason: Annotated[str, typer.Option(help="Kept in its record.")] = "suspended from the command line",
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Save a session and free what it holds; its client goes on with its resume token."""
    with client(address) as rr:
        _show(rr.suspend_session(session_id, reason), as_json)


@app.command("resume")
def resume_session(
    session_id: Id,
    resume_token: Annotated[str, typer.Option(envvar="RIVERRUN_RESUME_TOKEN", help="What its creator was given.")],
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Take a session up again, before its client connects."""
    with client(address) as rr:
        _show(rr.resume_session(session_id, resume_token), as_json)


@app.command("migrate")
def migrate_session(
    session_id: Id,
    stage: Annotated[str, typer.Option(help="Only this stage.")] = "",
    to: Annotated[str, typer.Option(metavar="ACTOR", help="Where to; else wherever there is room.")] = "",
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Move a running session to other actors."""
    with client(address) as rr:
        _show(rr.migrate_session(session_id, stage, to), as_json)


def _show(session: pb.Session, as_json: bool) -> None:
    if as_json:
        show_json(session)
    else:
        out.print(f"{session.session_id}: {_state(session)} {session.reason}".rstrip(), highlight=False, markup=False)


def _when(session: pb.Session) -> str:
    return f"{session.created.ToDatetime(UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def _state(session: pb.Session) -> str:
    return pb.SessionState.Name(session.state).removeprefix("SESSION_STATE_").lower()
