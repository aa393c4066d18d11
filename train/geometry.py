"""Trains the tiny VGGT of the tiny world: flat pictures, then rooms, then the world's own scenes, with exact truth.

    python -m riverrun.train.geometry --out RUNDIR [--minutes 60] [--steps 10200]

Resumable: a checkpoint is written every two minutes and at the end of a call; every draw is a function of seed and
step. Each 200 steps a line tells the errors on unseen scenes beside those of the answer "the camera does not move"
(log.jsonl in RUNDIR). To hold it: kill -STOP with the number in RUNDIR/pid; to go on: kill -CONT.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from riverrun.models.geometry.vggt import VGGT, VGGTConfig
from riverrun.train.generator import keep_memory, train
from riverrun.train.geometry_clip import watch
from riverrun.train.geometry_flat import pairs
from riverrun.train.geometry_frames import Batch, Clip, batch_of, caption_clip, stroll_clip, yard_clip
from riverrun.train.geometry_loss import dense_loss, pose_loss
from riverrun.train.geometry_measure import Score, score
from riverrun.train.geometry_rooms import room
from riverrun.train.geometry_start import FIELD_OF_VIEW, TINY, initialise
from riverrun.train.resumable import Resumable

FRAMES, LONG = 10, 24  # of a clip
CANVASES, HELD_OUT_CANVASES = range(400), range(10_000, 10_100)
HELD_OUT = 1_000_000  # numbers of clips for measuring start here
LONG_KINDS = ("orbits", "strolls")
KINDS = ("flat", "rooms", "captions", "yards", *LONG_KINDS)
LENGTHS = {"rooms": (2, 2, 2, 4), "captions": (2, 2, 3, 4, 6, 10), "yards": (2, 2, 3, 4, 6, 10),
           "orbits": (8, 8, 16), "strolls": (8, 8, 16)}  # fmt: skip


@dataclass(frozen=True)
class Lesson:
    """Kinds of batches by share, up to and without step `until`."""

    until: int
    shares: Mapping[str, float]


STREAMS = 7_600  # the step from which clips are long and the rate is up again
LESSONS = (
    Lesson(800, {"flat": 1.0}),
    Lesson(2000, {"flat": 0.2, "rooms": 0.8}),
    Lesson(STREAMS, {"flat": 0.1, "rooms": 0.25, "captions": 0.3, "yards": 0.35}),
    Lesson(10**9, {"flat": 0.05, "rooms": 0.05, "captions": 0.1, "yards": 0.05, "orbits": 0.5, "strolls": 0.25}),
)


@dataclass(frozen=True)
class Recipe:
    """All that a run depends on. The rate warms up, then falls evenly to 3 %; at STREAMS it does so again, from a
    part of its height."""

    shape: VGGTConfig = TINY
    lessons: tuple[Lesson, ...] = LESSONS
    steps: int = 10_200
    frames: int = 32  # of a batch
    rate: float = 6e-4  # of the aggregator; heads have `heads` times as much, see `_groups`
    again: float = 0.6  # of the rate, at STREAMS
    heads: float = 2.0
    warm_up: int = 50
    ema: float = 0.998
    pool: int = 300  # clips of a kind that are in use at a time
    long_pool: int = 100  # of the long kinds
    renewal: float = 0.25  # new clips for each step that uses their kind
    weights: Mapping[str, float] = field(default_factory=lambda: {"pose": 1.0, "depth": 0.3, "points": 0.3})
    seed: int = 0

    def rate_at(self, step: int) -> float:
        end = min(self.steps, STREAMS)
        if step < end:
            return self.rate * min((step + 1) / self.warm_up, max(0.03, 1 - step / end))
        share = (step - end) / max(1, self.steps - end)
        return self.rate * self.again * min((step - end + 1) / self.warm_up, max(0.03 / self.again, 1 - share))

    def shares_at(self, step: int) -> Mapping[str, float]:
        return next(lesson.shares for lesson in self.lessons if step < lesson.until)


class Trainer(Resumable):
    """One run: `advance` makes a step, `save` and `load` its checkpoint."""

    file = "checkpoint.pt"
    model: VGGT
    average: VGGT

    def __init__(self, recipe: Recipe, folder: Path, say_every: int = 200):
        self.recipe, self.folder, self.step, self.say_every = recipe, folder, 0, say_every
        torch.manual_seed(recipe.seed)
        self.model, self.average = VGGT(recipe.shape), VGGT(recipe.shape).requires_grad_(False)
        initialise(self.model)
        self.average.load_state_dict(self.model.state_dict())
        self.optimiser = torch.optim.AdamW(_groups(self.model, recipe), betas=(0.9, 0.95), weight_decay=0.01)
        self.losses: dict[str, list[float]] = {}

    @property
    def steps(self) -> int:
        return self.recipe.steps

    def advance(self) -> float:
        """One optimiser step; its loss."""
        recipe = self.recipe
        if self.step % self.say_every == 0:
            self.say()
        rng = random.Random(recipe.seed * 1_000_003 + self.step)
        torch.manual_seed(rng.getrandbits(62))
        shares = recipe.shares_at(self.step)
        kind = rng.choices(list(shares), list(shares.values()))[0]
        self.model.train()
        parts = self.loss(sample(kind, recipe, self.step, rng), rng)
        loss = sum((recipe.weights[name] * part for name, part in parts.items()), torch.zeros(()))
        loss.backward()
        norms = []
        for group in self.optimiser.param_groups:
            norms.append(nn.utils.clip_grad_norm_(group["params"], 1.0))
            group["lr"] = recipe.rate_at(self.step) * group["factor"]
        if all(norm.isfinite() for norm in norms):  # a clip with next to no depth in it may not cost the run
            self.optimiser.step()
        self.optimiser.zero_grad()
        self.follow(recipe.ema)
        self.step += 1
        for name, part in parts.items():
            self.losses.setdefault(f"{kind}.{name}", []).append(part.detach().item())
        return loss.detach().item()

    def loss(self, batch: Batch, rng: random.Random) -> dict[str, Tensor]:
        is_long = batch.images.shape[1] > 2
        seen = watch(self.model, _shown(batch.images), forgetting=rng.choice((0.0, 0.5, 0.8)) if is_long else 0.0)
        parts = {"pose": pose_loss(seen.poses, batch, FIELD_OF_VIEW)}
        if batch.depth is not None:
            frame = rng.randrange(batch.images.shape[1])
            parts["depth"], parts["points"] = dense_loss(self.model, seen, batch, frame)
        return parts

    def say(self) -> None:
        """Adds a line to log.jsonl and prints it short."""
        kinds = [kind for kind in KINDS if kind in self.recipe.shares_at(self.step)]
        scores = {kind: self.measure(kind) for kind in kinds}
        losses = {name: round(sum(found) / len(found), 4) for name, found in self.losses.items()}
        self.losses = {}
        line = {"step": self.step, "time": round(time.time()), "loss": losses}
        line["unseen"] = {kind: found.figures() for kind, found in scores.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(f"step {self.step} " + " | ".join(f"{kind} {found}" for kind, found in scores.items()), flush=True)

    def measure(self, kind: str) -> Score:
        return score(self.average, held_out(kind, self.recipe.shape.image))

    def load(self) -> bool:
        """The groups' factors are the recipe's, also where the checkpoint is of an older one."""
        factors = [group["factor"] for group in self.optimiser.param_groups]
        is_there = super().load()
        for group, factor in zip(self.optimiser.param_groups, factors, strict=True):
            group["factor"] = factor
        return is_there


def _groups(model: VGGT, recipe: Recipe) -> list[dict[str, object]]:
    """What is clipped, and has its rate, by itself. The last pose layer's bias is added to every pose of every batch:
    its gradient is 50 times the others' and its steps are noise in all answers."""
    last = model.camera_head.pose_branch.fc2
    own = {id(p) for p in last.parameters()}
    heads = [p for part in (model.camera_head, model.depth_head, model.point_head) for p in part.parameters()]
    return [
        {"params": list(model.aggregator.parameters()), "factor": 1.0},
        {"params": [p for p in heads if id(p) not in own], "factor": recipe.heads},
        {"params": [last.weight], "factor": 0.3 * recipe.heads},
        {"params": [last.bias], "factor": 0.01 * recipe.heads},
    ]


def _shown(images: Tensor) -> Tensor:
    """Brightness and contrast of each clip by lot, and a little noise: not what tells a pose."""
    count = len(images)
    gain, shift = 1 + 0.15 * torch.randn(count, 1, 1, 1, 1), 0.05 * torch.randn(count, 1, 1, 1, 1)
    return (images * gain + shift + 0.01 * torch.randn_like(images)).clamp(0, 1)


def sample(kind: str, recipe: Recipe, step: int, rng: random.Random) -> Batch:
    """A batch of one kind; all its clips have as many frames, in an order by lot."""
    side = recipe.shape.image
    if kind == "flat":
        images, extrinsics = pairs(recipe.frames // 2, rng, CANVASES, side, FIELD_OF_VIEW)
        return Batch(images, torch.stack([_identity(extrinsics), extrinsics], dim=1))
    length = rng.choice(LENGTHS[kind])
    first, is_long = int(recipe.renewal * step), kind in LONG_KINDS
    pool = recipe.long_pool if is_long else recipe.pool
    clips = [clip(kind, first + rng.randrange(pool), side) for _ in range(recipe.frames // length)]
    return batch_of(clips, [_order(length, LONG if is_long else FRAMES, is_long, rng) for _ in clips], FIELD_OF_VIEW)


def _identity(extrinsics: Tensor) -> Tensor:
    return torch.eye(4)[:3].expand_as(extrinsics)


def _order(length: int, frames: int, is_sorted: bool, rng: random.Random) -> list[int]:
    chosen = rng.sample(range(frames), length)
    if is_sorted or rng.random() < 0.7:
        chosen.sort(reverse=rng.random() < 0.5)
    return chosen


@lru_cache(maxsize=1000)
def clip(kind: str, number: int, side: int) -> Clip:
    """Clip `number` of a kind; numbers from HELD_OUT on show objects and canvases that are never trained on."""
    is_unseen = number >= HELD_OUT
    if kind == "rooms":
        return room(number, HELD_OUT_CANVASES if is_unseen else CANVASES, FRAMES, side, FIELD_OF_VIEW)
    if kind == "orbits":
        return caption_clip(number, LONG, side, is_unseen, smear=not is_unseen)
    if kind == "strolls":
        return stroll_clip(number, LONG, side, is_unseen)
    make = caption_clip if kind == "captions" else yard_clip
    return make(number, FRAMES, side, is_unseen)


@lru_cache(maxsize=8)
def held_out(kind: str, side: int, count: int = 48) -> Batch:
    """Pairs for measuring: flat 4 to 20 degrees, rooms and yards over the whole clip, captions 8 frames apart."""
    if kind == "flat":
        images, extrinsics = pairs(count, random.Random(HELD_OUT), HELD_OUT_CANVASES, side, FIELD_OF_VIEW)
        return Batch(images, torch.stack([_identity(extrinsics), extrinsics], dim=1))
    if kind in LONG_KINDS:
        clips = [clip(kind, HELD_OUT + n, side) for n in range(count // 3)]
        return batch_of(clips, [range(LONG)] * len(clips), FIELD_OF_VIEW)
    numbers = range(HELD_OUT, HELD_OUT + count)
    if kind == "captions":
        return batch_of([caption_clip(n, 2, side, True, gap=8) for n in numbers], [[0, 1]] * count, FIELD_OF_VIEW)
    return batch_of([clip(kind, n, side) for n in numbers], [[0, FRAMES - 1]] * count, FIELD_OF_VIEW)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop this call after so long")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "pid").write_text(f"{os.getpid()}\n")
    trainer = Trainer(Recipe(steps=args.steps), args.out)
    print("goes on" if trainer.load() else "starts", "at step", trainer.step, flush=True)
    train(trainer, args.minutes, say_every=100)
    trainer.say()


if __name__ == "__main__":
    main()
