"""`riverrun sim`: a policy is tried on a laptop before a cluster is run by it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

LISTS = "several with commas"


def sim(
    workload: Annotated[str, typer.Option(help=f"W1 … W6, {LISTS}: docs/simulator.md says what they are.")] = "W1",
    policies: Annotated[
        str, typer.Option("--policy", help=f"B1 … B6, B8, ours, ours-moves, ours-scale; {LISTS}.")
    ] = "B1,B2,B3,B4,B5,B6,B8,ours",
    gpus: Annotated[int, typer.Option(min=1, help="Workers of a fixed cluster, and the most of one that scales.")] = 16,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, on other days with other truths.")] = 5,
    seconds: Annotated[float | None, typer.Option(min=1, help="Of each day; by default all of it.")] = None,
    latency: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="port, h100, or a JSON file with step_ms: [alone, of two, …].")
    ] = "port",
    spread: Annotated[float, typer.Option(min=0, max=0.9, help="The truth is off by up to this share.")] = 0.2,
    start_s: Annotated[float, typer.Option(min=0, help="A node comes so long after it was asked for.")] = 20.0,
    load_s: Annotated[float, typer.Option(min=0, help="Cold start: its worker has loaded the model so late.")] = 10.0,
    kill_every_s: Annotated[float, typer.Option(min=0, help="A worker dies so often; 0: as the workload says.")] = 0.0,
    trace: Annotated[Path | None, typer.Option(exists=True, help="A trace in TurboServe's JSON form, instead.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write every figure there.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Worst chunk against cost.")] = None,
) -> None:
    """Play days of users on a simulated cluster, under several policies, and compare.

    Needs no service, no GPU and no network.
    """
    from riverrun.cluster.sim.engine import World
    from riverrun.cluster.sim.grid import COLUMNS, Grid, row
    from riverrun.cluster.sim.policies import POLICIES
    from riverrun.cluster.sim.trace import WORKLOADS, read
    from riverrun.cluster.sim.truth import profile

    names, days = policies.split(","), workload.split(",")
    _known("--policy", names, list(POLICIES))
    _known("--workload", days, list(WORKLOADS))
    try:
        told = profile(latency)
        given = read(trace) if trace else None
    except (ValueError, KeyError, TypeError) as error:
        raise typer.BadParameter(str(error)) from None
    world = World(told, spread=spread, start_s=start_s, load_s=load_s)
    grid = Grid(days, names, gpus, seeds, world, seconds, given, kill_every_s)
    found = list(grid.play())
    for line in _aligned([COLUMNS, *(row(each) for each in found)]):
        typer.echo(line)
    if as_json:
        as_json.write_text(json.dumps([dataclasses.asdict(each) for each in found], indent=2) + "\n")
    if plot:
        from riverrun.cluster.sim.picture import pareto

        pareto(found, plot)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Each row on a line of its own however wide it is: a wrapped figure can't be read."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _known(option: str, given: list[str], known: list[str]) -> None:
    if unknown := [name for name in given if name not in known]:
        raise typer.BadParameter(f"{', '.join(unknown)}: there are {', '.join(known)}", param_hint=option)
