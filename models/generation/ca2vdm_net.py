"""CausalSTDiT2, the factorised space-time transformer of Ca2-VDM and ViD-GPT (ca2vdm.md §2).

B batch rows (sessions x guidance rows), T frames of a call, S places of a frame, C width, H heads, D head dim,
P prefix frames, L text tokens. What attention over time and over the prefix frames sees is a `FrameMemory`'s business
(`ca2vdm_memory.py`); the network itself keeps nothing. Attributes equal the official checkpoint keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riverrun.kernels.attention import attention
from riverrun.kernels.shared import TextEntry
from riverrun.models.base import BadRequest

Position = Literal["absolute", "cyclic", "rope"]
"""`absolute`: frame f adds row f of a table that ends the stream. `cyclic`: row f mod its length. `rope`: temporal keys
and queries are turned by their place in the window (officially only right in the flash layout, which this is)."""
Causality = Literal["causal", "partial", "full"]
"""What a noisy frame sees of its own chunk: the frames up to it, or (`partial`, `full`) all. `full` has no cache."""


@dataclass(frozen=True)
class STDiTConfig:
    """Sizes and forms. latent_size: (h, w) in latent pixels, multiples of `patch`. caption_channels: 0 is no text.

    text_len: rows of the learned null caption. mask_channel: tell clean from noisy frames in block 0. table_len: rows
    of the temporal position table. prefix_frames: clean frames a noisy frame also sees in space, 0 for none.
    """

    latent_size: tuple[int, int] = (32, 32)
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    in_channels: int = 4
    patch: int = 2
    mlp_ratio: int = 4
    caption_channels: int = 0
    text_len: int = 120
    mask_channel: bool = True
    table_len: int = 33
    position: Position = "cyclic"
    causality: Causality = "causal"
    prefix_frames: int = 3
    space_scale: float = 1.0
    time_scale: float = 1.0

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def grid(self) -> tuple[int, int]:
        """Places of a frame, (rows, columns)."""
        return self.latent_size[0] // self.patch, self.latent_size[1] // self.patch

    @property
    def places(self) -> int:
        return math.prod(self.grid)


class FrameMemory(Protocol):
    """One call's view of other frames. rows [B, T]: position of each frame in the table. clean [B, T]: bool."""

    rows: Tensor
    clean: Tensor

    def temporal(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention over time at every place: q, k, v [B*S, T, H, D] raw; returns q's shape."""

    def prefix(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of every frame to its context frames: q, k, v [B*T, S, H, D]; returns q's shape."""


class CausalSTDiT2(nn.Module):
    """Predicts noise and variance of T latent frames, [B, 2*in_channels, T, h, w]."""

    pos_embed: Tensor  # [1, S, C]
    pos_embed_temporal: Tensor  # [1, table_len, C]

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        self.config = config
        width, channels = config.hidden_size, config.in_channels
        self.x_embedder = PatchEmbedder(channels, width, config.patch)
        self.t_embedder = TimestepEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        if config.caption_channels:
            self.y_embedder = CaptionEmbedder(config.caption_channels, config.text_len, width)
        self.blocks = nn.ModuleList(Block(config, is_first=i == 0) for i in range(config.depth))
        self.final_layer = FinalLayer(width, config.patch**2 * 2 * channels)
        self.register_buffer("pos_embed", space_table(config)[None])
        self.register_buffer("pos_embed_temporal", sincos(_positions(config), width)[None])
        self.register_buffer("bov_token", torch.zeros(channels, *config.latent_size))  # official, unused

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        memory: FrameMemory,
        text: Sequence[TextEntry] | None = None,
        write_only: bool = False,
    ) -> Tensor | None:
        """x [B, C_in, T, h, w]; t [B] or, where frames differ, [B, T]; text: one entry a row, if the model has text.

        write_only: the call is made for what `memory` gathers: the last block ends with it, and None is returned.
        """
        batch, _, frames = x.shape[:3]
        h = self.x_embedder(x.to(self.pos_embed.dtype)) + self.pos_embed  # (B, T, S, C)
        t_emb = self.t_embedder(t.reshape(-1))
        t_mlp = self.t_block(t_emb).view(batch, -1, 1, 6, h.shape[-1])  # (B, 1 or T, 1, 6, C)
        place = None
        if self.config.position != "rope":
            place = self.pos_embed_temporal[0, memory.rows.to(x.device)][:, :, None]  # (B, T, 1, C)
        for layer, block in enumerate(self.blocks):
            cut = write_only and layer == self.config.depth - 1
            h = block(h, t_mlp, layer, memory, place, text, cut)
        if write_only:
            return None
        return self._unpatchify(self.final_layer(h, t_emb.view(batch, -1, 1, h.shape[-1])), frames)

    def caption(self, embedding: Tensor | None, tokens: int | None = None) -> TextEntry:
        """Keys and values of a caption's valid tokens, embedding [L, caption_channels]; None: the null caption,
        cut to `tokens` (that of the caption it stands against)."""
        y = self.y_embedder.y_embedding[:tokens] if embedding is None else embedding
        y = self.y_embedder.y_proj(y.to(self.pos_embed.dtype))  # (L, C)
        layers = (block.cross_attn for block in self.blocks if isinstance(block, Block))
        pairs = [layer.keys_values(y) for layer in layers if layer is not None]
        return TextEntry(torch.stack([k for k, _ in pairs]), torch.stack([v for _, v in pairs]))

    def _unpatchify(self, h: Tensor, frames: int) -> Tensor:
        rows, columns = self.config.grid
        p = self.config.patch
        h = h.unflatten(3, (p, p, -1)).unflatten(2, (rows, columns))  # (B, T, rows, columns, p, p, 2 C_in)
        return h.permute(0, 6, 1, 2, 4, 3, 5).reshape(len(h), -1, frames, rows * p, columns * p).float()


class Block(nn.Module):
    """Space, prefix, time, text, MLP. Time, prefix and text read x as it is; space and MLP read it normed."""

    def __init__(self, config: STDiTConfig, is_first: bool) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_heads
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.attn = SelfAttention(width, heads)
        self.attn_temp = SelfAttention(width, heads)
        # zero, so that a checkpoint trained without these layers is not changed by them (§7)
        nn.init.zeros_(self.attn_temp.proj.weight)
        nn.init.zeros_(self.attn_temp.proj.bias)
        self.attn_cf = SelfAttention(width, heads) if config.prefix_frames else None
        self.cross_attn = CrossAttention(width, heads) if config.caption_channels else None
        self.mlp = Mlp(width, config.mlp_ratio * width, width)
        if self.attn_cf is not None:
            nn.init.zeros_(self.attn_cf.proj.weight)
            nn.init.zeros_(self.attn_cf.proj.bias)
        self.attn_temp_pre_merge = None
        self.adds_place = is_first
        if is_first and config.mask_channel:
            self.attn_temp_pre_merge = nn.Linear(width + 1, width)
            nn.init.zeros_(self.attn_temp_pre_merge.bias)
            with torch.no_grad():
                self.attn_temp_pre_merge.weight.copy_(torch.eye(width, width + 1))

    def forward(
        self,
        x: Tensor,
        t_mlp: Tensor,
        layer: int,
        memory: FrameMemory,
        place: Tensor | None,
        text: Sequence[TextEntry] | None,
        cut: bool,
    ) -> Tensor:
        """x [B, T, S, C]; t_mlp [B, 1 or T, 1, 6, C]; place [B, T, 1, C]. cut: end after the attentions."""
        batch, frames = x.shape[:2]
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.scale_shift_table + t_mlp).unbind(3)
        space = self.attn((_norm(x) * (1 + scale1) + shift1).flatten(0, 1), attention)
        x = x + gate1 * space.view_as(x)
        if self.attn_cf is not None:
            context = self.attn_cf(x.flatten(0, 1), lambda q, k, v: memory.prefix(layer, q, k, v))
            x = x + gate1 * context.view_as(x)
        time = self._time_input(x, memory, place).transpose(1, 2).flatten(0, 1)  # (B*S, T, C)
        time = self.attn_temp(time, lambda q, k, v: memory.temporal(layer, q, k, v))
        x = x + gate1 * time.view(batch, -1, frames, x.shape[-1]).transpose(1, 2)
        if cut:
            return x
        if self.cross_attn is not None:
            if text is None:
                raise BadRequest("this model needs a caption for every row of the batch")
            x = x + self.cross_attn(x.flatten(1, 2), [(e.k[layer], e.v[layer]) for e in text]).view_as(x)
        return x + gate2 * self.mlp(_norm(x) * (1 + scale2) + shift2)

    def _time_input(self, x: Tensor, memory: FrameMemory, place: Tensor | None) -> Tensor:
        if self.adds_place and place is not None:
            x = x + place
        if self.attn_temp_pre_merge is None:
            return x
        flag = memory.clean.to(x)[:, :, None, None].expand(*x.shape[:3], 1)
        return self.attn_temp_pre_merge(torch.cat([x, flag], dim=-1))


class SelfAttention(nn.Module):
    """One projection to q, k, v, whatever `attend` does with them, and the projection back."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """x [N, T, C]; attend takes and gives [N, T, H, D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.proj(attend(q, k, v).flatten(2))


class CrossAttention(nn.Module):
    """Attention to a caption, of its own length for each row."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def keys_values(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """y [L, C] -> k, v [L, H, D]."""
        k, v = self.kv_linear(y).unflatten(-1, (2, self.heads, -1)).unbind(1)
        return k, v

    def forward(self, x: Tensor, captions: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """x [B, T*S, C]; captions: (k, v) [L, H, D] of each row."""
        q = self.q_linear(x).unflatten(-1, (self.heads, -1))
        rows = [attention(q[i, None], k[None], v[None]) for i, (k, v) in enumerate(captions)]
        return self.proj(torch.cat(rows).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with the tanh form of GELU between."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class PatchEmbedder(nn.Module):
    """x [B, C_in, T, h, w] -> [B, T, S, C], patches of one frame each, row by row."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, width, (1, patch, patch), (1, patch, patch))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 4, 1).flatten(2, 3)


class TimestepEmbedder(nn.Module):
    """t [N] -> [N, C] through a sinusoid of 256 channels, cosines first."""

    def __init__(self, width: int, channels: int = 256) -> None:
        super().__init__()
        self.channels = channels
        self.mlp = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = self.channels // 2
        steps = torch.arange(half, dtype=torch.float32, device=t.device)
        turns = t[:, None].float() * torch.exp(-math.log(10_000) * steps / half)
        return self.mlp(torch.cat([turns.cos(), turns.sin()], dim=-1).to(next(self.parameters()).dtype))


class CaptionEmbedder(nn.Module):
    """Projects T5 states; `y_embedding` is the null caption [text_len, caption_channels]."""

    def __init__(self, channels: int, tokens: int, width: int) -> None:
        super().__init__()
        self.y_embedding: Tensor
        self.register_buffer("y_embedding", torch.randn(tokens, channels) / channels**0.5)
        self.y_proj = Mlp(channels, width, width)


class FinalLayer(nn.Module):
    """Norm, modulation by the timestep embedding itself, and the linear layer to patches."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.linear = nn.Linear(width, out)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, t_emb: Tensor) -> Tensor:
        """x [B, T, S, C], t_emb [B, 1 or T, 1, C]."""
        shift, scale = (self.scale_shift_table + t_emb[..., None, :]).unbind(3)
        return self.linear(_norm(x) * (1 + scale) + shift)


def sincos(positions: Tensor, channels: int) -> Tensor:
    """float32 [N, channels]: sines, then cosines, of float64 angles. positions [N], float64."""
    half = channels // 2
    angles = torch.outer(positions, 10_000.0 ** -(torch.arange(half, dtype=torch.float64) / half))
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def space_table(config: STDiTConfig) -> Tensor:
    """[S, C]: the first half of the channels tells the column, the second the row."""
    rows, columns = (torch.arange(n, dtype=torch.float64) / config.space_scale for n in config.grid)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    half = config.hidden_size // 2
    return torch.cat([sincos(column.flatten(), half), sincos(row.flatten(), half)], dim=1)


def _positions(config: STDiTConfig) -> Tensor:
    return torch.arange(config.table_len, dtype=torch.float64) / config.time_scale


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)
