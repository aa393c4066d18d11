"""One decoder-only transformer for Llama, Qwen2, Qwen3 and Phi-3 checkpoints, under transformers' own keys.

What a token sees is decided by the `SelfMemory` handed to `forward`; the model has no state and knows no positions:
the memory rotates. So one set of weights serves plain decoding, drafts, windows of masks and pruned caches.

B batch, T tokens, V vocabulary, C model dim, H query heads, K key heads, D head dim.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riverrun.kernels.attention import attention
from riverrun.kernels.rope import rotate_halves
from riverrun.models.text.lm_config import LMConfig
from riverrun.models.text.rotary import Rotary
from riverrun.models.wan.dit import RMSNorm


class SelfMemory(Protocol):
    """What attention sees, and at which positions."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, T, H, D], k and v [B, T, K, D], after the q and k norms and before RoPE; returns [B, T, H, D]."""


class WholeMemory:
    """No cache: the T tokens of the call see each other, causally or as `mask` says (training, reference passes)."""

    def __init__(self, rotary: Rotary, positions: Tensor, mask: Tensor | None = None) -> None:
        """positions [T] of the tokens; mask bool [T, T], True where the query (row) sees the key, None: causal."""
        self.turn = rotary.turn(positions)
        self.mask = mask

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = rotate_halves(q, self.turn), rotate_halves(k, self.turn)
        return attention(q, k, v, causal=self.mask is None, mask=self.mask)


class Attention(nn.Module):
    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        width, queries = config.hidden_size, config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.sizes = [queries, keys, keys]
        if config.fused:
            self.qkv_proj = nn.Linear(width, sum(self.sizes), bias=config.qkv_bias)
        else:
            self.q_proj = nn.Linear(width, queries, bias=config.qkv_bias)
            self.k_proj = nn.Linear(width, keys, bias=config.qkv_bias)
            self.v_proj = nn.Linear(width, keys, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, width, bias=config.out_bias)
        if config.qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(config.head_dim, config.rms_norm_eps) for _ in range(2))

    def forward(self, x: Tensor, memory: SelfMemory, layer: int) -> Tensor:
        flat = self.qkv_proj(x).split(self.sizes, -1) if self.config.fused else self._apart(x)
        q, k, v = (part.unflatten(-1, (-1, self.config.head_dim)) for part in flat)  # (B, T, H or K, D)
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return self.o_proj(memory.attend(layer, q, k, v).flatten(2))

    def _apart(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.fused = config.fused
        if self.fused:
            self.gate_up_proj = nn.Linear(width, 2 * inner, bias=False)
        else:
            self.gate_proj, self.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1) if self.fused else (self.gate_proj(x), self.up_proj(x))
        return self.down_proj(F.silu(gate) * up)


class Layer(nn.Module):
    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, memory: SelfMemory, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), memory, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and final norm: what transformers keeps under `model.`"""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, ids: Tensor, memory: SelfMemory) -> Tensor:
        x = self.embed_tokens(ids)  # (B, T, C)
        for number, layer in enumerate(self.layers):
            x = layer(x, memory, number)
        return self.norm(x)


class CausalLM(nn.Module):
    """Weights of one language model."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tied:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, ids: Tensor, memory: SelfMemory) -> Tensor:
        """ids int64 [B, T]; returns logits, float32 [B, T, V]."""
        return self.logits(self.hidden(ids, memory))

    def hidden(self, ids: Tensor, memory: SelfMemory) -> Tensor:
        """ids int64 [B, T]; returns [B, T, C] after the final norm. For prompts: most rows need no logits."""
        return self.model(ids, memory)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., C]; returns float32 [..., V]."""
        weight = self.model.embed_tokens.weight if self.config.tied else self.lm_head.weight
        return F.linear(hidden, weight).float()

    @property
    def device(self) -> torch.device:
        return self.model.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.norm.weight.dtype
