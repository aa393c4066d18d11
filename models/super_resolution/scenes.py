"""Where a video changes scene, decided online, and the chunks that follow from it (infvsr_flashvsr.md A1 §6).

The same decisions as PySceneDetect's content detector with its merging filter on 8-bit OpenCV HSV, in numpy.
N frames, H height, W width; frames are uint8 RGB [H, W, 3].
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from riverrun.models.state import Waiting

MIN_SCENE = 15
"""Frames a scene lasts at least; a cut may be found this late. Also how long a reference frame is kept at least."""
FIRST, NEXT = 9, 12
"""Frames of a scene's first chunk and of the others: 3 latent frames each."""


@cache
def _divisions() -> tuple[np.ndarray, np.ndarray]:
    """OpenCV's fixed-point tables of 255 / i and 30 / i, 12 fractional bits, int32 [256]; 0 at i = 0."""
    steps = np.arange(1, 256)
    saturation, hue = (np.rint((top << 12) / (unit * steps)).astype(np.int32) for top, unit in ((255, 1), (180, 6)))
    return np.append(np.int32(0), saturation), np.append(np.int32(0), hue)


def hsv(rgb: np.ndarray) -> np.ndarray:
    """uint8 RGB [..., 3] -> OpenCV's 8-bit HSV [..., 3], hue in 0..179."""
    r, g, b = (rgb[..., i].astype(np.int32) for i in range(3))
    value = np.maximum(np.maximum(r, g), b)
    spread = value - np.minimum(np.minimum(r, g), b)
    by_value, by_spread = _divisions()
    saturation = (spread * by_value[value] + 2048) >> 12
    turn = np.where(value == r, g - b, np.where(value == g, b - r + 2 * spread, r - g + 4 * spread))
    hue = (turn * by_spread[spread] + 2048) >> 12
    return np.stack([np.where(hue < 0, hue + 180, hue), saturation, value], axis=-1).astype(np.uint8)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of two HSV frames [H, W, 3], over the three channels alike."""
    apart = np.abs(a.astype(np.int32) - b.astype(np.int32))
    return float(sum(apart[..., i].sum() / apart[..., i].size for i in range(3)) / 3)


@dataclass
class CutFilter:
    """Turns "this frame differs from the last" into cuts at least `MIN_SCENE` frames apart.

    Differences that follow a cut too soon are merged into one late cut, at the last of them. last_above: newest frame
    that differed (at first where the filter began). may_merge: a first cut was made. merge_start: None unless merging.
    """

    last_above: int | None = None
    may_merge: bool = False
    merge_start: int | None = None

    def cut(self, frame: int, is_above: bool) -> int | None:
        """The cut found by looking at frame number `frame`, if any: that frame, or the one a merge ended with."""
        since = frame if self.last_above is None else self.last_above
        is_apart = frame - since >= MIN_SCENE
        self.last_above = frame if is_above else since
        if self.merge_start is not None:
            if is_above or not is_apart or self.last_above - self.merge_start < MIN_SCENE:
                return None
            self.merge_start = None
            return self.last_above
        if is_above and is_apart:
            self.may_merge = True
            return frame
        if is_above and self.may_merge:
            self.merge_start = frame
        return None


@dataclass(frozen=True)
class SceneChunk:
    """Frames of one scene that are restored together. is_new_scene: nothing before them may be looked back at.

    is_new_reference: its first frame becomes the reference of the visual guidance.
    """

    frames: tuple[Waiting, ...]
    is_new_scene: bool
    is_new_reference: bool


@dataclass
class SceneSplitter:
    """Cuts a stream of frames into chunks that never cross a scene. What it decides depends on the frames alone.

    scene_threshold: difference from frame to frame that is a cut; None looks for none, and then no frame waits and
    the first reference serves for ever. reference_threshold: difference from the reference frame that replaces it.

    State: frames that wait (at most 26 once all chunks were taken), `start` (number of the first of them), `seen`
    (frames ever added), `cuts` ahead, `settled` (no cut will be found before this frame), the filter, shape and
    revision of the newest frame, and the HSV of the newest and of the reference frame. taken: whether the newest chunk
    began a scene, and took a reference; forced: `decisions` to follow.
    """

    scene_threshold: float | None = 27.0
    reference_threshold: float = 27.0
    waiting: deque[Waiting] = field(default_factory=deque)
    cuts: deque[int] = field(default_factory=deque)
    filter: CutFilter = field(default_factory=CutFilter)
    start: int = 0
    seen: int = 0
    settled: int = 0
    begins: bool = True
    shape: tuple[int, ...] | None = None
    revision: int = 0
    last: np.ndarray | None = None
    reference: np.ndarray | None = None
    reference_at: int = 0
    taken: tuple[bool, bool] = (False, False)
    forced: dict[str, Any] | None = None

    def add(self, frame: Waiting) -> float:
        """Takes the next frame and returns how much it differs from the one before (0 for a first one).

        A frame of another size begins a new scene, and so does one under another control of who made it: what it
        shows was asked to change.
        """
        score = 0.0
        if self.forced is None and self.seen and (self.shape, self.revision) != (frame.pixels.shape, frame.revision):
            self.cut()
        self.shape, self.revision = frame.pixels.shape, frame.revision
        if self.scene_threshold is not None:
            now = hsv(frame.pixels)
            if self.last is not None and self.last.shape == now.shape:
                score = difference(now, self.last)
            found = None if self.forced else self.filter.cut(self.seen, score >= self.scene_threshold)
            if found is not None:
                self.cuts.append(found)
            self.last = now
        self.waiting.append(frame)
        self.seen += 1
        self._obey()
        return score

    def cut(self) -> None:
        """The next frame to be added begins a new scene; all before it are let go. Also how a stream is flushed."""
        self.forced = None
        if self.settled != self.seen:
            self.cuts.append(self.seen)
        self.settled = self.seen
        self.filter, self.last = CutFilter(), None

    def begin_scene(self) -> None:
        """The next chunk begins a new scene, wherever it is."""
        self.begins = True

    @property
    def due(self) -> int:
        """Frames of the next chunk; 0 while it isn't known yet."""
        if self.forced is not None:
            count = self.forced["start"] - self.start
            return count if count <= len(self.waiting) else 0
        delay = MIN_SCENE if self.scene_threshold is not None else 0
        known = max(self.seen - delay, self.settled)
        cut = next((at for at in self.cuts if at > self.start), None)
        stop = known if cut is None else min(known, cut)
        size, available = self._size(), stop - self.start
        return min(size, available) if available >= size or (available > 0 and stop == cut) else 0

    def take(self) -> SceneChunk | None:
        """The next chunk, None while it isn't known yet."""
        count = self.due
        if not count:
            return None
        is_new_scene = self.at_scene
        if self.cuts and self.cuts[0] == self.start:
            self.cuts.popleft()
        frames = tuple(self.waiting.popleft() for _ in range(count))
        is_new = self.forced["taken"][1] if self.forced else is_new_scene or self._is_stale(frames[0].pixels)
        if is_new:
            self.reference_at = self.start
            self.reference = None if self.scene_threshold is None else hsv(frames[0].pixels)
        self.start += count
        self.begins, self.taken = False, (is_new_scene, is_new)
        self._obey()
        return SceneChunk(frames, is_new_scene, is_new)

    @property
    def at_scene(self) -> bool:
        """Whether the next chunk begins a scene."""
        if self.forced is not None:
            return bool(self.forced["taken"][0])
        return self.begins or bool(self.cuts and self.cuts[0] == self.start)

    # -- replay ----------------------------------------------------------------------------------------------

    def decisions(self) -> dict[str, Any] | None:
        """What was decided by the frames' values so far, JSON-able; None where no scene is looked for."""
        if self.scene_threshold is None:
            return None
        decided = {"cuts": list(self.cuts), "filter": asdict(self.filter), "taken": list(self.taken)}
        return decided | {name: getattr(self, name) for name in ("seen", "start", "settled")}

    def force(self, decisions: dict[str, Any]) -> None:
        """The frames added next and the chunk taken then lead to `decisions`, whatever the frames show."""
        self.forced = decisions
        self._obey()

    def _obey(self) -> None:
        """Takes over what is forced, once all frames it speaks of were added and taken."""
        forced = self.forced
        if forced is None or self.seen < forced["seen"] or self.start < forced["start"]:
            return
        self.cuts, self.filter, self.settled = deque(forced["cuts"]), CutFilter(**forced["filter"]), forced["settled"]
        self.forced = None

    def _size(self) -> int:
        return FIRST if self.at_scene else NEXT

    def _is_stale(self, pixels: np.ndarray) -> bool:
        if self.reference is None or self.start - self.reference_at < MIN_SCENE:
            return False
        return difference(hsv(pixels), self.reference) >= self.reference_threshold

    # -- size, snapshot --------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        held = [frame.pixels for frame in self.waiting]
        held += [kept for kept in (self.last, self.reference) if kept is not None]
        return sum(int(array.nbytes) for array in held)

    def snapshot(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(meta, arrays): a few numbers, and the frames one by one, since they may differ in size."""
        counters = {name: getattr(self, name) for name in _COUNTERS}
        meta: dict[str, Any] = {"counters": counters, "shape": self.shape and list(self.shape), "cuts": list(self.cuts)}
        meta["filter"] = asdict(self.filter)
        meta["waiting"] = [[frame.pts, frame.ticks, frame.revision] for frame in self.waiting]
        arrays = {f"waiting/{i}": frame.pixels for i, frame in enumerate(self.waiting)}
        arrays |= {name: kept for name in ("last", "reference") if (kept := getattr(self, name)) is not None}
        return meta, arrays

    def restore(self, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Takes over a snapshot; raises KeyError for a part it lacks."""
        for name in _COUNTERS:
            setattr(self, name, meta["counters"][name])
        self.cuts, self.filter = deque(meta["cuts"]), CutFilter(**meta["filter"])
        self.shape = tuple(meta["shape"]) if meta["shape"] else None
        self.waiting = deque(Waiting(arrays[f"waiting/{i}"], *times) for i, times in enumerate(meta["waiting"]))
        self.last, self.reference = arrays.get("last"), arrays.get("reference")


_COUNTERS = ("start", "seen", "settled", "begins", "reference_at", "revision")


def uneven_times(frames: Sequence[Waiting]) -> tuple[int, ...]:
    """The media time of each frame; none where all are as far apart as the last one lasts."""
    times = tuple(frame.pts for frame in frames)
    step = frames[-1].ticks
    return () if all(b - a == step for a, b in pairwise(times)) else times


def revision_of(frames: Sequence[Waiting]) -> int:
    """The newest control in force for these frames."""
    return max(frame.revision for frame in frames)
