"""`riverrun demo`: a prompt becomes a video, and changes half-way."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

import riverrun
from riverrun.client.commands.common import AsJson, ConfigFile, Overrides, checked, err, show_json, started
from riverrun.client.commands.play import play, show_summary
from riverrun.client.export import Mp4Writer, Segments
from riverrun.client.recorder import Recorder, Switch
from riverrun.client.sheet import ContactSheet
from riverrun.client.sync import Client

GRAPH = "generate"
PROMPTS = (
    "a large red ball on grass by day, the camera orbits left",
    "a large blue cube on grass by day, the camera orbits left",
    "a large yellow cone on snow at sunset, the camera orbits right",
    "a large purple pillar on sand by day, the camera moves in and out",
)
SWITCH_SECONDS, SEGMENT_SECONDS, SEGMENTS_KEPT = 10.0, 60, 10  # of --forever


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
    """Start a service, stream a video whose prompt changes half-way, and write it to out/.

    demo.mp4 is the video, contact_sheet.png shows it on a page with the change marked, demo.json has the timings.
    """
    begun = time.monotonic()
    with started(config, checked(overrides)) as rr:
        serving = time.monotonic()
        summary = _endless(rr, folder, seed) if forever else _film(rr, folder, seconds, seed)
    summary = {"version": riverrun.__version__, "service_start_s": round(serving - begun, 3), **summary}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "demo.json").write_text(json.dumps(summary, indent=2) + "\n")
    summary["files"].append(str(folder / "demo.json"))
    if as_json:
        show_json(summary)
    else:
        show_summary(summary)


def _film(rr: Client, folder: Path, seconds: float, seed: int) -> dict[str, Any]:
    started_at = time.monotonic()
    with rr.stream(GRAPH, prompt=PROMPTS[0], seed=seed, seconds=seconds) as stream:
        output = stream.session.outputs[0]
        sheet = ContactSheet(f"riverrun demo · graph {GRAPH} · {output.fps:g} fps", PROMPTS[0])
        writer = Mp4Writer(folder / "demo.mp4", output.fps)
        recorder = Recorder(stream, started_at, [Switch(seconds / 2, PROMPTS[1])], {output.port: writer}, sheet)
        total = round(seconds * output.fps)
        stages: list[dict[str, Any]] = []
        with contextlib.closing(recorder):
            for frame in play(recorder, total):
                if frame.number == total * 3 // 4:
                    stages = _stages(rr, stream.session_id)  # now, since an ended session has none at work
    sheet.save(folder / "contact_sheet.png")
    return _summary(recorder, seed, stages, [writer.path, folder / "contact_sheet.png"])


def _endless(rr: Client, folder: Path, seed: int) -> dict[str, Any]:
    started_at = time.monotonic()
    with rr.stream(GRAPH, prompt=PROMPTS[0], seed=seed) as stream:
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
