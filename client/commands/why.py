"""`riverrun why`: the last decisions about a session, and what they were made from."""

from __future__ import annotations

from typing import Annotated

import typer

from riverrun.client.commands.common import Address, AsJson, client, out, show_json


def why(
    session_id: Annotated[str, typer.Argument(metavar="SESSION", help="A session's id.")],
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Say why a session is where it is: the controller's last decisions about it, with their figures."""
    with client(address) as rr:
        found = rr.why(session_id)
    if as_json:
        show_json(found)
        return
    for decision in found:
        at = decision.at.ToDatetime().strftime("%H:%M:%S")
        out.print(f"{at} {decision.kind:6} {decision.model}: {decision.line}", highlight=False, markup=False)
        for name, figure in sorted(decision.inputs.items()):
            out.print(f"                {name}: {figure}", highlight=False, markup=False)
    if not found:
        out.print(f"nothing was decided about session {session_id} since the controller started", markup=False)
