"""Clips without a truth, as MovieLQ's: upscaled from folders of frames, and written to others for whoever measures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from riverrun.bench.vsr_features import Features
from riverrun.bench.vsr_quality import Ours
from riverrun.train.clips import Absent, folder_clips, picture


@dataclass(frozen=True)
class Movie:
    """ms: CPU time a frame. cosine: of an output's features with its input's, over every 10th frame; None: no package.
    steady: of an output's features with those of the clip's first output."""

    name: str
    frames: int
    width: int
    height: int
    ms: float
    cosine: float | None
    steady: float | None


def movies(root: Path, ours: Ours, to: Path | None, most: int | None = None) -> Iterator[Movie]:
    """most: frames of each clip."""
    try:
        features = Features()
    except Absent as error:
        print(f"no features: {error}", flush=True)
        features = None
    for name, files in folder_clips(root):
        yield _movie(name, files[:most], ours, to, features)


@torch.no_grad()
def _movie(name: str, files: list[Path], ours: Ours, to: Path | None, features: Features | None) -> Movie:
    seen: list[torch.Tensor] = []
    start, apart = time.process_time(), 0.0  # apart: time that is not the upscaler's
    size = (0, 0)
    for number, pixels in enumerate(ours.frames(picture(file) for file in files)):
        began = time.process_time()
        size = (pixels.shape[1], pixels.shape[0])
        if features is not None and number % 10 == 0:
            pair = [torch.tensor(p).permute(2, 0, 1)[None] for p in (pixels, picture(files[number]))]
            seen.append(torch.cat([features(p) for p in pair]))
        if to is not None:
            _write(pixels, to / name / f"{files[number].stem}.png")
        apart += time.process_time() - began
    ms = 1000 * (time.process_time() - start - apart) / len(files)
    if not seen:
        return Movie(name, len(files), *size, ms, None, None)
    pairs = torch.stack(seen)  # (N, 2, features)
    cosines = [F.cosine_similarity(pairs[:, 0], other).mean().item() for other in (pairs[:, 1], pairs[:1, 0])]
    return Movie(name, len(files), *size, ms, *cosines)


def _write(pixels: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
