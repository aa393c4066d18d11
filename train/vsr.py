"""Trains the tiny InfVSR: its decoder from the low-resolution frames, then encoder, transformer and guidance with it.

    python -m riverrun.train.vsr --out RUNDIR --part decoder [--minutes 30] [--steps 9000]
    python -m riverrun.train.vsr --out RUNDIR --part restorer [--minutes 15] [--steps 1200]

The first part sees latents of zero. The second goes on from it and sees two chunks at once, so that the look back at
the chunk before is learned too; its loss is taken on a random patch of each clip, all that is decoded (as in the
paper). Resumable like the generator: `vsr-decoder.pt` and `vsr-restorer.pt` in the run's folder. Every 100 steps it
says what is gained over bicubic on clips kept for that, and stops where that is nothing.
"""

from __future__ import annotations

import argparse
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from riverrun.models.super_resolution.decoder import enlarged
from riverrun.train.generator import keep_memory, train
from riverrun.train.quality import psnr
from riverrun.train.resumable import Resumable
from riverrun.train.vsr_data import SCALE, Pool, levels, load_pools, shrunk
from riverrun.train.vsr_model import PARTS, Sizes, TinyVSR, newest


@dataclass(frozen=True)
class Recipe:
    """steps sets the learning rate's schedule: warm-up, then a cosine. size: of the sharp crops. softness: residuals
    below it count as squares (an L1 loss stays at bicubic). steadiness: weight of the change from frame to frame, which
    has a softness of its own: flicker is small, and squares of it would not be noticed."""

    steps: int = 9000
    batch: int = 4
    frames: int = 9
    size: int = 96
    rate: float = 1.5e-3
    warm_up: int = 30
    ema: float = 0.998
    softness: float = 0.1
    steadiness: float = 0.5
    change_softness: float = 0.02
    seed: int = 0

    def rate_at(self, step: int) -> float:
        wave = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.rate * min(1.0, (step + 1) / self.warm_up) * max(0.01, wave)


RESTORER = Recipe(steps=1200, batch=1, frames=21, size=128, rate=5e-4)


class Trainer(Resumable):
    """The first part of a run: `advance` makes a step, `save` and `load` its checkpoint."""

    file = "vsr-decoder.pt"
    model: TinyVSR
    average: TinyVSR

    def __init__(
        self, recipe: Recipe, folder: Path, sizes: Sizes | None = None, pools: tuple[Pool, Pool] | None = None
    ) -> None:
        """pools: what is trained on and what is watched, default the film and the rendered scenes."""
        self.recipe, self.folder, self.step = recipe, folder, 0
        torch.manual_seed(recipe.seed)
        self.model, self.average = (TinyVSR(sizes or Sizes()) for _ in range(2))
        self.average.load_state_dict(self.model.state_dict())
        self.average.requires_grad_(False)
        self.optimiser = torch.optim.AdamW(self.parameters(), betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
        self.pool, watched = pools or load_pools(folder / "data", recipe.seed)
        self.watched = watched.draw(random.Random(7), 12, 9, recipe.size)

    @property
    def steps(self) -> int:
        return self.recipe.steps

    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.decoder.parameters())

    def advance(self) -> float:
        """One optimiser step; its loss."""
        recipe = self.recipe
        rng = random.Random(recipe.seed * 1_000_003 + self.step)
        loss = self.loss(self.pool.draw(rng, recipe.batch, recipe.frames, recipe.size), rng)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), 0.5)
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate_at(self.step)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.follow(recipe.ema)
        self.step += 1
        if self.step % 100 == 0:
            self.watch()
        return loss.item()

    def loss(self, sharp: Tensor, rng: random.Random) -> Tensor:
        small, truth = levels(shrunk(sharp)), levels(sharp)
        with torch.autocast("cpu", torch.bfloat16):
            ours = self.restored(self.model, small)
        return pixel_loss(ours, truth, self.recipe)

    def restored(self, model: TinyVSR, small: Tensor) -> Tensor:
        """(B, T, 3, h, w) -> (B, T, 3, H, W), both in [-1, 1]; here with latents of zero."""
        b, t, _, h, w = small.shape
        z = small.new_zeros(b, (t + 3) // 4, model.decoder.config.z_dim, h // 2, w // 2)
        return model.decoder(z, small)

    @torch.no_grad()
    def watch(self) -> None:
        """Says what the averaged weights gain. Raises SystemExit where the run is stuck at bicubic."""
        small = shrunk(self.watched)
        x = levels(small)
        features: list[Tensor] = []
        hook = self.average.decoder.head.register_forward_pre_hook(lambda _, given: features.append(given[0]))
        ours = self.restored(self.average, x)
        hook.remove()
        bicubic = enlarged(x, self.average.decoder.config.scale)
        gain = psnr(_as_pixels(ours), self.watched) - psnr(_as_pixels(bicubic), self.watched)
        share = (ours - bicubic).abs().mean() / (levels(self.watched) - bicubic).abs().mean()
        std = features[0].float().std((-2, -1)).mean()
        print(f"  gain {gain:+.2f} dB, |r| {share:.2f} of the wanted, last features' std {std:.3f}", flush=True)
        if self.step == 200 and gain < 0.3:
            raise SystemExit(f"stuck: {gain:+.2f} dB after 200 steps")


class RestorerTrainer(Trainer):
    """The second part: all weights."""

    file = "vsr-restorer.pt"
    patch = 96  # pixels a side of what is decoded

    def __init__(
        self, recipe: Recipe, folder: Path, sizes: Sizes | None = None, pools: tuple[Pool, Pool] | None = None
    ) -> None:
        super().__init__(recipe, folder, sizes, pools)
        for model in (self.model, self.average):
            model.load_state_dict(newest(folder, ("decoder",)))

    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def loss(self, sharp: Tensor, rng: random.Random) -> Tensor:
        small, truth = levels(shrunk(sharp)), levels(sharp)
        factor = self.model.decoder.config.spatial_factor
        top, left = (factor * rng.randint(0, (side - self.patch) // factor) for side in sharp.shape[-2:])
        with torch.autocast("cpu", torch.bfloat16):
            latents = self.model.latents(small)
            patch = [
                _cut(x, top, left, self.patch, each) for x, each in ((latents, factor), (small, SCALE), (truth, 1))
            ]
            ours = self.model.decoder(patch[0], patch[1])
        return pixel_loss(ours, patch[2], self.recipe)

    def restored(self, model: TinyVSR, small: Tensor) -> Tensor:
        return model.decoder(model.latents(small), small)


def _cut(x: Tensor, top: int, left: int, size: int, pixels: int) -> Tensor:
    """The part of x, whose values stand for `pixels` pixels a side, that shows size x size pixels."""
    top, left, size = top // pixels, left // pixels, size // pixels
    return x[..., top : top + size, left : left + size]


def pixel_loss(ours: Tensor, truth: Tensor, recipe: Recipe) -> Tensor:
    """Of the pictures, and of what changes from one to the next."""
    apart = ours.float() - truth
    return _soft(apart, recipe.softness) + recipe.steadiness * _soft(apart.diff(dim=1), recipe.change_softness)


def _soft(apart: Tensor, softness: float) -> Tensor:
    return (apart.square() + softness**2).sqrt().mean()


def _as_pixels(x: Tensor) -> Tensor:
    return ((x + 1) * 127.5).clamp(0, 255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop this call after so long")
    parser.add_argument("--steps", type=int, help="default: the recipe's")
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    kind, recipe = (Trainer, Recipe()) if args.part == "decoder" else (RestorerTrainer, RESTORER)
    trainer = kind(replace(recipe, steps=args.steps or recipe.steps), args.out)
    print("goes on" if trainer.load() else "starts", "at step", trainer.step, flush=True)
    train(trainer, args.minutes, 100)


if __name__ == "__main__":
    main()
