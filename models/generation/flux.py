"""FLUX.1's transformer, for keys and values that outlive a call (easycontrol.md §5, §10). State-dict keys of diffusers.

Own code, since the blocks of diffusers' model have no place for a cache that outlives a call, nor for tokens that see
only themselves under another timestep; the released weights need no more of it than its names. The model has no
state: what a call's queries see is decided by the `SelfMemory` handed to it. Layers are numbered double blocks first,
single blocks after them.

Weights: FLUX.1-dev's, under the FLUX.1-dev non-commercial licence.

Legend: B batch, N image tokens, Nt text tokens, T = Nt + N, H heads, D head dim, C = H*D model dim. In a joint
sequence text comes first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riverrun.kernels.rope import angles, rotation
from riverrun.models.base import BadRequest
from riverrun.models.wan.dit import LayerNorm, RMSNorm, SelfMemory
from riverrun.models.weights import as_tuples

EPS = 1e-6
TIME_DIM = 256
"""Channels of the sinusoids that stand for a timestep and for the guidance."""


@dataclass(frozen=True)
class FluxConfig:
    """Sizes of the transformer, named as in diffusers' config.json; the released model is `FLUX_DEV`.

    axes_dims_rope: channels of a head turned by each of a token's three position ids.
    """

    in_channels: int
    num_layers: int
    num_single_layers: int
    attention_head_dim: int
    num_attention_heads: int
    joint_attention_dim: int
    pooled_projection_dim: int
    guidance_embeds: bool
    axes_dims_rope: tuple[int, ...]

    def __post_init__(self) -> None:
        if sum(self.axes_dims_rope) != self.attention_head_dim:
            raise BadRequest(f"axes_dims_rope {self.axes_dims_rope} must add up to a head's {self.attention_head_dim}")

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> FluxConfig:
        """From what a config.json holds; entries that are no size of the model are passed over.

        Raises BadRequest for a missing size, or a form of the model that is not FLUX.1's.
        """
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in values]:
            raise BadRequest(f"the transformer's config lacks {missing[0]!r}")
        if values.get("patch_size", 1) != 1 or values.get("out_channels") not in (None, values["in_channels"]):
            raise BadRequest("the transformer's config must have patch_size 1 and as many channels out as in")
        return cls(**as_tuples({name: values[name] for name in names}))

    @property
    def dim(self) -> int:
        return self.attention_head_dim * self.num_attention_heads

    @property
    def layers(self) -> int:
        return self.num_layers + self.num_single_layers


FLUX_DEV = FluxConfig(
    in_channels=64,
    num_layers=19,
    num_single_layers=38,
    attention_head_dim=128,
    num_attention_heads=24,
    joint_attention_dim=4096,
    pooled_projection_dim=768,
    guidance_embeds=True,
    axes_dims_rope=(16, 56, 56),
)


class Adapter(Protocol):
    """What a LoRA adds in one layer."""

    def add(self, name: str, x: Tensor) -> Tensor:
        """To the projection `name` ("q", "k", "v") of x, or ("proj") to an output x of the output projection."""


def turn_of(ids: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(cos, sin) float32, each [T, D/2], for `rotate`. ids [T, 3], one position for each of `axes`."""
    parts = [angles(ids[:, axis], dim) for axis, dim in enumerate(axes)]
    return rotation(torch.cat(parts, dim=1))


def _sinusoid(t: Tensor) -> Tensor:
    """float32 [B, 256] of t [B], cosines first.

    Frequencies and angles are rounded to float32, as in the released model: at 3500, guidance's value, that shows in
    its numbers. The functions themselves are taken in float64, to be the same on every machine.
    """
    half = TIME_DIM // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) * -math.log(10_000) / half
    angle = (t.float()[:, None] * exponents.double().exp().float()).double()
    return torch.cat([angle.cos(), angle.sin()], dim=1).float()


class Embedder(nn.Module):
    """Two linear layers with a SiLU between."""

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(dim_in, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class TimeTextEmbedding(nn.Module):
    """One vector from the timestep, the guidance and the pooled prompt."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.timestep_embedder = Embedder(TIME_DIM, config.dim)
        if config.guidance_embeds:
            self.guidance_embedder = Embedder(TIME_DIM, config.dim)
        self.text_embedder = Embedder(config.pooled_projection_dim, config.dim)
        self.takes_guidance = config.guidance_embeds

    def forward(self, sigma: Tensor, guidance: Tensor, pooled: Tensor) -> Tensor:
        """sigma [B] in 0..1, guidance [B], pooled [B, P] -> [B, C]."""
        # Rounded to the model's dtype before they are scaled, as the released pipeline does.
        time, strength = (1000 * x.to(pooled.dtype) for x in (sigma, guidance))
        vec = self.timestep_embedder(_sinusoid(time).to(pooled.dtype))
        if self.takes_guidance:
            vec = vec + self.guidance_embedder(_sinusoid(strength).to(pooled.dtype))
        return vec + self.text_embedder(pooled)


class AdaNorm(nn.Module):
    """LayerNorm, shifted and scaled by the conditioning vector, which gives `parts - 2` more factors."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, parts * dim)
        self.norm = LayerNorm(dim, EPS, elementwise_affine=False)
        self.parts = parts

    def forward(self, x: Tensor, vec: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        shift, scale, *rest = self.factors(vec)
        return self.norm(x) * (1 + scale) + shift, tuple(rest)

    def factors(self, vec: Tensor) -> tuple[Tensor, ...]:
        """Each (B, 1, C)."""
        return self.linear(F.silu(vec))[:, None].chunk(self.parts, dim=-1)


class LastNorm(AdaNorm):
    """In front of the output; its vector gives the scale first."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 2)

    def factors(self, vec: Tensor) -> tuple[Tensor, ...]:
        scale, shift = super().factors(vec)
        return shift, scale


class Gelu(nn.Module):
    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(Gelu(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Attention(nn.Module):
    """Projections and norms a head of the image tokens (in a single block, of all tokens)."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        dim = config.dim
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.norm_q, self.norm_k = (RMSNorm(config.attention_head_dim, EPS) for _ in range(2))
        self.heads = config.num_attention_heads

    def qkv(self, x: Tensor, adapter: Adapter | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, N, C) -> q, k, v (B, N, H, D), normed and not turned."""
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        if adapter is not None:
            q, k, v = q + adapter.add("q", x), k + adapter.add("k", x), v + adapter.add("v", x)
        return self.norm_q(self._split(q)), self.norm_k(self._split(k)), self._split(v)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class JointAttention(Attention):
    """With projections of their own for the text tokens."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__(config)
        dim = config.dim
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.add_q_proj, self.add_k_proj, self.add_v_proj, self.to_add_out = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_added_q, self.norm_added_k = (RMSNorm(config.attention_head_dim, EPS) for _ in range(2))

    def text_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `qkv`, for text tokens (B, Nt, C)."""
        q, k, v = (self._split(linear(x)) for linear in (self.add_q_proj, self.add_k_proj, self.add_v_proj))
        return self.norm_added_q(q), self.norm_added_k(k), v


class DoubleBlock(nn.Module):
    """Image and text tokens attend together, each through weights of their own."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.norm1, self.norm1_context = (AdaNorm(config.dim, 6) for _ in range(2))
        self.attn = JointAttention(config)
        self.ff, self.ff_context = (FeedForward(config.dim) for _ in range(2))

    def forward(self, layer: int, x: Tensor, text: Tensor, vec: Tensor, memory: SelfMemory) -> tuple[Tensor, Tensor]:
        h, factors = self.norm1(x, vec)
        h_text, factors_text = self.norm1_context(text, vec)
        parts = zip(self.attn.text_qkv(h_text), self.attn.qkv(h), strict=True)
        q, k, v = (torch.cat(pair, dim=1) for pair in parts)  # (B, T, H, D)
        seen = memory.attend(layer, q, k, v).flatten(2)  # (B, T, C)
        seen_text, seen = seen.split([text.shape[1], x.shape[1]], dim=1)
        x = _finish(x, self.attn.to_out[0](seen), factors, self.ff)
        return x, _finish(text, self.attn.to_add_out(seen_text), factors_text, self.ff_context)

    def image_alone(self, layer: int, x: Tensor, vec: Tensor, memory: SelfMemory, adapter: Adapter) -> Tensor:
        """Image tokens without text, their projections adapted."""
        h, factors = self.norm1(x, vec)
        out = self.attn.to_out[0](memory.attend(layer, *self.attn.qkv(h, adapter)).flatten(2))
        # The LoRA takes the projection's output, not its input: so it was trained (easycontrol.md §3).
        return _finish(x, out + adapter.add("proj", out), factors, self.ff)


def _finish(x: Tensor, attended: Tensor, factors: tuple[Tensor, ...], ff: FeedForward) -> Tensor:
    gate, shift, scale, gate_ff = factors
    x = x + gate * attended
    h = F.layer_norm(x.float(), x.shape[-1:], eps=EPS).to(x.dtype)
    return x + gate_ff * ff(h * (1 + scale) + shift)


class SingleBlock(nn.Module):
    """Attention and feed-forward side by side, over all tokens alike."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm = AdaNorm(dim, 3)
        self.attn = Attention(config)
        self.proj_mlp, self.proj_out = nn.Linear(dim, 4 * dim), nn.Linear(5 * dim, dim)

    def forward(self, layer: int, x: Tensor, vec: Tensor, memory: SelfMemory, adapter: Adapter | None = None) -> Tensor:
        h, (gate,) = self.norm(x, vec)
        seen = memory.attend(layer, *self.attn.qkv(h, adapter)).flatten(2)
        mlp = F.gelu(self.proj_mlp(h), approximate="tanh")
        return x + gate * self.proj_out(torch.cat([seen, mlp], dim=-1))


class FluxTransformer(nn.Module):
    """Predicts the flow of packed latents, and runs condition tokens alone for their keys and values."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = nn.Linear(config.in_channels, config.dim)
        self.context_embedder = nn.Linear(config.joint_attention_dim, config.dim)
        self.time_text_embed = TimeTextEmbedding(config)
        self.transformer_blocks = nn.ModuleList(DoubleBlock(config) for _ in range(config.num_layers))
        self.single_transformer_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.num_single_layers))
        self.norm_out = LastNorm(config.dim)
        self.proj_out = nn.Linear(config.dim, config.in_channels)

    def embed(self, sigma: Tensor, guidance: Tensor, pooled: Tensor) -> Tensor:
        """The conditioning vector [B, C] of noise levels [B], guidance [B] and pooled prompts [B, P]."""
        return self.time_text_embed(sigma, guidance, pooled)

    def forward(self, x: Tensor, text: Tensor, vec: Tensor, memory: SelfMemory) -> Tensor:
        """The flow [B, N, c] of packed latents x [B, N, c] under the prompt's tokens [B, Nt, J]."""
        x, text = self.x_embedder(x), self.context_embedder(text)
        for layer, double in enumerate(self.doubles):
            x, text = double(layer, x, text, vec, memory)
        joint = torch.cat([text, x], dim=1)  # (B, T, C)
        for layer, single in enumerate(self.singles, self.config.num_layers):
            joint = single(layer, joint, vec, memory)
        return self.proj_out(self.norm_out(joint[:, text.shape[1] :], vec)[0])

    def image_alone(self, x: Tensor, vec: Tensor, memory: SelfMemory, adapters: Sequence[Adapter]) -> None:
        """Packed latents x [B, N, c] through all layers without text, for what `memory` keeps of them.

        adapters: one a layer.
        """
        x = self.x_embedder(x)
        for layer, double in enumerate(self.doubles):
            x = double.image_alone(layer, x, vec, memory, adapters[layer])
        for layer, single in enumerate(self.singles, self.config.num_layers):
            x = single(layer, x, vec, memory, adapters[layer])

    @property
    def doubles(self) -> Sequence[DoubleBlock]:
        return cast(Sequence[DoubleBlock], self.transformer_blocks)

    @property
    def singles(self) -> Sequence[SingleBlock]:
        return cast(Sequence[SingleBlock], self.single_transformer_blocks)
