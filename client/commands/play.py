"""A recorder's frames behind a progress bar, and what it found as text. Shared by `run` and `demo`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from riverrun.client.commands.common import err, out
from riverrun.client.recorder import Recorder
from riverrun.client.types import Frame

_REDRAW = 0.1  # seconds of the receiver's clock between updates: the bar must not cost frames


def play(recorder: Recorder, total: int | None) -> Iterator[Frame]:
    """The recorder's frames, with a bar on stderr: frames, frames a second, chunk latency. total None: endless."""
    with _bar(total) as (progress, task):
        drawn = 0.0
        for frame in recorder:
            timings = recorder.timings
            if timings.last is not None and timings.last - drawn >= _REDRAW:
                drawn = timings.last
                progress.update(
                    task,
                    completed=timings.frames,
                    fps=f"{timings.fps:.1f} fps",
                    chunk=f"chunk {timings.chunk_ms(50):.0f} ms",
                )
            yield frame
        progress.update(task, completed=recorder.timings.frames)


@contextmanager
def _bar(total: int | None) -> Iterator[tuple[Progress, Any]]:
    columns = (
        TextColumn("frames"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[fps]}"),
        TextColumn("{task.fields[chunk]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err) as progress:
        yield progress, progress.add_task("frames", total=total, fps="", chunk="")


def show_summary(summary: dict[str, Any]) -> None:
    """A few lines on stdout."""
    times = summary["timings"]
    out.print(
        f"{summary['frames']} frames of {summary['graph']} at {times['fps']} fps; first after"
        f" {times['first_frame_s']} s; chunk latency p50 {times['chunk_ms_p50']} ms, p99 {times['chunk_ms_p99']} ms",
        highlight=False,
        soft_wrap=True,
    )
    for switch in summary["switches"]:
        where = f"in force from frame {switch['applied_frame']}" if "applied_frame" in switch else "not in force yet"
        where = f"refused: {switch['refused']}" if "refused" in switch else where
        out.print(f"  prompt “{switch['prompt']}”: {where}", highlight=False, markup=False, soft_wrap=True)
    if found := summary.get("survival"):
        out.print(
            f"  worker killed (SIGKILL) after frame {found['killed_after_frame']}: the next new frame came"
            f" {found['next_frame_after_s']} s later",
            highlight=False,
            soft_wrap=True,
        )
    for path in summary.get("files", ()):
        out.print(f"  wrote {path}", highlight=False, markup=False, soft_wrap=True)
    if found:
        same = "yes" if found["equal"] else "no"
        out.print(
            f"lost {found['lost']}, duplicated {found['duplicated']},"
            f" sha256 of the frames equal to the undisturbed run: {same}",
            highlight=False,
            soft_wrap=True,
        )
