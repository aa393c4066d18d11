"""`riverrun serve`: a service until it is told to stop."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING

import typer

from riverrun.client.commands.common import AsJson, ConfigFile, Overrides, checked, err

if TYPE_CHECKING:
    from riverrun.configs import ServiceConfig


def serve(overrides: Overrides = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Run a service until Ctrl-C.

    It starts what it needs (Ray, a store) unless the configuration names running ones. With --json, the first line
    on stdout says as JSON where it is, once it answers.
    """
    from riverrun.configs import load_service

    asyncio.run(_serve(load_service(config, checked(overrides)), as_json))


async def _serve(config: ServiceConfig, as_json: bool) -> None:
    # Else Ray prints what its autoscaler does on stdout, which is for results; it looks when it is imported.
    os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")
    from riverrun.actors.logs import set_up
    from riverrun.actors.serve import Service

    set_up(config.log)
    async with Service(config) as service:
        if as_json:
            typer.echo(json.dumps({"address": service.address, "metrics": service.metrics_address}))
        err.print(f"riverrun serves at [bold]{service.address}[/]; Ctrl-C stops it", highlight=False)
        if service.metrics_address:
            err.print(f"metrics at http://{service.metrics_address}/metrics", highlight=False)
        await service.until_stopped()
        err.print(f"stopping: clients have {config.drain_s:g} s to leave", highlight=False)
