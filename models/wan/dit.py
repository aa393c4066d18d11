"""Wan 2.1's diffusion transformer, whole-clip or block by block over a KV cache. Original state-dict keys.

Source: wan_base.md §1, longlive.md §3. One class serves both uses: what a block's queries see is decided by the
`SelfMemory` and `CrossMemory` handed to `forward`, never by the model, which has no state.

B batch, F latent frames, S tokens a frame, T = F*S tokens, H heads, D head dim, C model dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riverrun.kernels.attention import attention
from riverrun.kernels.rope import angles_3d, rotate, rotation


@dataclass(frozen=True)
class WanConfig:
    """Sizes of the transformer; the released 1.3 B model is `WAN_1_3B`."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int
    out_dim: int
    freq_dim: int
    text_dim: int
    text_len: int
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    def tokens_per_frame(self, height: int, width: int) -> int:
        """Tokens of one latent frame of height x width latent pixels."""
        return (height // self.patch_size[1]) * (width // self.patch_size[2])


WAN_1_3B = WanConfig(
    dim=1536,
    ffn_dim=8960,
    num_heads=12,
    num_layers=30,
    in_dim=16,
    out_dim=16,
    freq_dim=256,
    text_dim=4096,
    text_len=512,
)


class SelfMemory(Protocol):
    """What self attention sees beside the call's own tokens."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [B, T, H, D] after qk-norm, before RoPE; returns the attention's output [B, T, H, D]."""


class CrossMemory(Protocol):
    """Keys and values of the text."""

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """q [B, T, H, D] after norm; returns [B, T, H, D]."""


def sinusoid(t: Tensor, dim: int) -> Tensor:
    """float64 [N, dim] of timesteps t [N]: cosines first, then sines."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float64, device=t.device)
    angle = torch.outer(t.to(torch.float64), 10_000.0 ** (-steps / half))
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class RMSNorm(nn.Module):
    """Over the full model dim, all heads together; in float32, cast back, then the weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class LayerNorm(nn.LayerNorm):
    """In float32, cast back."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class Attention(nn.Module):
    """Projections and qk-norm; what is attended to is the memory's business."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(config.dim, config.dim) for _ in range(4))
        self.norm_q, self.norm_k = (RMSNorm(config.dim, config.eps) for _ in range(2))
        self.heads = config.num_heads

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))  # (B, T, H, D)

    def queries(self, x: Tensor) -> Tensor:
        return self.split(self.norm_q(self.q(x)))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.norm_k(self.k(x))), self.split(self.v(x))


class SelfAttention(Attention):
    def forward(self, x: Tensor, memory: SelfMemory, layer: int) -> Tensor:
        return self.o(memory.attend(layer, self.queries(x), *self.keys_values(x)).flatten(2))


class CrossAttention(Attention):
    def forward(self, x: Tensor, memory: CrossMemory, layer: int) -> Tensor:
        return self.o(memory.attend(layer, self.queries(x)).flatten(2))


class Block(nn.Module):
    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.self_attn = SelfAttention(config)
        self.norm3 = LayerNorm(config.dim, config.eps)  # before cross attention: the official names
        self.cross_attn = CrossAttention(config)
        self.norm2 = LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, config.dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, e0: Tensor, memory: SelfMemory, text: CrossMemory, layer: int) -> Tensor:
        """x [B, F*S, C], e0 [B, F, 6, C]: each frame is modulated by its own timestep."""
        parts = (self.modulation.unsqueeze(1) + e0).chunk(6, dim=2)  # six of (B, F, 1, C)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        frames = e0.shape[1]
        h = modulate(self.norm1(x), scale1, shift1)
        x = x + per_frame(self.self_attn(h, memory, layer), frames, gate1)
        x = x + self.cross_attn(self.norm3(x), text, layer)
        h = modulate(self.norm2(x), scale2, shift2)
        return x + per_frame(self.ffn(h), frames, gate2)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x [B, F*S, C] * (1 + scale) + shift, with scale and shift [B, F, 1, C]."""
    frames = scale.shape[1]
    return (x.unflatten(1, (frames, -1)) * (1 + scale) + shift).flatten(1, 2)


def per_frame(x: Tensor, frames: int, gate: Tensor) -> Tensor:
    """x [B, F*S, C] times gate [B, F, 1, C]."""
    return (x.unflatten(1, (frames, -1)) * gate).flatten(1, 2)


class Head(nn.Module):
    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        t, h, w = config.patch_size
        self.norm = LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, t * h * w * config.out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x [B, F*S, C], e [B, F, C] (the time embedding, not projected)."""
        shift, scale = (self.modulation.unsqueeze(1) + e.unsqueeze(2)).chunk(2, dim=2)  # (B, F, 1, C)
        return self.head(modulate(self.norm(x), scale, shift))


class WanModel(nn.Module):
    """Predicts the flow (noise - data) of latents, each frame at its own timestep."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv3d(config.in_dim, config.dim, config.patch_size, config.patch_size)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, config.dim), nn.GELU(approximate="tanh"), nn.Linear(config.dim, config.dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, 6 * config.dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)

    def forward(self, x: Tensor, t: Tensor, memory: SelfMemory, text: CrossMemory) -> Tensor:
        """x [B, in_dim, F, H, W] latents, t [B, F] timesteps in 0..1000; returns the flow [B, out_dim, F, H, W]."""
        batch, frames = t.shape
        grid = self.patch_embedding(x)  # (B, C, F, h, w)
        tokens = grid.flatten(2).transpose(1, 2)  # (B, F*h*w, C)
        e = self.time_embedding(sinusoid(t.flatten(), self.config.freq_dim).to(tokens.dtype))  # (B*F, C)
        e0 = self.time_projection(e).unflatten(1, (6, -1)).unflatten(0, (batch, frames))  # (B, F, 6, C)
        for layer, block in enumerate(self.blocks):
            tokens = block(tokens, e0, memory, text, layer)
        return self._unpatchify(self.head(tokens, e.unflatten(0, (batch, frames))), grid.shape[2:])

    def _unpatchify(self, y: Tensor, grid: torch.Size) -> Tensor:
        """y [B, f*h*w, p*q*r*c], c fastest -> [B, c, f*p, h*q, w*r]."""
        y = y.unflatten(1, tuple(grid)).unflatten(-1, (*self.config.patch_size, self.config.out_dim))
        y = y.permute(0, 7, 1, 4, 2, 5, 3, 6)  # (B, c, f, p, h, q, w, r)
        return y.flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def embed_text(self, embeddings: Tensor) -> Tensor:
        """Prompt embeddings [B, n <= text_len, text_dim] -> context [B, text_len, C].

        Shorter ones are padded with zero rows, which then are attended to like the others: there is no mask.
        """
        missing = self.config.text_len - embeddings.shape[1]
        if missing < 0:
            raise ValueError(f"at most {self.config.text_len} text rows, got {embeddings.shape[1]}")
        return self.text_embedding(F.pad(embeddings, (0, 0, 0, missing)))

    def text_keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Cross attention keys and values of all layers, each [L, B, text_len, H, D]; made once a prompt."""
        pairs = [cast(Block, block).cross_attn.keys_values(context) for block in self.blocks]
        k, v = zip(*pairs, strict=True)
        return torch.stack(k), torch.stack(v)


class ClipMemory:
    """Whole-clip self attention: every token sees every other (Wan itself; no cache)."""

    def __init__(
        self, config: WanConfig, frames: int, height: int, width: int, device: torch.device | str = "cpu"
    ) -> None:
        """height, width: of the latents. device: where they are."""
        _, q, r = config.patch_size
        angle = angles_3d(torch.arange(frames, device=device), height // q, width // r, config.head_dim)
        self.turn = rotation(angle)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(rotate(q, self.turn), rotate(k, self.turn), v)
