"""Distils a trained generator to the four steps it is served with.

    python -m riverrun.train.distil --out RUNDIR [--steps 300] [--minutes 12]

At each served noise level the student's clean prediction learns the end of the teacher's many-step ODE from the same
noisy block, in the same teacher-forced context. The plain model predicts the *mean* of what the block could be, so
its last step leaves a blur; the student predicts one sharp end. The text encoder stays as it was. Resumable
(``distilled.pt``).
"""

from __future__ import annotations

import argparse
import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from riverrun.models.wan.schedule import FlowSchedule, shifted
from riverrun.train.generator import (
    Batch,
    Generator,
    keep_memory,
    noisy_context,
    sample_batch,
    train,
)
from riverrun.train.generator import Recipe as BaseRecipe
from riverrun.train.generator import Trainer as BaseTrainer
from riverrun.train.resumable import Resumable
from riverrun.train.teacher_forcing import teacher_forced_flow

SERVED_STEPS = (1000, 750, 500, 250)
SERVED_SHIFT = 5.0


@dataclass(frozen=True)
class Recipe:
    """``ode_steps`` Euler steps of the teacher, spaced as ``ode_shift`` says; the rate falls linearly to 5 %."""

    steps: int = 300
    batch: int = 12
    rate: float = 6e-4
    ema: float = 0.98
    ode_steps: int = 6
    ode_shift: float = 3.0
    seed: int = 1

    def rate_at(self, step: int) -> float:
        return self.rate * min((step + 1) / 20, max(0.05, 1 - step / self.steps))


class Distiller(Resumable):
    """One run: teacher and starting point are the averaged weights of the generator's checkpoint."""

    file = "distilled.pt"
    model: Generator
    average: Generator

    def __init__(self, recipe: Recipe, base: BaseRecipe, folder: Path, compiled: bool = False):
        self.recipe, self.folder, self.step = recipe, folder, 0
        trained = BaseTrainer(base, folder)
        if not trained.load():
            raise FileNotFoundError(f"{folder} holds no checkpoint.pt: train the generator first")
        self.base, self.clips, self.turn = base, trained.clips, trained.turn
        self.teacher = trained.average.requires_grad_(False)
        self.model, self.average = Generator(base.shape), Generator(base.shape).requires_grad_(False)
        for copy in (self.model, self.average):
            copy.load_state_dict(self.teacher.state_dict())
        self.flow = torch.compile(teacher_forced_flow) if compiled else teacher_forced_flow
        self.optimiser = torch.optim.AdamW(self.model.dit.parameters(), betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.levels = FlowSchedule.shifted(SERVED_SHIFT).warp(SERVED_STEPS) / 1000  # (4,)

    @property
    def steps(self) -> int:
        return self.recipe.steps

    def advance(self) -> float:
        """One optimiser step; its loss."""
        rng = random.Random((self.recipe.seed + 77) * 1_000_003 + self.step)
        draws = torch.Generator().manual_seed(rng.getrandbits(62))
        base = BaseRecipe(batch=self.recipe.batch, switches=self.base.switches)
        loss = self.loss(sample_batch(self.clips, base, rng), draws)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.dit.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate_at(self.step)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.follow(self.recipe.ema)
        self.step += 1
        return loss.item()

    def loss(self, batch: Batch, draws: torch.Generator) -> Tensor:
        """Mean squared error of the clean prediction against the teacher's, every block at a served level."""
        b, kn = batch.target.shape[:2]
        sigma = self.levels[torch.randint(len(self.levels), (b, kn), generator=draws)]
        noisy = torch.lerp(batch.target, torch.randn(batch.target.shape, generator=draws), _spread(sigma))
        context = noisy_context(batch.clean, draws)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            text = self.teacher.text([*batch.captions, *batch.sink_captions]).float()
            goal = self._ode(context, noisy, sigma, text)
        with torch.autocast("cpu", torch.bfloat16):
            flow = self.flow(self.model.dit, context, noisy, sigma, text[:b], text[b:], self.turn)
        return (noisy - _spread(sigma) * flow.float() - goal).square().mean()

    def _ode(self, context: Tensor, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        """The teacher's clean blocks: Euler from each block's own level to 0."""
        shift, steps, b = self.recipe.ode_shift, self.recipe.ode_steps, len(x)
        unshifted = sigma / (shift - (shift - 1) * sigma)
        for i in range(steps):
            now, then = (shifted(unshifted * (1 - j / steps), shift) for j in (i, i + 1))
            flow = self.flow(self.teacher.dit, context, x, now, text[:b], text[b:], self.turn)
            x = x + _spread(then - now) * flow.float()
        return x


def _spread(sigma: Tensor) -> Tensor:
    return sigma[..., None, None, None, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the generator's run folder")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop this call after so long")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--shards", type=int, default=BaseRecipe.shards)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    recipe, base = Recipe(steps=args.steps), BaseRecipe(shards=args.shards)
    distiller = Distiller(recipe, base, args.out, compiled=not args.no_compile)
    print("goes on" if distiller.load() else "starts", "at step", distiller.step, flush=True)
    train(distiller, args.minutes, say_every=20)


if __name__ == "__main__":
    main()
