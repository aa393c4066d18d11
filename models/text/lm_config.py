"""Sizes of a decoder-only language model, read from the config.json that lies beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from riverrun.models.base import BadRequest
from riverrun.models.text.rotary import Rotary, rotary

WEDLM_MASK = 151_665
"""The mask token of released WeDLM checkpoints whose config names none (wedlm.md §4)."""
FAMILIES = ("llama", "qwen2", "qwen3", "phi3", "wedlm")


@dataclass(frozen=True)
class LMConfig:
    """What `CausalLM` is built from.

    qkv_bias, out_bias: biases of the attention's projections. qk_norm: RMS norms over each head of q and k.
    fused: q, k, v are one matrix and gate and up another (Phi-3). tied: the output matrix is the embedding.
    mask_token_id: of models trained to fill masks (WeDLM).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rotary: Rotary
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    fused: bool = False
    tied: bool = False
    mask_token_id: int | None = None

    def kv_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        """Bytes of the keys and values of so many tokens, all layers."""
        values = 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim
        return tokens * values * dtype.itemsize

    @classmethod
    def read(cls, config: Mapping[str, Any], family: str | None = None) -> LMConfig:
        """From a transformers config.json. family: one of FAMILIES, default its `model_type`.

        Raises BadRequest for another architecture, or for a variant of these that isn't built in.
        """
        kind = family or config.get("model_type")
        if kind not in FAMILIES:
            raise BadRequest(f"model_type must be one of {', '.join(FAMILIES)}, got {kind!r}")
        _refuse_variants(config, kind)
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        qk_norm = kind == "qwen3" or (kind == "wedlm" and bool(config.get("qk_norm")))
        # Qwen2 has its biases whatever its config says, and on q, k, v only; WeDLM-7B is a Qwen2, WeDLM-8B a Qwen3.
        stated = bool(config.get("attention_bias", kind == "wedlm" and not qk_norm))
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        return cls(
            **{name: config[name] for name in sizes},
            num_attention_heads=heads,
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            rms_norm_eps=config.get("rms_norm_eps", 1e-6),
            max_position_embeddings=config["max_position_embeddings"],
            rotary=rotary(config, head_dim),
            qkv_bias=stated or kind == "qwen2",
            out_bias=stated and kind in ("llama", "qwen3"),
            qk_norm=qk_norm,
            fused=kind == "phi3",
            tied=bool(config.get("tie_word_embeddings", False)),
            mask_token_id=config.get("mask_token_id", WEDLM_MASK if kind == "wedlm" else None),
        )


def _refuse_variants(config: Mapping[str, Any], kind: str) -> None:
    if (act := config.get("hidden_act", "silu")) != "silu":
        raise BadRequest(f"hidden_act must be silu, got {act!r}")
    if config.get("mlp_bias"):
        raise BadRequest("biases in the feed-forward layers (mlp_bias) aren't built in")
    window = config.get("sliding_window") if kind == "phi3" else None
    if config.get("use_sliding_window") or (window or 1 << 62) < config["max_position_embeddings"]:
        raise BadRequest("attention in a sliding window isn't built in for language models")
