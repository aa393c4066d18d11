"""The command line: `riverrun --help`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import typer

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when grpc is imported; its errors come to us as exceptions

import riverrun
from riverrun.client.commands import (
    controller,
    demo,
    doctor,
    drain,
    graphs,
    jobs,
    models,
    run,
    serve,
    sessions,
    sim,
    tokens,
    top,
    upgrade,
    why,
)
from riverrun.client.commands.common import SHOWN, Group, Shown

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Endless video from causal models, as a service.",
)
app.command("demo")(demo.demo)
app.command("serve")(serve.serve)
app.command("run")(run.run)
app.command("top")(top.top)
app.command("drain")(drain.drain)
app.command("upgrade")(upgrade.upgrade)
app.command("why")(why.why)
app.add_typer(controller.app, name="controller")
app.command("sim")(sim.sim)
app.add_typer(sessions.app, name="sessions")
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")
app.add_typer(graphs.app, name="graphs")
app.add_typer(tokens.app, name="tokens")
app.command("doctor")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(riverrun.__version__)
        raise typer.Exit


@app.callback()
def _options(
    token_file: Annotated[
        Path | None,
        typer.Option(envvar="RIVERRUN_TOKEN_FILE", help="Holds the token to show; or set RIVERRUN_TOKEN."),
    ] = None,
    ca: Annotated[
        str,
        typer.Option(metavar="FILE", envvar="RIVERRUN_CA", help="TLS: who signs for the service (or: `system`)."),
    ] = "",
    cert: Annotated[
        str, typer.Option(metavar="FILE", envvar="RIVERRUN_CERT", help="TLS: a certificate to show, if asked for one.")
    ] = "",
    key: Annotated[str, typer.Option(metavar="FILE", envvar="RIVERRUN_KEY", help="TLS: its key.")] = "",
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    SHOWN.set(Shown(token_file, ca, cert, key))


def main() -> None:
    """The `riverrun` command. Being told to stop counts as Ctrl-C, so that no service of a command stays behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()
