"""`riverrun tokens`: who may call a service."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from riverrun.client.commands.common import err

app = typer.Typer(no_args_is_help=True, help="Make tokens for a service's clients.")
PRIVATE = 0o600


@app.callback()
def _group() -> None:
    """Keeps `new` a command of its own, though it is the only one."""


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Who will use it.")],
    tenant: Annotated[str, typer.Option(help="Whose sessions it sees.")],
    role: Annotated[str, typer.Option(help="viewer, controller or admin.")],
    file: Annotated[Path, typer.Option(help="The service's auth.tokens_file; made if it is not there.")],
    out: Annotated[Path | None, typer.Option(help="Write the token here, not to the terminal.")] = None,
) -> None:
    """Make a token, and add its digest to a tokens file. A running service takes it at once.

    The token is shown this one time: the file can't tell it again.
    """
    import yaml

    from riverrun.actors.principal import principal
    from riverrun.actors.tokens import digest_of, read_tokens

    principal(tenant, role, name)
    token, file = secrets.token_urlsafe(32), file.expanduser()
    entry = {"name": name, "tenant": tenant, "role": role, "token_sha256": digest_of(token).hex()}
    rows = yaml.safe_load(file.read_text()) if file.exists() and read_tokens(file) else []
    _write(file, yaml.safe_dump([*rows, entry], sort_keys=False, default_flow_style=None, width=4096))
    if out:
        _write(out.expanduser(), token + "\n")
        err.print(f"the token of {name} is in {out}", highlight=False, markup=False)
    else:
        typer.echo(token)


def _write(path: Path, text: str) -> None:
    """As a whole or not at all, for its owner alone (a file that is there keeps its mode)."""
    mode = path.stat().st_mode & 0o777 if path.exists() else PRIVATE
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE), "w") as opened:
        opened.write(text)
    partial.chmod(mode)
    partial.replace(path)
