"""Plays a stream: writes its frames, sends the prompts that fall due, and keeps time and receipts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from riverrun.client.export import Writer, written
from riverrun.client.sheet import ContactSheet
from riverrun.client.sync import Change, Stream
from riverrun.client.timings import Timings
from riverrun.client.types import Frame

RECENT_SWITCHES = 100


@dataclass(frozen=True)
class Switch:
    """A prompt to send when the frame at `seconds` of media time has been received.

    It is in force some chunks later: what was made ahead, and the chunk at work, still have the old one.
    """

    seconds: float
    prompt: str


@dataclass
class Recorder:
    """Iterating it takes the stream's frames. `writers` are by port; the first output carries sheet, times, switches.

    started: when the session was asked for, by `clock`. switches: in order of time, endless ones too. sent: the last
    of those sent, with the frame after which.
    """

    stream: Stream
    started: float
    switches: Iterable[Switch] = ()
    writers: Mapping[str, Writer] = field(default_factory=dict)
    sheet: ContactSheet | None = None
    clock: Callable[[], float] = time.monotonic
    sent: deque[tuple[Switch, int, Change]] = field(default_factory=lambda: deque(maxlen=RECENT_SWITCHES))
    last: Frame | None = None

    def __post_init__(self) -> None:
        self.port = self.stream.session.outputs[0].port
        self.timings = Timings(self.started)
        self._coming = iter(self.switches)
        self._due = next(self._coming, None)

    def __iter__(self) -> Iterator[Frame]:
        for frame in self.stream:
            if frame.port == self.port:
                self._take(frame)
            if frame.port in self.writers:
                self.writers[frame.port].add(frame)
            yield frame

    def close(self) -> None:
        """Completes the files; call it whatever happened, so that what came is kept."""
        for writer in self.writers.values():
            writer.close()

    def files(self) -> list[Path]:
        """What the writers have made, once they are closed."""
        made = [path for writer in self.writers.values() if writer.frames for path in written(writer)]
        return list(dict.fromkeys(made))  # one writer may take many ports

    def refused(self) -> list[str]:
        """Why prompts were refused, one line each."""
        return [str(change.error) for _, _, change in self.sent if change.error is not None]

    def summary(self) -> dict[str, Any]:
        """Plain values for a table or JSON."""
        session = self.stream.session
        return {
            "graph": session.graph,
            "session_id": session.session_id,
            "frames": self.timings.frames,
            "media_s": None if self.last is None else round(self.last.seconds, 3),
            "ended": self.stream.ended_reason,
            "reconnects": self.stream.reconnects,
            "timings": self.timings.summary(),
            "switches": [self._receipt(*sent) for sent in self.sent],
        }

    def _take(self, frame: Frame) -> None:
        self.timings.note(frame.chunk, self.clock())
        self.last = frame
        if self.sheet is not None:
            self.sheet.add(frame)
        while self._due is not None and frame.seconds >= self._due.seconds:
            switch, self._due = self._due, next(self._coming, None)
            change = self.stream.prompt(switch.prompt)
            self.sent.append((switch, frame.number, change))
            if self.sheet is not None:
                self.sheet.switch(change.revision, switch.prompt)

    def _receipt(self, switch: Switch, after: int, change: Change) -> dict[str, Any]:
        fps = self.stream.session.outputs[0].fps
        entry: dict[str, Any] = {"prompt": switch.prompt, "revision": change.revision, "sent_after_frame": after}
        if change.receipt is not None:
            entry |= {"applied_chunk": change.receipt.chunk, "applied_frame": change.receipt.frame}
            if fps:
                entry["applied_s"] = round(change.receipt.frame / fps, 3)
        elif change.error is not None:
            entry["refused"] = str(change.error)
        return entry
