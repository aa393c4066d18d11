"""The contact sheet: a film on one page, with the moments marked at which its prompt changed or something happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from riverrun.client.export import enlarge, zoom
from riverrun.client.types import Frame

COLUMNS, ROWS = 6, 2
_INK, _PAPER, _FAINT, _MARK, _EVENT = "#1a1a1a", "#ffffff", "#6b6b6b", "#d9480f", "#862e9c"
_PAD, _BORDER = 10, 4


@dataclass(frozen=True)
class Sample:
    """One picture of the sheet."""

    number: int
    seconds: float
    picture: np.ndarray  # uint8 (H, W, 3)


@dataclass
class Moment:
    """What happened to a film at some frame. label: what the page says; it may be told until that is drawn."""

    label: str


@dataclass
class Segment:
    """What was made under one prompt: its first frame and an even choice of the rest, of bounded size.

    begins: what happened before its first frame, if that was no change of the prompt.

    Every `stride`-th frame is kept; when there are more than `limit`, every second goes and the stride doubles.
    """

    prompt: str
    limit: int = 4 * COLUMNS * ROWS
    stride: int = 1
    seen: int = 0
    samples: list[Sample] = field(default_factory=list)
    begins: Moment | None = None

    def add(self, frame: Frame) -> None:
        if self.seen % self.stride == 0:
            self.samples.append(Sample(frame.number, frame.seconds, frame.array))
            if len(self.samples) > self.limit:
                self.samples = self.samples[::2]
                self.stride *= 2
        self.seen += 1

    def pick(self, count: int) -> list[Sample]:
        """At most `count` samples, evenly spread, the first one always among them."""
        places = np.unique(np.linspace(0, len(self.samples) - 1, min(count, len(self.samples))).round().astype(int))
        return [self.samples[place] for place in places]


@dataclass
class ContactSheet:
    """Collects the frames of one port while they come, and draws the page at the end.

    `switch` says that frames from revision `revision` on are made under `prompt`, `cut` that something happened before
    the next frame. What lies between has up to `ROWS` rows of `COLUMNS` pictures, the longest part most, with time
    stamps above each picture and the prompt under each row; a coloured line, with the time and the frame, and a border
    around the next picture mark each moment.
    """

    title: str
    prompt: str
    segments: list[Segment] = field(default_factory=list)
    switches: dict[int, str] = field(default_factory=dict)
    revision: int = 0
    coming: Moment | None = None

    def switch(self, revision: int, prompt: str) -> None:
        self.switches[revision] = prompt

    def cut(self, label: str) -> Moment:
        """Marks the moment before the next frame."""
        self.coming = Moment(label)
        return self.coming

    def add(self, frame: Frame) -> None:
        if not self.segments:
            self.segments.append(Segment(self.prompt))
        if frame.revision > self.revision:
            due = [r for r in self.switches if self.revision < r <= frame.revision]
            if due:
                self.segments.append(Segment(self.switches[max(due)]))
            self.revision = frame.revision
        if self.coming:
            self.segments.append(Segment(self.segments[-1].prompt, begins=self.coming))
            self.coming = None
        self.segments[-1].add(frame)

    def changes(self) -> list[Sample]:
        """The first frame under each prompt but the first."""
        return [segment.samples[0] for segment in self.segments[1:] if segment.begins is None]

    def draw(self) -> Image.Image:
        """Raises ValueError without a frame."""
        if not self.segments:
            raise ValueError("there is no frame to put on a contact sheet")
        return _Page(self).image

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.draw().save(path)


class _Page:
    """Draws top down: title, then for each segment its mark, its rows, and the prompt under each row."""

    def __init__(self, sheet: ContactSheet) -> None:
        height, width = sheet.segments[0].samples[0].picture.shape[:2]
        self.zoom = zoom(height, width)
        self.size = (width * self.zoom, height * self.zoom)
        self.small, self.large = (ImageFont.load_default(size) for size in (15, 18))
        longest = max(segment.seen for segment in sheet.segments)
        picked = [s.pick(COLUMNS * max(1, round(ROWS * s.seen / longest))) for s in sheet.segments]
        rows = sum(-(-len(samples) // COLUMNS) for samples in picked)
        page = (
            _PAD + COLUMNS * (self.size[0] + _PAD),
            56 + rows * (self.size[1] + 62) + (len(sheet.segments) - 1) * 44 + _PAD,
        )
        self.image = Image.new("RGB", page, _PAPER)
        self.pen = ImageDraw.Draw(self.image)
        enlarged = f", shown {self.zoom} times enlarged (Lanczos)" if self.zoom > 1 else ""
        self.pen.text((_PAD, 14), f"{sheet.title} · {width}x{height}{enlarged}", _INK, self.large)
        self.y = 56
        for place, (segment, samples) in enumerate(zip(sheet.segments, picked, strict=True)):
            self._segment(segment, samples, marked=place > 0)

    def _segment(self, segment: Segment, samples: list[Sample], marked: bool) -> None:
        first, colour = samples[0], _EVENT if segment.begins else _MARK
        if marked:
            changed = f"prompt changed: in force from {first.seconds:.2f} s (frame {first.number})"
            self._mark(segment.begins.label if segment.begins else changed, colour)
        for start in range(0, len(samples), COLUMNS):
            for column, sample in enumerate(samples[start : start + COLUMNS]):
                self._picture(sample, column, colour if marked and sample is first else "")
            self._fit(f"“{segment.prompt}”", self.y + 22 + self.size[1] + 8)
            self.y += self.size[1] + 62

    def _mark(self, label: str, colour: str) -> None:
        self.pen.line([(0, self.y + 2), (self.image.width, self.y + 2)], colour, 5)
        self.pen.text((_PAD, self.y + 12), label, colour, self.large)
        self.y += 44

    def _picture(self, sample: Sample, column: int, mark: str) -> None:
        """mark: the colour of its border and time; "": none."""
        x, y = _PAD + column * (self.size[0] + _PAD), self.y + 22
        self.pen.text((x, self.y), f"{sample.seconds:.2f} s", mark or _FAINT, self.small)
        if mark:
            corner = (x + self.size[0] + _BORDER - 1, y + self.size[1] + _BORDER - 1)
            self.pen.rectangle([(x - _BORDER, y - _BORDER), corner], mark)
        self.image.paste(Image.fromarray(enlarge(sample.picture, self.zoom)), (x, y))

    def _fit(self, text: str, y: int) -> None:
        """One line of text, cut with an ellipsis where the page ends."""
        room = self.image.width - 2 * _PAD
        if self.pen.textlength(text, self.small) > room:
            while text and self.pen.textlength(text + "…”", self.small) > room:
                text = text[:-1]
            text += "…”"
        self.pen.text((_PAD, y), text, _INK, self.small)
