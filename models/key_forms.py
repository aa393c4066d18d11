"""The names one and the same tensor goes by: one table a model, from any published form to the one we load.

Wan's DiT and VAE are loaded under their original names, UMT5 under those of transformers. Shapes are the same in
all forms, nothing is transposed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_DIT = (  # diffusers -> original (wan_base.md §1)
    (r"condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"condition_embedder\.time_proj", "time_projection.1"),
    (r"(blocks\.\d+)\.attn1\.to_(q|k|v)", r"\1.self_attn.\2"),
    (r"(blocks\.\d+)\.attn2\.to_(q|k|v)", r"\1.cross_attn.\2"),
    (r"(blocks\.\d+)\.attn1\.to_out\.0", r"\1.self_attn.o"),
    (r"(blocks\.\d+)\.attn2\.to_out\.0", r"\1.cross_attn.o"),
    (r"(blocks\.\d+)\.attn1\.norm_(q|k)", r"\1.self_attn.norm_\2"),
    (r"(blocks\.\d+)\.attn2\.norm_(q|k)", r"\1.cross_attn.norm_\2"),
    (r"(blocks\.\d+)\.norm2", r"\1.norm3"),
    (r"(blocks\.\d+)\.ffn\.net\.0\.proj", r"\1.ffn.0"),
    (r"(blocks\.\d+)\.ffn\.net\.2", r"\1.ffn.2"),
    (r"(blocks\.\d+)\.scale_shift_table", r"\1.modulation"),
    (r"scale_shift_table", "head.modulation"),
    (r"proj_out", "head.head"),
)

_VAE = (  # diffusers -> original (wan_base.md §2); the decoder's flat stage numbers are put in by `vae_keys`
    (r"quant_conv", "conv1"),
    (r"post_quant_conv", "conv2"),
    (r"(encoder|decoder)\.conv_in", r"\1.conv1"),
    (r"(encoder|decoder)\.norm_out", r"\1.head.0"),
    (r"(encoder|decoder)\.conv_out", r"\1.head.2"),
    (r"(encoder|decoder)\.mid_block\.resnets\.0", r"\1.middle.0"),
    (r"(encoder|decoder)\.mid_block\.attentions\.0", r"\1.middle.1"),
    (r"(encoder|decoder)\.mid_block\.resnets\.1", r"\1.middle.2"),
    (r"encoder\.down_blocks", "encoder.downsamples"),
)

_RESIDUAL = (  # inside a residual block of the VAE, diffusers -> original
    ("norm1", "residual.0"),
    ("conv1", "residual.2"),
    ("norm2", "residual.3"),
    ("conv2", "residual.6"),
    ("conv_shortcut", "shortcut"),
)

_UMT5 = (  # original -> transformers (wan_base.md §4)
    (r"token_embedding", "shared"),
    (r"norm", "encoder.final_layer_norm"),
    (r"blocks\.(\d+)\.norm1", r"encoder.block.\1.layer.0.layer_norm"),
    (r"blocks\.(\d+)\.norm2", r"encoder.block.\1.layer.1.layer_norm"),
    (r"blocks\.(\d+)\.attn\.(q|k|v|o)", r"encoder.block.\1.layer.0.SelfAttention.\2"),
    (
        r"blocks\.(\d+)\.pos_embedding\.embedding",
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias",
    ),
    (r"blocks\.(\d+)\.ffn\.gate\.0", r"encoder.block.\1.layer.1.DenseReluDense.wi_0"),
    (r"blocks\.(\d+)\.ffn\.fc1", r"encoder.block.\1.layer.1.DenseReluDense.wi_1"),
    (r"blocks\.(\d+)\.ffn\.fc2", r"encoder.block.\1.layer.1.DenseReluDense.wo"),
)


def dit_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Wan DiT in either form -> original names."""
    if not any(key.startswith("condition_embedder.") for key in tensors):
        return dict(tensors)  # norm2 and norm3 mean other things in the two forms: never map half a file
    return {_rename(key, _DIT): tensor for key, tensor in tensors.items()}


def vae_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Wan VAE in either form -> original names."""
    if not any(key.startswith("encoder.conv_in.") for key in tensors):
        return dict(tensors)
    resnets = len(_numbers(r"decoder\.up_blocks\.0\.resnets\.(\d+)\..*", tensors))
    return {_vae_key(key, resnets): tensor for key, tensor in tensors.items()}


def _vae_key(key: str, resnets: int) -> str:
    """resnets: residual blocks of a decoder stage; in the original form its upsampler follows them in one flat list."""
    stage = re.fullmatch(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.(.*)", key)
    if stage:
        place = int(stage[1]) * (resnets + 1) + (resnets if stage[2] == "upsamplers" else int(stage[3]))
        key = f"decoder.upsamples.{place}.{stage[4]}"
    key = _rename(key, _VAE)
    block = re.fullmatch(
        r"((?:encoder|decoder)\.(?:downsamples|upsamples|middle)\.\d+)\.(\w+)\.(weight|bias|gamma)", key
    )
    name = dict(_RESIDUAL).get(block[2]) if block else None
    return f"{block[1]}.{name}.{block[3]}" if block and name else key


def umt5_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A UMT5 encoder in either form -> transformers' names, without the tied copy of the embedding."""
    renamed = dict(tensors)
    if "token_embedding.weight" in tensors:
        renamed = {_rename(key, _UMT5): tensor for key, tensor in tensors.items()}
    if "shared.weight" in renamed:
        renamed.pop("encoder.embed_tokens.weight", None)
    elif "encoder.embed_tokens.weight" in renamed:
        renamed["shared.weight"] = renamed.pop("encoder.embed_tokens.weight")
    return renamed


def _rename(key: str, table: Iterable[tuple[str, str]]) -> str:
    """The key with the first entry of the table that names whole path components at its start replaced."""
    for pattern, name in table:
        found = re.match(rf"{pattern}(?=\.|$)", key)
        if found:
            return found.expand(name) + key[found.end() :]
    return key


def _numbers(pattern: str, keys: Iterable[str]) -> set[int]:
    return {int(found[1]) for key in keys if (found := re.fullmatch(pattern, key))}
