"""What the commands share: options, where the service is, and how results and errors are shown."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from riverrun.client.credentials import SYSTEM, Tls, token_in
from riverrun.client.errors import Error
from riverrun.client.export import ExportError
from riverrun.client.sources import SourceError
from riverrun.client.sync import Client
from riverrun.models.base import BadRequest, Corrupt, Unavailable


@dataclasses.dataclass(frozen=True)
class Shown:
    """Files by which a command shows who it is; what is not there comes from the environment."""

    token_file: Path | None = None
    ca: str = ""
    cert: str = ""
    key: str = ""


SHOWN: ContextVar[Shown] = ContextVar("shown")
"""Set by the options before the command."""

out, err = Console(), Console(stderr=True)

PIPED_WIDTH = 200

Address = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help="The service; by default RIVERRUN_ADDRESS, or this machine's."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ConfigFile = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="A service's YAML, or a name such as `cluster`.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Over the configuration, dotted: port=6000 limits.jobs=2"),
]


class Group(TyperGroup):
    """Turns errors into one line on stderr and exit code 1, and Ctrl-C into 130. Wrong usage is click's: 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (Error, BadRequest, Unavailable, Corrupt, ExportError, SourceError, OSError) as error:
            code = f" ({error.code})" if isinstance(error, Error) else ""
            err.print(f"[bold red]error:[/] {_plain(error)}{code}", highlight=False, soft_wrap=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            err.print("stopped")
            ctx.exit(130)


def client(address: str | None) -> Client:
    """A client with the token and the certificates that were named before the command."""
    shown = SHOWN.get(Shown())
    token = token_in(shown.token_file) if shown.token_file else None
    tls = Tls(shown.ca or SYSTEM, shown.cert, shown.key) if shown.ca or shown.cert or shown.key else None
    return Client(address, token=token, tls=tls)


def checked(overrides: Sequence[str] | None) -> list[str]:
    """Dotted overrides; a usage error for one without "="."""
    for override in overrides or ():
        if "=" not in override:
            raise typer.BadParameter(f"{override!r} must be KEY=VALUE")
    return [override.removeprefix("service.") for override in overrides or ()]


@contextmanager
def service(address: str | None, config: str | None, overrides: Sequence[str] | None) -> Iterator[Client]:
    """The service that was named, else the one that runs here, else one started for this command alone.

    A configuration asks for one of its own.
    """
    changes = checked(overrides)
    own = bool(config or changes)
    if address and own:
        raise typer.BadParameter("a configuration is for a service of one's own: leave out --address, or the rest")
    named = bool(address or os.environ.get("RIVERRUN_ADDRESS"))
    if not own:
        with client(address) as rr:
            if named or rr.reachable():
                yield rr
                return
    with started(config, changes) as rr:
        yield rr


@contextmanager
def started(config: str | None, overrides: Sequence[str]) -> Iterator[Client]:
    """A service of this command's own, at any free port unless the overrides say which."""
    from riverrun.client.embedded import embedded
    from riverrun.configs import load_service

    settings = load_service(config, ["port=0", *overrides])
    with ExitStack() as stack:
        with err.status("starting a service for this command"):
            rr = stack.enter_context(embedded(settings))
        yield rr


def show_json(value: Any) -> None:
    """Messages, dataclasses and plain values on stdout as JSON."""
    typer.echo(json.dumps(plain(value), indent=2, default=str))


def plain(value: Any) -> Any:
    if isinstance(value, Message):
        found = MessageToDict(value, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        found.pop("resume_token", None)  # a secret of its creator's, and empty for anybody else
        return found
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], empty: str) -> None:
    """A table on stdout, or one line that says there is nothing."""
    if not rows:
        out.print(empty)
        return
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        grid.add_column(column, no_wrap=place == 0, overflow="fold")  # an id must stay whole, to be copied
    for row in rows:
        grid.add_row(*(str(cell) for cell in row))
    out.print(grid, width=None if out.is_terminal else PIPED_WIDTH)


def key_values(pairs: Sequence[str]) -> dict[str, Any]:
    """`--param height=64` as {"height": 64}: numbers and true/false are read as such, the rest is text."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise typer.BadParameter(f"{pair!r} must be NAME=VALUE", param_hint="--param")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        values[name] = value
    return values


def _plain(error: BaseException) -> str:
    return " ".join(str(error).split()).replace("[", r"\[") or type(error).__name__
