"""`riverrun doctor`: is everything here that a service needs?"""

from __future__ import annotations

import dataclasses

import typer
from rich.table import Table

from riverrun.client.commands.common import PIPED_WIDTH, AsJson, ConfigFile, Overrides, checked, err, out, show_json

_SHOWN = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[bold red]missing[/]"}


def doctor(overrides: Overrides = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Check this machine and say what to do. Exit code 1 if something needed is missing."""
    from riverrun.client.doctor import examine
    from riverrun.configs import load_service

    settings = load_service(config, checked(overrides))
    with err.status("looking"):
        findings = examine(settings)
    if as_json:
        show_json([dataclasses.asdict(finding) for finding in findings])
    else:
        grid = Table("", "what", "found", "what to do", box=None, pad_edge=False, header_style="bold")
        for finding in findings:
            grid.add_row(_SHOWN[finding.state], finding.what, finding.found, finding.advice)
        out.print(grid, width=None if out.is_terminal else PIPED_WIDTH)
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)
