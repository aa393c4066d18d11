"""Training clips as latents, in shards on disk: a pure function of (seed, shard number), rendered when first asked for.

A clip is 12 latents: its first block of 3 (the future sink) and three blocks that follow on or lie anywhere later.
Clips come in pairs (2n, 2n + 1) filmed by the same camera at the same times: two sides of a prompt switch.

    python -m riverrun.train.data --out RUNDIR --shards 8      # render ahead of the trainer
"""

from __future__ import annotations

import argparse
import os
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from riverrun.train.codec import TIME, PatchCodec
from riverrun.train.scenes import Scene, sample_scene, twin
from riverrun.train.world import pictures

BLOCK, BLOCKS = 3, 4
LATEST_BLOCK = 60  # later blocks are drawn from the first 60 of a stream (720 frames)
FIT_CLIPS = 320


@dataclass(frozen=True)
class Clips:
    """``scenes[i]`` was filmed into ``latents[i]``, bfloat16 [12, 16, h, w]."""

    scenes: tuple[Scene, ...]
    latents: Tensor


def load_codec(folder: Path, seed: int = 0, size: int = 64) -> PatchCodec:
    """The codec of a run, fitted on scenes of its own and stored at first use."""
    path = folder / "codec.pt"
    if not path.exists():
        rng = random.Random(seed * 1_000_003 + 17)
        scenes = [sample_scene(rng) for _ in range(FIT_CLIPS)]
        clips = [pictures(scene, [start + i for i in range(TIME)], size, size) for scene in scenes for start in (0, 40)]
        codec = PatchCodec.fit(torch.stack(clips))
        store({"mean": codec.mean, "basis": codec.basis, "scale": codec.scale}, path)
    return PatchCodec(**torch.load(path, weights_only=True))


def load_shard(folder: Path, number: int, clips: int = 256, seed: int = 0, size: int = 64) -> Clips:
    """Shard ``number`` of a run: read from disk, or rendered (0.1 s a clip) and written there."""
    scenes, starts = _plan(number, clips, seed)
    path = folder / f"shard-{number:04d}.pt"
    if not path.exists():
        codec = load_codec(folder, seed, size)
        latents = [film(codec, scene, start, size) for scene, start in zip(scenes, starts, strict=True)]
        store(torch.stack(latents).bfloat16(), path)
    return Clips(tuple(scenes), torch.load(path, weights_only=True))


def film(codec: PatchCodec, scene: Scene, later: int, size: int = 64) -> Tensor:
    """Latents of block 0 and of the blocks ``later``, ``later`` + 1, ``later`` + 2: float32 [12, 16, h, w]."""
    first = TIME * (BLOCK - 1) + 1
    start = first + TIME * BLOCK * (later - 1)
    times = [*range(first), *range(start, start + TIME * BLOCK * (BLOCKS - 1))]
    clip = pictures(scene, times, size, size)[None]
    return torch.cat([codec.encode(clip[:, :first]), codec.encode_later(clip[:, first:])], dim=1)[0]


def _plan(number: int, clips: int, seed: int) -> tuple[list[Scene], list[int]]:
    rng = random.Random((seed * 1_000_003 + number) * 7919 + 5)
    scenes, starts = [], []
    for _ in range(clips // 2):
        scene = sample_scene(rng)
        start = 1 if rng.random() < 0.45 else rng.randint(2, LATEST_BLOCK)
        scenes += [scene, twin(rng, scene)]
        starts += [start, start]
    return scenes, starts


def store(value: object, path: Path) -> None:
    """Writes a file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    torch.save(value, part)
    part.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the run's folder; shards go to its data/")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for number in range(args.first, args.first + args.shards):
        load_shard(args.out / "data", number)
        print(f"shard {number}", flush=True)


if __name__ == "__main__":
    main()
