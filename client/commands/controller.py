"""`riverrun controller`: holds the one that decides where sessions are and how many actors there are."""

from __future__ import annotations

import typer

from riverrun.client.commands.common import Address, client, out

app = typer.Typer(no_args_is_help=True, help="Hold the controller, or let it go on.")


@app.command()
def freeze(address: Address = None) -> None:
    """Move no session and scale nothing until it is thawed; new sessions are placed, and dead actors replaced."""
    with client(address) as rr:
        rr.freeze()
    out.print("frozen: nothing is moved or scaled until `riverrun controller thaw`")


@app.command()
def thaw(address: Address = None) -> None:
    """Move sessions and scale again."""
    with client(address) as rr:
        rr.freeze(thaw=True)
    out.print("thawed: sessions are moved and actors scaled again")
