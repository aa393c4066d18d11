"""The causal DiT over a whole clip at once: clean blocks as context, noisy blocks as targets, no cache.

What differs from streaming is only who attends to whom, so it is two memories handed to the same model. Clean block i
sees clean blocks 0..i; noisy block i sees clean blocks 0..i-1 and itself. RoPE takes slot positions (block i lies at
frames 3i..3i+2), which is what the streaming window of sink 3 + past 6 + current 3 gives ("infinite" form).

Legend: B clips, Kc clean and Kn noisy blocks, F frames a block, N tokens a block, H heads, D head dim, L text rows.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from riverrun.kernels.rope import angles_3d, rotation
from riverrun.models.wan.dit import Block, WanConfig, WanModel

Turn = tuple[Tensor, Tensor]
KeysValues = tuple[Tensor, Tensor]


def teacher_forced_flow(
    model: WanModel, clean: Tensor, noisy: Tensor, sigma: Tensor, text: Tensor, sink_text: Tensor, turn: Turn
) -> Tensor:
    """Flow of every noisy block, like ``noisy``.

    clean [B, Kc, F, C, h, w]; noisy [B, Kn, F, C, h, w] at noise levels ``sigma`` [B, Kn]; ``text`` and ``sink_text``
    (the prompt in force when clean block 0 was made) [B, L, text_dim]; ``turn`` from :func:`slot_turn`.
    """
    kc, frames = clean.shape[1], clean.shape[2]
    levels = torch.cat([torch.zeros_like(sigma[:, :1]).expand(-1, kc), 1000 * sigma], dim=1)
    x = torch.cat([clean, noisy], dim=1).flatten(1, 2).transpose(1, 2)  # (B, C, K F, h, w)
    self_memory = BlocksMemory(kc, kc + noisy.shape[1], turn)
    texts = TextsMemory(model, model.embed_text(text), model.embed_text(sink_text), kc + noisy.shape[1])
    flow = model(x, levels.repeat_interleave(frames, dim=1), self_memory, texts)
    return flow.transpose(1, 2).unflatten(1, (-1, frames))[:, kc:]


def slot_turn(config: WanConfig, clean: int, noisy: int, frames: int, height: int, width: int) -> Turn:
    """Cosines and sines of the rotation, each [K, N, 1, D / 2]: clean and noisy blocks both begin at slot 0.

    height, width: of the latents.
    """
    slots = torch.tensor([*range(clean), *range(noisy)])
    positions = (slots[:, None] * frames + torch.arange(frames)).flatten()
    angle = angles_3d(positions, height // config.patch_size[1], width // config.patch_size[2], config.head_dim)
    cos, sin = (part.unflatten(0, (clean + noisy, -1))[:, :, None] for part in rotation(angle))
    return cos, sin


class BlocksMemory:
    """Self attention of teacher forcing; `attend` as in `SelfMemory`."""

    def __init__(self, clean: int, blocks: int, turn: Turn) -> None:
        self.clean, self.blocks, self.turn = clean, blocks, turn

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        qs, ks, vs = self._blocks(self._turned(q)), self._blocks(self._turned(k)), self._blocks(v)
        outs = []
        for i in range(self.blocks):
            seen = [*range(i + 1)] if i < self.clean else [*range(i - self.clean), i]
            outs.append(attend(qs[i], torch.cat([ks[j] for j in seen], 2), torch.cat([vs[j] for j in seen], 2)))
        return torch.cat(outs, dim=2).transpose(1, 2)  # (B, T, H, D)

    def _blocks(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.transpose(1, 2).chunk(self.blocks, dim=2)  # K of (B, H, N, D)

    def _turned(self, x: Tensor) -> Tensor:
        """Rotates pairs (2i, 2i + 1); leaves all even channels first, then all odd ones: q and k alike, so their
        products stay the same."""
        cos, sin = (part.flatten(0, 1).to(x.dtype) for part in self.turn)  # (T, 1, D / 2)
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.cat([even * cos - odd * sin, even * sin + odd * cos], dim=-1)


class TextsMemory:
    """Cross attention where clean block 0 may have been made under another prompt; `attend` as in `CrossMemory`."""

    def __init__(self, model: WanModel, text: Tensor, sink_text: Tensor, blocks: int) -> None:
        """text, sink_text: contexts [B, L, C]."""
        blocks_of = cast(list[Block], model.blocks)
        self.pairs = [[self._keys(block, context) for context in (sink_text, text)] for block in blocks_of]
        self.blocks = blocks

    @staticmethod
    def _keys(block: Block, context: Tensor) -> KeysValues:
        k, v = block.cross_attn.keys_values(context)
        return k.transpose(1, 2), v.transpose(1, 2)  # (B, H, L, D)

    def attend(self, layer: int, q: Tensor) -> Tensor:
        queries = q.transpose(1, 2)
        first = queries.shape[2] // self.blocks
        parts = (queries[:, :, :first], queries[:, :, first:])
        outs = [attend(part, *keys) for part, keys in zip(parts, self.pairs[layer], strict=True)]
        return torch.cat(outs, dim=2).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain attention over (B, H, tokens, D): torch's fused one has a slow backward pass on a CPU (6 times)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores.softmax(-1).to(v.dtype) @ v


def initialise(model: WanModel) -> None:
    """Starting values: open gates, quiet residual branches, a silent head."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    with torch.no_grad():
        for block in cast(list[Block], model.blocks):
            block.modulation.zero_()
            block.modulation[:, [2, 5]] = 1.0
            for layer in (block.self_attn.o, block.cross_attn.o, cast(nn.Linear, block.ffn[2])):
                layer.weight.mul_(0.3)
    nn.init.normal_(cast(nn.Linear, model.time_projection[1]).weight, std=0.02)
    nn.init.normal_(cast(nn.Linear, model.time_embedding[0]).weight, std=0.05)
    nn.init.zeros_(model.head.head.weight)
