"""Trains the tiny LongLive generator: causal DiT and text encoder together, by teacher forcing on the tiny world.

    python -m riverrun.train.generator --out RUNDIR [--minutes 60] [--steps 4300]

Resumable: a checkpoint is written every two minutes and at the end of a call; the next call goes on from it, and ends
with the same weights as one uninterrupted run would (every draw is a function of seed and step).
"""

from __future__ import annotations

import argparse
import ctypes
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from riverrun.models.wan.dit import WanConfig, WanModel
from riverrun.train.captions import TEXT_LEN, build_tokenizer, caption, paraphrase
from riverrun.train.codec import SPACE
from riverrun.train.data import BLOCK, BLOCKS, Clips, load_shard
from riverrun.train.resumable import Resumable
from riverrun.train.scenes import Scene
from riverrun.train.teacher_forcing import initialise, slot_turn, teacher_forced_flow

TINY = WanConfig(
    dim=192, ffn_dim=512, num_heads=6, num_layers=5, in_dim=16, out_dim=16, freq_dim=256, text_dim=64, text_len=TEXT_LEN
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """All that a run depends on. ``steps`` sets the learning-rate schedule: warm-up, flat, then linear to 2 %."""

    shape: WanConfig = TINY
    steps: int = 4300
    batch: int = 16
    shards: int = 8
    shard_clips: int = 256
    size: int = 64
    rate: float = 2e-3
    warm_up: int = 100
    flat: float = 0.5
    ema: float = 0.999
    shift: float = 5.0
    switches: float = 0.3  # share of samples whose context shows the twin scene: a prompt switch
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Learning rate of step ``step``."""
        decay = (1 - step / self.steps) / (1 - self.flat)
        return self.rate * min(1.0, (step + 1) / self.warm_up, max(0.02, decay))


class TextEncoder(nn.Module):
    """UMT5 encoder over token ids; rows past the end of a prompt are zeros (wan_base.md §4)."""

    def __init__(self, tokenizer: Tokenizer, dim: int):
        super().__init__()
        config = UMT5Config(
            vocab_size=tokenizer.get_vocab_size(),
            d_model=dim,
            d_kv=16,
            d_ff=2 * dim,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
        self.umt5 = UMT5EncoderModel(config)
        self.tokenizer = tokenizer

    def forward(self, texts: Sequence[str]) -> Tensor:
        """float32 [B, text_len, dim]."""
        encodings = self.tokenizer.encode_batch(list(texts))
        ids = torch.tensor([e.ids for e in encodings])
        mask = torch.tensor([e.attention_mask for e in encodings])
        return self.umt5(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]


@dataclass(frozen=True)
class Batch:
    """clean [B, 3, F, C, h, w] context; target [B, 4, F, C, h, w]; captions of the targets and of clean block 0."""

    clean: Tensor
    target: Tensor
    captions: list[str]
    sink_captions: list[str]


class Generator(nn.Module):
    """What is trained: the DiT and its text encoder."""

    def __init__(self, shape: WanConfig):
        super().__init__()
        self.dit = WanModel(shape)
        initialise(self.dit)
        self.text = TextEncoder(build_tokenizer(), shape.text_dim)


class Trainer(Resumable):
    """One run: ``advance`` makes a step, ``save`` and ``load`` its checkpoint."""

    file = "checkpoint.pt"
    model: Generator
    average: Generator

    def __init__(self, recipe: Recipe, folder: Path, compiled: bool = False):
        self.recipe, self.folder, self.step = recipe, folder, 0
        torch.manual_seed(recipe.seed)
        self.model = Generator(recipe.shape)
        self.average = Generator(recipe.shape).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.flow = torch.compile(teacher_forced_flow) if compiled else teacher_forced_flow
        latent = recipe.size // SPACE
        self.turn = slot_turn(recipe.shape, BLOCKS - 1, BLOCKS, BLOCK, latent, latent)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), betas=(0.9, 0.95), weight_decay=0.01, fused=True)
        self.clips = _all_clips(recipe, folder / "data")

    @property
    def steps(self) -> int:
        return self.recipe.steps

    def advance(self) -> float:
        """One optimiser step; its loss."""
        recipe = self.recipe
        rng = random.Random(recipe.seed * 1_000_003 + self.step)
        draws = torch.Generator().manual_seed(rng.getrandbits(62))
        loss = self.loss(sample_batch(self.clips, recipe, rng), draws)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate_at(self.step)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.follow(recipe.ema)
        self.step += 1
        return loss.item()

    def loss(self, batch: Batch, draws: torch.Generator) -> Tensor:
        """Mean squared error of the flow, every target block at its own noise level."""
        b, kn = batch.target.shape[:2]
        u = torch.rand(b, kn, generator=draws)
        sigma = self.recipe.shift * u / (1 + (self.recipe.shift - 1) * u)
        noise = torch.randn(batch.target.shape, generator=draws)
        noisy = torch.lerp(batch.target, noise, sigma[..., None, None, None, None])
        context = noisy_context(batch.clean, draws)
        text = self.model.text([*batch.captions, *batch.sink_captions])
        with torch.autocast("cpu", torch.bfloat16):
            flow = self.flow(self.model.dit, context, noisy, sigma, text[:b], text[b:], self.turn)
        return (flow.float() - (noise - batch.target)).square().mean()


def noisy_context(clean: Tensor, draws: torch.Generator) -> Tensor:
    """Context as the model will make it itself, not quite clean: noise of level up to 0.2 on 70 % of the clips."""
    level = 0.2 * torch.rand(len(clean), 1, 1, 1, 1, 1, generator=draws)
    level = level * (torch.rand(level.shape, generator=draws) < 0.7)
    return torch.lerp(clean, torch.randn(clean.shape, generator=draws), level)


def sample_batch(clips: Clips, recipe: Recipe, rng: random.Random) -> Batch:
    """Clips by lot; in some the first 1 to 3 context blocks show the twin scene, as they do after a prompt switch."""
    clean, target, captions, sink_captions = [], [], [], []
    for _ in range(recipe.batch):
        i = rng.randrange(len(clips.scenes))
        blocks = clips.latents[i].float().unflatten(0, (BLOCKS, BLOCK))
        context, text = blocks[:-1], _words(clips.scenes[i], rng)
        sink_text = text
        if rng.random() < recipe.switches:
            old = clips.latents[i ^ 1].float().unflatten(0, (BLOCKS, BLOCK))
            at = rng.randint(1, BLOCKS - 1)
            context = torch.cat([old[:at], blocks[at:-1]])
            if rng.random() < 0.7:
                sink_text = _words(clips.scenes[i ^ 1], rng)
        clean.append(context)
        target.append(blocks)
        captions.append(text)
        sink_captions.append(sink_text)
    return Batch(torch.stack(clean), torch.stack(target), captions, sink_captions)


def _words(scene: Scene, rng: random.Random) -> str:
    return caption(scene) if rng.random() < 0.3 else paraphrase(scene, rng)


def _all_clips(recipe: Recipe, folder: Path) -> Clips:
    shards = [load_shard(folder, n, recipe.shard_clips, recipe.seed, recipe.size) for n in range(recipe.shards)]
    return Clips(tuple(s for shard in shards for s in shard.scenes), torch.cat([shard.latents for shard in shards]))


class Run(Protocol):
    """What `train` asks of a trainer: this one's, and the distillation's."""

    step: int

    @property
    def steps(self) -> int: ...

    def advance(self) -> float: ...

    def save(self) -> None: ...


def train(run: Run, minutes: float = math.inf, say_every: int = 50) -> None:
    """Steps until the recipe's end or the time is up, with a checkpoint every two minutes and at the end."""
    start = saved = time.monotonic()
    losses: list[float] = []
    while run.step < run.steps and time.monotonic() - start < 60 * minutes:
        losses.append(run.advance())
        if run.step % say_every == 0:
            elapsed = time.monotonic() - start
            print(f"step {run.step} loss {sum(losses) / len(losses):.5f} minutes {elapsed / 60:.1f}", flush=True)
            losses.clear()
        if time.monotonic() - saved > 120:
            run.save()
            saved = time.monotonic()
    run.save()


def keep_memory() -> None:
    """Tells glibc to reuse freed memory instead of handing it back: a step is 1.4 times faster. No-op elsewhere."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**28)
    mallopt(mmap_max, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop this call after so long")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--shards", type=int, default=Recipe.shards)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    trainer = Trainer(Recipe(steps=args.steps, shards=args.shards), args.out, compiled=not args.no_compile)
    print("goes on" if trainer.load() else "starts", "at step", trainer.step, flush=True)
    train(trainer, args.minutes)


if __name__ == "__main__":
    main()
