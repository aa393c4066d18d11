"""How near each upscaler comes to clips whose small version it is given, and what it costs."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riverrun.bench.vsr_features import NAME, Features
from riverrun.bench.vsr_peers import Peer, bicubic
from riverrun.models.base import Chunk
from riverrun.models.super_resolution.infvsr import InfVSR
from riverrun.models.super_resolution.infvsr_state import InfVSRParams
from riverrun.train.clips import Absent, clip
from riverrun.train.quality import psnr, temporal_error
from riverrun.train.scenes import sample_scene
from riverrun.train.vsr_data import SCALE, shrunk
from riverrun.train.world import pictures

TICKS = 3600
WORLD_BAR = 1.5
"""dB above bicubic, on rendered scenes."""
RUN = 3
"""Frames in a row at each place that is looked at."""


@dataclass(frozen=True)
class Source:
    """A clip of which the truth is known: uint8 [T, 3, H, W]. bar: dB above bicubic that must be reached."""

    name: str
    truth: Tensor
    bar: float

    @property
    def small(self) -> Tensor:
        return shrunk(self.truth)

    def places(self, count: int) -> list[int]:
        """First frames of `count` runs, evenly over the clip."""
        return np.linspace(0, len(self.truth) - RUN, count).round().astype(int).tolist()


def sources(worlds: int) -> list[Source]:
    """Two real clips and rendered scenes; a line about what isn't there."""
    return [*_real(), *_worlds(worlds)]


def _real() -> Iterator[Source]:
    try:
        for name, bar in (("carphone", 1.5), ("bikes", 1.3)):
            yield Source(name, _whole(clip(name)), bar)
    except Absent as error:
        print(f"left out: {error}", flush=True)


def _whole(video: np.ndarray) -> Tensor:
    """[T, 3, H, W], cut to what x4 of whole pixels gives."""
    height, width = (side // SCALE * SCALE for side in video.shape[1:3])
    return torch.from_numpy(video[:, :height, :width]).permute(0, 3, 1, 2)


def _worlds(count: int) -> Iterator[Source]:
    rng = random.Random(77_001)
    for number in range(count):
        start = rng.randint(0, 600)
        film = pictures(sample_scene(rng, held_out=True), range(start, start + 21), 256, 256)
        yield Source(f"world {number + 1}", (film * 255).round().to(torch.uint8), WORLD_BAR)


class Ours:
    """The stage itself, fed as a runner feeds it."""

    def __init__(self, model: InfVSR) -> None:
        self.model = model

    def upscale(self, small: Tensor) -> Tensor:
        """uint8 [T, 3, h, w] -> uint8 [T, 3, H, W]."""
        made = [torch.from_numpy(frame) for frame in self.frames(small.permute(0, 2, 3, 1).numpy())]
        return torch.stack(made).permute(0, 3, 1, 2)

    def frames(self, small: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """uint8 [h, w, 3] one by one -> uint8 [H, W, 3], each as soon as it is made."""
        model, state = self.model, None
        for number, frame in enumerate(small):
            if state is None:
                state = model.open(InfVSRParams(height=frame.shape[0], width=frame.shape[1]), 0)
            model.push(state, Chunk("frames", frame[None], number * TICKS, TICKS, 1))
            while model.ready(state):
                yield from model.step([state])[0][0].data
        for chunk in model.finish(state) if state else ():
            yield from chunk.data


@dataclass(frozen=True)
class Row:
    """One upscaler on one source. ms: a frame's CPU time on one thread. holds: gain and steadiness; None: no bar."""

    source: str
    name: str
    psnr: float
    gain: float
    temporal: float
    ms: float
    holds: bool | None


@torch.no_grad()
def rows(source: Source, ours: Ours, peers: Sequence[Peer], places: int) -> list[Row]:
    """The peers are run at the places alone, ours over the whole clip."""
    small = source.small
    at = source.places(places)
    looked = torch.tensor([first + i for first in at for i in range(RUN)])
    truth = source.truth[looked].unflatten(0, (-1, RUN))
    measured = []
    upscalers: list[Peer | Ours] = [*peers, ours]
    for peer in upscalers:
        start = time.process_time()
        if isinstance(peer, Ours):
            made, count, name = peer.upscale(small)[looked], len(small), "ours"
        else:
            made, count, name = _levels(peer.upscale(small[looked].float() / 255)), len(looked), peer.name
        ms = 1000 * (time.process_time() - start) / count
        runs = made.unflatten(0, (-1, RUN))
        measured.append((name, psnr(runs, truth), temporal_error(runs, truth), ms))
    base = measured[0]
    return [
        Row(source.name, name, db, db - base[1], change, ms, _holds(name, db - base[1], change, base[2], source.bar))
        for name, db, change, ms in measured
    ]


def merged(worlds: Sequence[Row]) -> list[Row]:
    """The means over all rendered scenes, a row for each upscaler."""
    count = len({row.source for row in worlds})
    means: list[Row] = []
    for name in dict.fromkeys(row.name for row in worlds):
        mine = [row for row in worlds if row.name == name]
        psnr_, gain, temporal, ms = (
            float(np.mean([getattr(row, figure) for row in mine])) for figure in ("psnr", "gain", "temporal", "ms")
        )
        base = means[0].temporal if means else temporal
        holds = _holds(name, gain, temporal, base, WORLD_BAR)
        means.append(Row(f"tiny world, {count} scenes", name, psnr_, gain, temporal, ms, holds))
    return means


def _holds(name: str, gain: float, change: float, base: float, bar: float) -> bool | None:
    return gain >= bar and change <= base if name == "ours" and bar else None


def _levels(x: Tensor) -> Tensor:
    return (x * 255).round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def semantic(source: Source, ours: Ours, frames: int) -> dict[str, Any]:
    """Cosine of features with the true frame's, over a clip played to and fro for `frames` frames."""
    features, every = Features(), 10
    there = torch.arange(len(source.truth))
    turn = torch.cat([there, there.flip(0)[1:-1]])
    order = turn.repeat(-(-frames // len(turn)))[:frames]
    small = source.small.permute(0, 2, 3, 1).numpy()
    kept = [
        features(torch.from_numpy(frame.copy()).permute(2, 0, 1)[None])
        for frame in islice(ours.frames(small[i] for i in order.tolist()), 0, None, every)
    ]
    looked = order[::every]
    true = features(source.truth)[looked]
    plain = features(_levels(bicubic().upscale(source.small.float() / 255)))[looked]
    cosine = {"ours": _cosine(torch.cat(kept), true), "bicubic": _cosine(plain, true)}
    fifth = max(1, len(looked) // 5)
    return {
        "features": NAME,
        "source": source.name,
        "frames": frames,
        **{f"{name}_mean": float(c.mean()) for name, c in cosine.items()},
        **{f"{name}_first_fifth": float(c[:fifth].mean()) for name, c in cosine.items()},
        **{f"{name}_last_fifth": float(c[-fifth:].mean()) for name, c in cosine.items()},
    }


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b)
