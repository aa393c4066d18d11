"""Trains the tiny Wan VAE against the linear codec: a decoder of its latents, an encoder into them.

    python -m riverrun.train.vae --out RUNDIR --part decoder [--minutes 25]
    python -m riverrun.train.vae --out RUNDIR --part encoder [--minutes 10]

The two parts share nothing, so they can run side by side, and the generator needs neither. Resumable like the
generator: ``vae-decoder.pt`` and ``vae-encoder.pt`` in the run's folder.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from riverrun.models.wan.vae import VAEConfig, WanVAE
from riverrun.train.codec import COMPONENTS, PatchCodec
from riverrun.train.data import load_codec, store
from riverrun.train.generator import keep_memory
from riverrun.train.scenes import sample_scene
from riverrun.train.world import pictures

OBJECT_CHROMA = 0.28  # of the pixels that count more
Part = Literal["decoder", "encoder"]


@dataclass(frozen=True)
class Phase:
    """``steps`` of ``batch`` clips of ``frames`` frames; the rate falls as a cosine from ``rate`` to ``last``."""

    steps: int
    batch: int
    frames: int
    rate: float
    last: float

    def rate_at(self, step: int) -> float:
        wave = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return min(1.0, (step + 1) / 30) * (self.last + (self.rate - self.last) * wave)


# With causal inflation the model that draws single pictures also draws clips (each picture held for four frames), so
# the decoder begins with pictures, which are cheap, and then learns motion at a lower rate.
PHASES: dict[Part, tuple[Phase, ...]] = {
    "decoder": (Phase(700, 12, 1, 3e-3, 8e-4), Phase(2300, 3, 9, 8e-4, 2e-5)),
    "encoder": (Phase(200, 12, 1, 3e-3, 1.5e-3), Phase(600, 3, 9, 1.5e-3, 2e-5)),
}


@dataclass(frozen=True)
class Recipe:
    """Pool of ``scenes`` clips of 17 frames, pictures of ``size``; latents get ``noise`` before they are decoded."""

    scenes: int = 800
    size: int = 64
    noise: float = 0.05
    object_weight: float = 2.0  # added weight of saturated pixels: the object's colour counts
    seed: int = 0


def tiny_config(codec: PatchCodec) -> VAEConfig:
    """Wan's VAE at an eighth of the width, one residual block a stage, with the codec's scale as normalisation."""
    scale = tuple(round(float(s), 6) for s in codec.scale)
    return VAEConfig(16, COMPONENTS, (1, 2, 4, 4), 1, (False, True, True), (0.0,) * COMPONENTS, scale)


class Trainer:
    """One part of one run."""

    def __init__(self, recipe: Recipe, folder: Path, part: Part, phases: tuple[Phase, ...] | None = None):
        self.recipe, self.folder, self.part, self.step = recipe, folder, part, 0
        self.phases = PHASES[part] if phases is None else phases
        self.codec = load_codec(folder / "data", recipe.seed, recipe.size)
        torch.manual_seed(recipe.seed)
        self.vae = WanVAE(tiny_config(self.codec))
        inflate(self.vae)
        self.trained = half(self.vae, part)
        self.optimiser = torch.optim.AdamW(self.trained.parameters(), betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
        self.pool = _pool(recipe, folder / "data")

    @property
    def total(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def advance(self) -> float:
        """One optimiser step; its loss."""
        phase, step = self._phase()
        rng = random.Random(self.recipe.seed * 1_000_003 + self.step)
        clip = self._sample(phase, rng)
        with torch.autocast("cpu", torch.bfloat16):
            loss = self._decoder_loss(clip, rng) if self.part == "decoder" else self._encoder_loss(clip)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = phase.rate_at(step)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        return loss.item()

    def _phase(self) -> tuple[Phase, int]:
        step = self.step
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        raise ValueError(f"the recipe has {self.total} steps, all done")

    def _sample(self, phase: Phase, rng: random.Random) -> Tensor:
        clips = []
        for _ in range(phase.batch):
            clip = self.pool[rng.randrange(len(self.pool))]
            start = rng.randint(0, len(clip) - phase.frames)
            clips.append(clip[start : start + phase.frames])
        return torch.stack(clips).float() / 255  # (B, T, 3, H, W)

    def _decoder_loss(self, clip: Tensor, rng: random.Random) -> Tensor:
        latents = self.codec.encode(clip)
        draws = torch.Generator().manual_seed(rng.getrandbits(62))
        noise = torch.randn(latents.shape, generator=draws) * self.recipe.noise
        difference = (self.vae.decode_clip(latents + noise).float() + 1) / 2 - clip
        chroma = clip.amax(2, keepdim=True) - clip.amin(2, keepdim=True)
        weight = 1 + self.recipe.object_weight * (chroma > OBJECT_CHROMA)
        return (weight * (difference.abs() + 4 * difference.square())).mean()

    def _encoder_loss(self, clip: Tensor) -> Tensor:
        return (self.vae.encode_clip(clip * 2 - 1).float() - self.codec.encode(clip)).square().mean()

    def save(self) -> None:
        state = {"step": self.step, "weights": self.trained.state_dict(), "optimiser": self.optimiser.state_dict()}
        store(state, self._path)

    def load(self) -> bool:
        """Goes on from the folder's checkpoint, if there is one."""
        if not self._path.exists():
            return False
        state = torch.load(self._path, weights_only=True)
        self.step = state["step"]
        self.trained.load_state_dict(state["weights"])
        self.optimiser.load_state_dict(state["optimiser"])
        return True

    @property
    def _path(self) -> Path:
        return self.folder / f"vae-{self.part}.pt"


def half(vae: WanVAE, part: Part) -> nn.ModuleDict:
    """The modules of one direction, under the names they have in the whole."""
    names = ("conv2", "decoder") if part == "decoder" else ("encoder", "conv1")
    return nn.ModuleDict({name: vae.get_submodule(name) for name in names})


@torch.no_grad()
def inflate(vae: WanVAE) -> None:
    """Causal inflation: at the start only the newest tap of a 3x3x3 convolution speaks, time is halved by averaging
    and doubled by repeating, and latents enter the decoder at their normalised size."""
    for name, module in vae.named_modules():
        if not isinstance(module, nn.Conv3d):
            continue
        kernel = module.weight
        if name.endswith("time_conv"):
            identity = torch.eye(kernel.shape[1])
            kernel.zero_()
            cast(Tensor, module.bias).zero_()
            if kernel.shape[0] == 2 * kernel.shape[1]:
                kernel[:, :, -1, 0, 0] = torch.cat([identity, identity])
            else:
                kernel[:, :, -2:, 0, 0] = 0.5 * identity[:, :, None]
        elif kernel.shape[2] == 3:
            nn.init.kaiming_normal_(kernel[:, :, -1], nonlinearity="linear")
            kernel[:, :, :-1] = 0
            cast(Tensor, module.bias).zero_()
    vae.conv2.weight.copy_(torch.diag(1 / torch.tensor(vae.config.std))[:, :, None, None, None])
    cast(Tensor, vae.conv2.bias).zero_()


def _pool(recipe: Recipe, folder: Path) -> Tensor:
    """uint8 [scenes, 17, 3, H, W], rendered once and kept."""
    path = folder / "clips.pt"
    if not path.exists():
        rng = random.Random(recipe.seed * 1_000_003 + 29)
        clips = []
        for _ in range(recipe.scenes):
            start = rng.randint(0, 600)
            clip = pictures(sample_scene(rng), range(start, start + 17), recipe.size, recipe.size)
            clips.append((clip * 255).round().to(torch.uint8))
        store(torch.stack(clips), path)
    return torch.load(path, weights_only=True)


def train(trainer: Trainer, minutes: float = math.inf) -> None:
    """Steps until the recipe's end or the time is up, with a checkpoint every two minutes and at the end."""
    start = saved = time.monotonic()
    losses: list[float] = []
    while trainer.step < trainer.total and time.monotonic() - start < 60 * minutes:
        losses.append(trainer.advance())
        if trainer.step % 50 == 0:
            elapsed = time.monotonic() - start
            print(f"step {trainer.step} loss {sum(losses) / len(losses):.5f} minutes {elapsed / 60:.1f}", flush=True)
            losses.clear()
        if time.monotonic() - saved > 120:
            trainer.save()
            saved = time.monotonic()
    trainer.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--part", choices=("decoder", "encoder"), required=True)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop this call after so long")
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    trainer = Trainer(Recipe(), args.out, args.part)
    print("goes on" if trainer.load() else "starts", "at step", trainer.step, flush=True)
    train(trainer, args.minutes)


if __name__ == "__main__":
    main()
