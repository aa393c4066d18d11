"""`riverrun drain`: empties an actor or a node before it is taken out of service."""

from __future__ import annotations

from typing import Annotated

import typer

from riverrun.client.commands.common import Address, AsJson, client, out, show_json


def drain(
    target: Annotated[str, typer.Argument(metavar="ACTOR|NODE", help="An actor's name or a node's id.")] = "",
    deadline: Annotated[float, typer.Option(help="Seconds; what has not moved by then is suspended.")] = 60.0,
    undo: Annotated[bool, typer.Option("--undo", help="Sessions may be placed everywhere again.")] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Move all sessions away from an actor or a node."""
    with client(address) as rr:
        answer = rr.drain(target, deadline, undo)
    if as_json:
        show_json(answer)
    elif undo:
        out.print("sessions may be placed everywhere again")
    else:
        out.print(f"{', '.join(answer.actors)}: {answer.sessions} sessions left", highlight=False, markup=False)
