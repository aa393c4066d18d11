"""A language model's sizes, read off the shapes of its weights (`riverrun models check`)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from riverrun.models.text.lm_config import LMConfig
from riverrun.models.text.rotary import Rotary

EMBEDDING = "embed_tokens.weight"


def infer_lm(tensors: Mapping[str, Tensor]) -> tuple[str, LMConfig]:
    """(family, config) of Llama, Qwen2, Qwen3 or Phi-3 weights in any published form.

    Widths are what the shapes say. How they divide into heads is seen only where each head has a norm; elsewhere keys
    count as one head. Positions, rotary embedding and eps aren't seen at all. Raises KeyError for a part of a model.
    """
    bare = {key.removeprefix("model."): tensor for key, tensor in tensors.items()}
    first = {key.removeprefix("layers.0."): t for key, t in bare.items() if key.startswith("layers.0.")}
    fused, qk_norm = "self_attn.qkv_proj.weight" in first, "self_attn.q_norm.weight" in first
    width, queries = first["self_attn.o_proj.weight"].shape
    keys = (first["self_attn.qkv_proj.weight"].shape[0] - queries) // 2 if fused else _rows(first, "k_proj")
    head_dim = first["self_attn.q_norm.weight"].shape[0] if qk_norm else keys
    qkv_bias = any(key.endswith("_proj.bias") and "o_proj" not in key for key in first)
    out_bias = "self_attn.o_proj.bias" in first
    family = "phi3" if fused else "qwen3" if qk_norm else "qwen2" if qkv_bias and not out_bias else "llama"
    return family, LMConfig(
        vocab_size=bare[EMBEDDING].shape[0],
        hidden_size=width,
        intermediate_size=first["mlp.down_proj.weight"].shape[1],
        num_hidden_layers=len({found[1] for key in bare if (found := re.match(r"layers\.(\d+)\.", key))}),
        num_attention_heads=queries // head_dim,
        num_key_value_heads=keys // head_dim,
        head_dim=head_dim,
        rms_norm_eps=1e-6,
        max_position_embeddings=0,
        rotary=Rotary(head_dim),
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        qk_norm=qk_norm,
        fused=fused,
        tied="lm_head.weight" not in bare,
    )


def _rows(first: Mapping[str, Tensor], name: str) -> int:
    return first[f"self_attn.{name}.weight"].shape[0]
