"""`riverrun demo`: a prompt becomes a video, the video sharp and spatial; it changes half-way and outlives a worker."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

import riverrun
from riverrun.client.commands.common import AsJson, ConfigFile, Overrides, checked, err, show_json, started
from riverrun.client.commands.geometry import plain_outputs
from riverrun.client.commands.play import play, show_summary
from riverrun.client.commands.run import writers_for
from riverrun.client.errors import Unavailable
from riverrun.client.export import Segments
from riverrun.client.geometry.chain import ChainShot
from riverrun.client.proof import Account, kill_worker, survival, undisturbed
from riverrun.client.recorder import Recorder, Switch
from riverrun.client.sheet import ContactSheet
from riverrun.client.sync import Client

GRAPH, ENDLESS_GRAPH = "world", "generate"
PROMPTS = (
    "a large red ball on grass by day, the camera orbits left",
    "a large blue cube on grass by day, the camera orbits left",
    "a large yellow cone on snow at sunset, the camera orbits right",
    "a large purple pillar on sand by day, the camera moves in and out",
)
SWITCH_SECONDS, SEGMENT_SECONDS, SEGMENTS_KEPT = 10.0, 60, 10  # of --forever
GEOMETRY = ("ply", "glb", "tum")
LOAD_S = 300.0
"""The model may take so long to load."""


def demo(
    overrides: Overrides = None,
    forever: Annotated[
        bool, typer.Option("--forever", help="Go on until Ctrl-C, through several prompts; the last films are kept.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=1, help="Length of the video.")] = 20.0,
    folder: Annotated[Path, typer.Option("--out", help="Where the files go.")] = Path("out"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Start a service, stream a prompt through generation, super-resolution and geometry, and write it to out/.

    The prompt changes half-way. At three quarters the process that makes the video is killed; then the film is rendered
    once more undisturbed, and both are compared. demo.mp4 is the video, demo.sharp.mp4 four times as large, demo/ has
    cloud and camera path, chain.png a moment at each stage, contact_sheet.png the video on a page with both moments
    marked, demo.json the timings. A service on a cluster is not disturbed: its processes are others' too. --forever
    streams the video alone.
    """
    begun, changes = time.monotonic(), checked(overrides)
    # Ray tells of the killed worker on stdout, which is for what the demo says itself.
    with contextlib.redirect_stdout(sys.stderr), started(config, changes) as rr:
        serving = time.monotonic()
        summary = (
            _endless(rr, folder, seed) if forever else film(rr, folder, seconds, seed, _has_own_ray(config, changes))
        )
    summary = {"version": riverrun.__version__, "service_start_s": round(serving - begun, 3), **summary}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "demo.json").write_text(json.dumps(summary, indent=2) + "\n")
    summary["files"].append(str(folder / "demo.json"))
    if as_json:
        show_json(summary)
    else:
        show_summary(summary)
    if not summary.get("survival", {"equal": True})["equal"]:
        raise typer.Exit(1)


def film(
    rr: Client, folder: Path, seconds: float, seed: int, kills: bool, graph: str = GRAPH, **params: Any
) -> dict[str, Any]:
    """Makes the film and its files; what there is to say of it. kills: its worker is killed, and the film compared."""
    started_at, total = time.monotonic(), round(seconds * _fps(rr, graph))
    stages = list[dict[str, Any]]()
    with rr.stream(graph, prompt=PROMPTS[0], seed=seed, frames=total, **params) as stream:
        output, pictures = stream.session.outputs[0], [o.port for o in plain_outputs(stream.session)]
        account, chain = Account([o.port for o in stream.session.outputs]), ChainShot({p: p for p in pictures})
        sheet = ContactSheet(f"riverrun demo · graph {graph} · {output.fps:g} fps", PROMPTS[0])
        path = folder / "demo.mp4"
        writers = writers_for(stream, path, GEOMETRY, None, params)
        recorder = Recorder(stream, started_at, [Switch(seconds / 2, PROMPTS[1])], writers, sheet)
        with contextlib.closing(recorder):
            for frame in play(recorder, total):
                account.add(frame)
                if frame.revision == 0:  # what comes under the next prompt is another scene
                    chain.add(frame)
                if (frame.port, frame.number) == (output.port, total * 3 // 4):
                    stages = _stages(rr, stream.session_id)  # now, since an ended session has none at work
                    if kills:
                        account.kill = kill_worker(rr, stream.session_id, frame)
                        err.print(f"killed the worker, process {account.kill.pid}, with SIGKILL", highlight=False)
                        moment = sheet.cut("the worker was killed")
    files = [*recorder.files(), folder / "contact_sheet.png"]
    if drawn := chain.draw():
        files.append(folder / "chain.png")
        drawn.save(files[-1])
    summary = _summary(recorder, seed, stages, files)
    if account.kill:
        at = [(sent["applied_frame"], sent["prompt"]) for sent in summary["switches"] if "applied_frame" in sent]
        with err.status("rendering the same film undisturbed, to compare"):
            wanted = undisturbed(rr, graph, total, at, ports=pictures, prompt=PROMPTS[0], seed=seed, **params)
        summary["survival"] = survival(account, total, wanted)
        moment.label = _told(summary["survival"])
    sheet.save(folder / "contact_sheet.png")
    return summary


def _told(found: dict[str, Any]) -> str:
    return (
        f"worker killed with SIGKILL after frame {found['killed_after_frame']} ({found['killed_at_s']:.2f} s of film):"
        f" the next new frame came {found['next_frame_after_s']:.1f} s later · lost {found['lost']}, duplicated"
        f" {found['duplicated']}, the rest as if undisturbed: {'yes' if found['equal'] else 'no'}"
    )


def _fps(rr: Client, graph: str) -> float:
    """Known once the model is loaded. Raises Unavailable if that takes too long."""
    until = time.monotonic() + LOAD_S
    while not (fps := rr.graph(graph).outputs[0].fps):
        if time.monotonic() > until:
            raise Unavailable(f"the model of graph {graph!r} is not loaded after {LOAD_S:g} s", "UNAVAILABLE")
        time.sleep(0.2)
    return fps


def _has_own_ray(config: str | None, overrides: list[str]) -> bool:
    from riverrun.configs import load_service

    address = load_service(config, overrides).ray_address or os.environ.get("RAY_ADDRESS", "local")
    return address == "local"


def _endless(rr: Client, folder: Path, seed: int) -> dict[str, Any]:
    started_at = time.monotonic()
    with rr.stream(ENDLESS_GRAPH, prompt=PROMPTS[0], seed=seed) as stream:
        output = stream.session.outputs[0]
        frames = round(SEGMENT_SECONDS * output.fps)
        writer = Segments(folder / "demo.mp4", output.fps, frames, SEGMENTS_KEPT)
        recorder = Recorder(stream, started_at, _cycle(), {output.port: writer})
        try:
            with contextlib.closing(recorder):
                for _ in play(recorder, None):
                    pass
        except KeyboardInterrupt:
            err.print("stopping")
        stages = _stages(rr, stream.session_id)
    return _summary(recorder, seed, stages, writer.written)


def _cycle() -> Iterator[Switch]:
    for count, prompt in enumerate(itertools.islice(itertools.cycle(PROMPTS), 1, None), start=1):
        yield Switch(count * SWITCH_SECONDS, prompt)


def _stages(rr: Client, session_id: str) -> list[dict[str, Any]]:
    return [
        {
            "stage": stage.stage,
            "model": stage.model,
            "steps": stage.steps,
            "held_bytes": stage.held_bytes,
            "step_ms_p50": round(stage.compute_ms_p50, 2),
            "step_ms_p99": round(stage.compute_ms_p99, 2),
        }
        for stage in rr.session(session_id).stages
    ]


def _summary(recorder: Recorder, seed: int, stages: list[dict[str, Any]], files: list[Path]) -> dict[str, Any]:
    asked = {"prompt": PROMPTS[0], "seed": seed, "stages": stages, "files": [str(path) for path in files]}
    return recorder.summary() | asked
