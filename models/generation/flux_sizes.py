"""Sizes of FLUX models and of condition LoRAs read off their tensors, and what a session of EasyControl holds."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from riverrun.models.generation.easycontrol_conditions import ConditionLoRAs, entry_bytes
from riverrun.models.generation.easycontrol_state import EasyControlOptions
from riverrun.models.generation.flux import FLUX_DEV, FluxConfig
from riverrun.models.generation.flux_vae import FLUX_VAE, FluxVAEConfig
from riverrun.models.wan.sizes import SessionBytes


def infer_flux(tensors: Mapping[str, Tensor]) -> FluxConfig:
    """The configuration; where a tensor is missing, and for the channels of the three position ids, which no shape
    shows, the released one's. Of a head of another size all channels count as the first id's."""
    dim = _size(tensors, "x_embedder.weight", 0, FLUX_DEV.dim)
    head = _size(tensors, "transformer_blocks.0.attn.norm_q.weight", 0, FLUX_DEV.attention_head_dim)
    return FluxConfig(
        in_channels=_size(tensors, "x_embedder.weight", 1, FLUX_DEV.in_channels),
        num_layers=_count(tensors, "transformer_blocks"),
        num_single_layers=_count(tensors, "single_transformer_blocks"),
        attention_head_dim=head,
        num_attention_heads=dim // head,
        joint_attention_dim=_size(tensors, "context_embedder.weight", 1, FLUX_DEV.joint_attention_dim),
        pooled_projection_dim=_size(
            tensors, "time_text_embed.text_embedder.linear_1.weight", 1, FLUX_DEV.pooled_projection_dim
        ),
        guidance_embeds=any(".guidance_embedder." in key for key in tensors),
        axes_dims_rope=FLUX_DEV.axes_dims_rope if head == FLUX_DEV.attention_head_dim else (head,),
    )


def infer_flux_vae(tensors: Mapping[str, Tensor]) -> FluxVAEConfig:
    """The widths; groups, scale and shift, which no shape shows, are the released VAE's. Groups that don't divide the
    widths become one."""
    stages = range(_count(tensors, "encoder.down_blocks"))
    widths = tuple(_size(tensors, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 0, 1) for i in stages)
    fits = all(width % FLUX_VAE.norm_num_groups == 0 for width in widths)
    return FluxVAEConfig(
        block_out_channels=widths or FLUX_VAE.block_out_channels,
        layers_per_block=_count(tensors, "encoder.down_blocks.0.resnets"),
        latent_channels=_size(tensors, "decoder.conv_in.weight", 1, FLUX_VAE.latent_channels),
        norm_num_groups=FLUX_VAE.norm_num_groups if fits else 1,
        scaling_factor=FLUX_VAE.scaling_factor,
        shift_factor=FLUX_VAE.shift_factor,
    )


def infer_loras(tensors: Mapping[str, Tensor]) -> tuple[ConditionLoRAs, dict[str, int]]:
    """What a file of condition LoRAs should hold, on the meta device, and its sizes."""
    downs = {key: tensor for key, tensor in tensors.items() if key.endswith(".down.weight")}
    rank, dim = next(iter(downs.values())).shape if downs else (1, FLUX_DEV.dim)
    count = 1 + max((int(key.split(".")[-3]) for key in downs), default=0)
    layers = {name: _count(tensors, name) for name in ("transformer_blocks", "single_transformer_blocks")}
    config = FluxConfig(
        in_channels=FLUX_DEV.in_channels,
        num_layers=layers["transformer_blocks"],
        num_single_layers=layers["single_transformer_blocks"],
        attention_head_dim=dim,
        num_attention_heads=1,
        joint_attention_dim=FLUX_DEV.joint_attention_dim,
        pooled_projection_dim=FLUX_DEV.pooled_projection_dim,
        guidance_embeds=FLUX_DEV.guidance_embeds,
        axes_dims_rope=(dim,),
    )
    with torch.device("meta"):
        loras = ConditionLoRAs(config, rank, count)
    return loras, {"rank": rank, "conditions": count, "dim": dim, "layers": config.layers}


def condition_session(config: FluxConfig, height: int, width: int, dtype: torch.dtype) -> SessionBytes:
    """With one subject, of the released demo's size; spatial conditions leave nothing behind."""
    options = EasyControlOptions()
    rows = 1 + options.text_len
    parts = {
        "a subject's keys and values": entry_bytes(config, options.cond_size, dtype),
        "prompt": rows * max(config.joint_attention_dim, config.pooled_projection_dim) * dtype.itemsize,
        "subject": 3 * options.cond_size**2,
    }
    return SessionBytes(height, width, str(dtype).removeprefix("torch."), parts)


def _size(tensors: Mapping[str, Tensor], key: str, axis: int, default: int) -> int:
    return tensors[key].shape[axis] if key in tensors else default


def _count(tensors: Mapping[str, Tensor], folder: str) -> int:
    return len({found[1] for key in tensors if (found := re.match(rf"{re.escape(folder)}\.(\d+)\.", key))})
