"""`riverrun upgrade`: gives actors a new life, one after the other, while their sessions stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from riverrun.client.commands.common import Address, AsJson, client, err, out, show_json
from riverrun.models.base import BadRequest
from riverrun.protos import OLD
from riverrun.protos import riverrun_pb2 as pb

ALL = "all"


def upgrade(
    target: Annotated[str, typer.Argument(metavar="ACTOR|MODEL|all", help="An actor, those of a model, or all.")],
    deadline: Annotated[float, typer.Option(help="Seconds an actor; what has not moved by then is suspended.")] = 60.0,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Start actors anew, from the code and weights there are now, and move their sessions over while they stream."""
    with client(address) as rr:
        done: list[dict[str, Any]] = []
        for actor in meant(target, rr.status().actors):
            with err.status(f"{actor}: a new one is loading, then sessions move"):
                answer = rr.upgrade(actor, deadline)
            done.append({"actor": actor, "left": answer.incarnation_left, "sessions_left": answer.sessions})
            if not as_json:
                out.print(f"{actor}: new; {answer.sessions} sessions left on the old one", highlight=False)
        if as_json:
            show_json(done)


def meant(target: str, actors: Iterable[pb.ActorStatus]) -> list[str]:
    """Names of the actors that `target` means, those that are being left not among them. Raises BadRequest."""
    there = {a.actor: a.model for a in actors if not a.actor.endswith(OLD)}
    found = sorted(name for name, model in there.items() if target in (ALL, name, model))
    if not found:
        raise BadRequest(f"no actor or model {target!r} runs; there are actors {', '.join(sorted(there)) or 'none'}")
    return found
