"""`riverrun run GRAPH`: a stream into files, of a prompt or of frames that go in."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from riverrun.client.commands.common import (
    Address,
    AsJson,
    ConfigFile,
    Overrides,
    err,
    key_values,
    service,
    show_json,
)
from riverrun.client.commands.feeding import Input, fed, options_for
from riverrun.client.commands.geometry import geometry_for, joined, parse_formats, plain_outputs
from riverrun.client.commands.play import play, show_summary
from riverrun.client.export import Writer, writer_for
from riverrun.client.film import SUFFIXES, FilmWriter
from riverrun.client.geometry.folder import FORMATS
from riverrun.client.recorder import Recorder, Switch
from riverrun.client.sheet import ContactSheet
from riverrun.client.sources import DEFAULT_FPS, open_source
from riverrun.client.sync import Stream

DEFAULT_SECONDS = 20.0


def run(
    graph: Annotated[str, typer.Argument(help="A graph's name; see `riverrun graphs ls`.")],
    overrides: Overrides = None,
    prompt: Annotated[str | None, typer.Option(help="What to show.")] = None,
    at: Annotated[
        list[str] | None, typer.Option("--at", metavar="SECONDS:PROMPT", help="Change the prompt there; repeatable.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Length; 20, or all of what goes in.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Length in frames instead.")] = None,
    source: Annotated[
        str | None,
        typer.Option("--in", metavar="SOURCE", help="Frames to put in: a film, a folder of pictures, camera:DEVICE."),
    ] = None,
    fps: Annotated[float, typer.Option(help="Of a folder of pictures that goes in.")] = DEFAULT_FPS,
    output: Annotated[
        Path | None,
        typer.Option("--out", help="An .mp4 (.mkv, .mov too with --in), or a folder for PNGs; ports get names added."),
    ] = None,
    formats: Annotated[
        str, typer.Option(help=f"Of geometry, into the folder --out: some of {','.join(FORMATS)}.")
    ] = "ply,tum",
    sheet: Annotated[Path | None, typer.Option(help="A contact sheet of the first output (.png).")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    param: Annotated[
        list[str] | None, typer.Option("--param", metavar="NAME=VALUE", help="A parameter of the graph; repeatable.")
    ] = None,
    codec: Annotated[str, typer.Option(help="On the wire: raw, png or jpeg.")] = "raw",
    lead: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Live: make it as it plays, at most so far ahead. 0: as fast as it goes."),
    ] = None,
    address: Address = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Stream a graph, on a running service or on one started for it, and write what comes."""
    length = chosen_length(frames, seconds)
    films = SUFFIXES if source else (".mp4",)
    if output is not None and output.suffix not in ("", *films):
        wanted = f"must end in {', '.join(films)}, or be a folder for PNGs, got {output.name!r}"
        raise typer.BadParameter(wanted, param_hint="--out")
    switches = parse_switches(at)
    params, files_wanted = key_values(param or ()), parse_formats(formats)
    given = Input.of(open_source(source, fps), frames, seconds) if source else None
    with service(address, config, overrides) as rr:
        started = time.monotonic()
        params, length = options_for(rr, graph, given, params, length)
        with rr.stream(graph, prompt=prompt, seed=seed, codec=codec, lead=lead, **length, **params) as stream:
            writers = writers_for(stream, output, files_wanted, given, params)
            recorder = Recorder(stream, started, switches, writers, _sheet(sheet, stream, prompt))
            with fed(stream, given, writers) as total:
                made = total or frames or round(length.get("seconds", 0) * stream.session.outputs[0].fps)
                files = _record(recorder, made or None, sheet)
    summary = recorder.summary() | {"prompt": prompt, "seed": seed, "files": files}
    if as_json:
        show_json(summary)
    else:
        show_summary(summary)
    if recorder.refused():
        raise typer.Exit(1)


def chosen_length(frames: int | None, seconds: float | None) -> dict[str, Any]:
    """What --frames and --seconds ask for, as `Client.stream` and `submit` take it."""
    if seconds is not None and frames is not None:
        raise typer.BadParameter("give --seconds or --frames, not both")
    if seconds is not None and seconds <= 0:
        raise typer.BadParameter(f"must be above 0, got {seconds:g}", param_hint="--seconds")
    return {"frames": frames} if frames is not None else {"seconds": seconds or DEFAULT_SECONDS}


def parse_switches(texts: list[str] | None) -> list[Switch]:
    """The --at options in order of time."""
    return sorted((parse_switch(text) for text in texts or ()), key=lambda switch: switch.seconds)


def parse_switch(text: str) -> Switch:
    """`8.5:a red ball` as a Switch; a usage error else."""
    seconds, colon, prompt = text.partition(":")
    try:
        return Switch(float(seconds), prompt.strip()) if colon and prompt.strip() else _no_switch(text)
    except ValueError:
        return _no_switch(text)


def writers_for(
    stream: Stream, output: Path | None, formats: Sequence[str], given: Input | None, params: Mapping[str, Any]
) -> dict[str, Writer]:
    """A writer for each output: the first at `output`, the others beside it with their name added, and all of geometry
    in a folder, in `formats`. given: a film made of its frames is like it. params: as the session was asked for."""
    if output is None:
        return {}
    return joined(_plain(stream, output, given), geometry_for(stream, output, formats, given, params))


def _plain(stream: Stream, output: Path, given: Input | None) -> dict[str, Writer]:
    writers: dict[str, Writer] = {}
    for place, port in enumerate(plain_outputs(stream.session)):
        path = output if place == 0 else output.with_name(f"{output.stem}.{port.port}{output.suffix}")
        if path.suffix and port.kind != "frames":
            path = path.with_suffix("")  # no picture: a folder of arrays
        is_like = given is not None and path.suffix
        writers[port.port] = (
            FilmWriter(path, given.source.look, given.source.path) if given and is_like else writer_for(path, port.fps)
        )
    return writers


def _record(recorder: Recorder, total: int | None, sheet: Path | None) -> list[str]:
    try:
        for _ in play(recorder, total):
            pass
    except KeyboardInterrupt:
        err.print("stopping; what came is kept")
        raise
    finally:
        recorder.close()
        if sheet is not None and recorder.sheet is not None and recorder.timings.frames:
            recorder.sheet.save(sheet)
    return [str(path) for path in (*recorder.files(), *([sheet] if sheet else []))]


def _sheet(path: Path | None, stream: Stream, prompt: str | None) -> ContactSheet | None:
    if path is None:
        return None
    session = stream.session
    return ContactSheet(f"riverrun · graph {session.graph} · {session.outputs[0].fps:g} fps", prompt or "(no prompt)")


def _no_switch(text: str) -> Switch:
    raise typer.BadParameter(f"{text!r} must be SECONDS:PROMPT, as in 10:a blue box on sand", param_hint="--at")
