"""`riverrun jobs`: films rendered with nobody watching."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from riverrun.client.commands.common import Address, AsJson, client, err, key_values, out, show_json, table
from riverrun.client.commands.run import chosen_length, parse_switches
from riverrun.protos import riverrun_pb2 as pb

app = typer.Typer(no_args_is_help=True, help="Render to files on the service, with no client attached.")
Id = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]


@app.command("submit")
def submit(
    graph: Annotated[str, typer.Argument(help="A graph's name.")],
    output: Annotated[Path, typer.Option("--out", help="On the service's machine: an .mp4, or a folder for PNGs.")],
    prompt: Annotated[str | None, typer.Option(help="What to show.")] = None,
    at: Annotated[list[str] | None, typer.Option("--at", metavar="SECONDS:PROMPT")] = None,
    seconds: Annotated[float | None, typer.Option(help="Length, 20 by default.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Length in frames instead.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    param: Annotated[list[str] | None, typer.Option("--param", metavar="NAME=VALUE")] = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job; it goes on when this command has ended."""
    length = chosen_length(frames, seconds)
    switches = parse_switches(at)
    params = key_values(param or ())
    with client(address) as rr:
        fps = rr.graph(graph).outputs[0].fps if switches else 0.0
        controls = [(round(switch.seconds * fps), switch.prompt) for switch in switches]
        job = rr.submit(graph, output, prompt=prompt, seed=seed, at=controls, **length, **params)
    if as_json:
        show_json(job)
    else:
        out.print(f"{job.job_id}: {job.frames_total} frames of {job.graph}", highlight=False)


@app.command("ls")
def list_jobs(address: Address = None, as_json: AsJson = False) -> None:
    """List the jobs."""
    with client(address) as rr:
        jobs = rr.jobs()
    if as_json:
        show_json(jobs)
        return
    rows = [(j.job_id, j.graph, _state(j), f"{j.frames_done}/{j.frames_total}", j.reason) for j in jobs]
    table(("job", "graph", "state", "frames", "reason"), rows, "no jobs")


@app.command("get")
def get_job(job_id: Id, address: Address = None, as_json: AsJson = False) -> None:
    """Show one job."""
    with client(address) as rr:
        _show(rr.job(job_id), as_json)


@app.command("cancel")
def cancel(job_id: Id, address: Address = None, as_json: AsJson = False) -> None:
    """Stop a job. Pictures it has written stay; an unfinished film is removed."""
    with client(address) as rr:
        _show(rr.cancel_job(job_id), as_json)


@app.command("watch")
def watch(job_id: Id, address: Address = None, as_json: AsJson = False) -> None:
    """Follow a job to its end; exit code 1 if it fails or is cancelled."""
    with client(address) as rr, Progress(console=err) as progress:
        task = progress.add_task(job_id)
        for job in rr.watch_job(job_id):
            progress.update(task, completed=job.frames_done, total=job.frames_total)
    _show(job, as_json)
    if job.state != pb.JOB_STATE_SUCCEEDED:
        raise typer.Exit(1)


def _show(job: pb.Job, as_json: bool) -> None:
    if as_json:
        show_json(job)
        return
    why = f" ({job.reason})" if job.reason else ""
    out.print(
        f"{job.job_id}: {_state(job)}{why}, {job.frames_done} of {job.frames_total} frames",
        highlight=False,
        markup=False,
    )
    for port, uri in job.sinks.items():
        out.print(f"  {port}: {uri}", highlight=False, markup=False, soft_wrap=True)


def _state(job: pb.Job) -> str:
    return pb.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()
