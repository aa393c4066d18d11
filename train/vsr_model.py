"""The tiny InfVSR as it is trained: the released forms at small sizes, and a whole clip at once.

What streaming does with a cache is done here by a mask: each chunk sees itself and the one before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from riverrun.kernels.rope import angles_3d, rotate, rotation
from riverrun.kernels.shared import TextEntry
from riverrun.models.super_resolution.decoder import ConditionalDecoder, DecoderConfig, MemoryBlock, enlarged
from riverrun.models.super_resolution.guidance import VisualGuidance
from riverrun.models.super_resolution.restorer import SIGMA, TIMESTEP
from riverrun.models.super_resolution.swin import SwinConfig
from riverrun.models.wan.dit import WanConfig, WanModel
from riverrun.models.wan.stream import TextMemories
from riverrun.models.wan.vae import VAEConfig, WanVAE
from riverrun.train.teacher_forcing import initialise
from riverrun.train.vae import inflate

Z_DIM, CHUNK = 16, 3
PARTS = ("decoder", "restorer")
"""Of a run, in their order; each goes on from the one before."""
SWIN = SwinConfig(64, patch_size=4, embed_dim=16, depths=(1, 1, 1), num_heads=(1, 2, 4), window_size=4)
DIT = WanConfig(
    dim=96, ffn_dim=256, num_heads=4, num_layers=4, in_dim=Z_DIM, out_dim=Z_DIM, freq_dim=64, text_dim=32, text_len=17
)  # fmt: skip
VAE = VAEConfig(8, Z_DIM, (1, 2, 4, 4), 1, (False, True, True), mean=(0.0,) * Z_DIM, std=(1.0,) * Z_DIM)


@dataclass(frozen=True)
class Sizes:
    """Of all four parts."""

    swin: SwinConfig = SWIN
    dit: WanConfig = DIT
    vae: VAEConfig = VAE
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


class TinyVSR(nn.Module):
    """All that is trained."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.vae = WanVAE(sizes.vae)
        inflate(self.vae)
        self.dit = WanModel(sizes.dit)
        initialise(self.dit)
        self.guidance = VisualGuidance(sizes.swin, sizes.dit.text_dim)
        self.decoder = ConditionalDecoder(sizes.decoder)
        start(self.decoder)

    def latents(self, small: Tensor, previous: int = 1) -> Tensor:
        """(B, T, 3, h, w) in [-1, 1], T = 4n + 1 -> restored latents (B, F, z, h/2, w/2)."""
        z = self.vae.encode_clip(enlarged(small, self.decoder.config.scale))
        return z - SIGMA * self.flow(z, small[:, 0], previous)

    def flow(self, z: Tensor, reference: Tensor, previous: int = 1) -> Tensor:
        """previous: chunks before its own that a chunk sees."""
        config = self.dit.config
        chunks = [min(CHUNK, z.shape[1] - at) for at in range(0, z.shape[1], CHUNK)]
        memory = Band(config, chunks, (z.shape[3] // 2, z.shape[4] // 2), previous)
        context = self.dit.embed_text(self.guidance((reference + 1) / 2))
        texts = TextMemories([TextEntry(*self.dit.text_keys_values(row)) for row in context.split(1)])
        times = torch.full(z.shape[:2], TIMESTEP)
        return self.dit(z.transpose(1, 2), times, memory, texts).transpose(1, 2)


def newest(folder: Path, parts: tuple[str, ...] = PARTS) -> dict[str, Tensor]:
    """The averaged weights of the newest of these parts of a run. Raises FileNotFoundError where there is none."""
    for part in reversed(parts):
        path = folder / f"vsr-{part}.pt"
        if path.exists():
            return torch.load(path, weights_only=True)["average"]
    raise FileNotFoundError(f"{folder} holds no vsr-*.pt: nothing has been trained there")


class Band:
    """Self attention over a whole clip where each chunk sees itself and `previous` before it."""

    def __init__(self, config: WanConfig, chunks: list[int], grid: tuple[int, int], previous: int) -> None:
        """chunks: latent frames of each. grid: (h, w) in tokens."""
        counts = torch.tensor(chunks) * grid[0] * grid[1]
        chunk = torch.arange(len(chunks)).repeat_interleave(counts)
        apart = chunk[:, None] - chunk[None]
        self.bias = torch.where((apart >= 0) & (apart <= previous), 0.0, float("-inf"))
        self.turn = rotation(angles_3d(torch.arange(sum(chunks)), *grid, config.head_dim))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (rotate(q, self.turn), rotate(k, self.turn), v))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + self.bias.to(q.dtype)
        return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2)


@torch.no_grad()
def start(decoder: ConditionalDecoder) -> None:
    """Starting values: quiet residual branches, latents that say nothing yet, and an output far smaller than what is
    wanted. A large one is first learnt away, and all features with it (tiny runs never came back from that)."""
    blocks: list[MemoryBlock] = []
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=0.1)
            nn.init.zeros_(cast(Tensor, module.bias))
        if isinstance(module, MemoryBlock):
            blocks.append(module)
    for block in blocks:
        block.conv2.weight.mul_(0.3)
    decoder.latents_in.weight.zero_()
    decoder.head.weight.mul_(0.005)
