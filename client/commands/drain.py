"""`riverrun drain`: empties an actor or a node before it is taken out of service."""

from __future__ import annotations

from typing import Annotated

import typer

from riverrun.client.commands.common import Address, AsJson, client, out, show_json
from riverrun.models.base import Unavailable


def drain(
    target: Annotated[str, typer.Argument(metavar="ACTOR|NODE", help="An actor's name or a node's id.")] = "",
    deadline: Annotated[float, typer.Option(help="Seconds; what has not moved by then is suspended.")] = 60.0,
    here: Annotated[bool, typer.Option("--here", help="The node of a Ray cluster that this command runs on.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Sessions may be placed everywhere again.")] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Move all sessions away from an actor or a node."""
    if here:
        target = _this_node()
    with client(address) as rr:
        answer = rr.drain(target, deadline, undo)
    if as_json:
        show_json(answer)
    elif undo:
        out.print("sessions may be placed everywhere again")
    else:
        out.print(f"{', '.join(answer.actors)}: {answer.sessions} sessions left", highlight=False, markup=False)


def _this_node() -> str:
    """The id of the Ray node on this machine or in this pod. Raises Unavailable."""
    import ray

    try:
        ray.init("auto", logging_level="ERROR", log_to_driver=False)
    except ConnectionError as error:
        raise Unavailable(f"no Ray node runs here: {error}") from error
    try:
        return ray.get_runtime_context().get_node_id()
    finally:
        ray.shutdown()
