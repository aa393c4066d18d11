"""`riverrun models`: what the service has, and what a checkpoint is."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from riverrun.client.commands.common import Address, AsJson, client, show_json, table

app = typer.Typer(no_args_is_help=True, help="List models, and look into checkpoints.")


@app.command("ls")
def list_models(address: Address = None, as_json: AsJson = False) -> None:
    """List the service's models."""
    with client(address) as rr:
        models = rr.models()
    if as_json:
        show_json(models)
        return
    rows = [
        (
            m.name,
            m.stage,
            ", ".join(f"{p.port}:{p.kind}" for p in m.inputs) or "-",
            ", ".join(f"{p.port}:{p.kind}" for p in m.outputs) or "-",
            ", ".join(m.controls) or "-",
            f"{m.fps:g}",
            f"{m.retained_bytes / 2**20:.1f} MiB",
            m.licence or "not known",
        )
        for m in models
    ]
    table(("model", "stage", "inputs", "outputs", "controls", "fps", "a session holds", "licence"), rows, "no models")


@app.command("check")
def check(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file, a folder, or a hub name.")],
    height: Annotated[int, typer.Option(help="Pixels of the session to cost.")] = 480,
    width: Annotated[int, typer.Option(help="Likewise.")] = 832,
    as_json: AsJson = False,
) -> None:
    """Say what a checkpoint is, whether its keys fit, its licence, and what a session of it holds.

    Exit code 1 if it would not load.
    """
    from riverrun.models.inspect import inspect_checkpoint, render

    found = inspect_checkpoint(path, height, width)
    if as_json:
        show_json(dataclasses.asdict(found) | {"loadable": found.is_loadable})
    else:
        typer.echo(render(found))
    if not found.is_loadable:
        raise typer.Exit(1)
