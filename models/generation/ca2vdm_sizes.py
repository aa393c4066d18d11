"""Sizes of a CausalSTDiT2 read off its tensors, and what one session of it holds, from shapes alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from riverrun.models.generation.ca2vdm_net import STDiTConfig

HEAD_DIM = 72
"""Of the released size XL/2; shapes don't show it."""
PAST, CHUNK = 25, 8
"""Frames of the queue and of a chunk in the repository's SkyTimelapse runs."""


def infer_stdit(tensors: Mapping[str, Tensor]) -> STDiTConfig:
    """What the tensors show; the rest (positions, causality, scales, prefix frames if there are any) is XL/2's.

    Heads are assumed to be 72 wide where that divides, else one is assumed (names and shapes are the same).
    """
    known = STDiTConfig()

    def size(key: str, axis: int, default: int) -> int:
        return tensors[key].shape[axis] if key in tensors and tensors[key].ndim > axis else default

    width = size("x_embedder.proj.weight", 0, known.hidden_size)
    patch = size("x_embedder.proj.weight", 4, known.patch)
    layers = {int(found[1]) for key in tensors if (found := re.match(r"blocks\.(\d+)\.", key))}
    square = math.isqrt(size("pos_embed", 1, known.places)) * patch  # Open-Sora's files don't show its sides
    return STDiTConfig(
        latent_size=(size("bov_token", 1, square), size("bov_token", 2, square)),
        hidden_size=width,
        depth=len(layers),
        num_heads=1 if width % HEAD_DIM else width // HEAD_DIM,
        in_channels=size("x_embedder.proj.weight", 1, known.in_channels),
        patch=patch,
        mlp_ratio=size("blocks.0.mlp.fc1.weight", 0, known.mlp_ratio * width) // width,
        caption_channels=size("y_embedder.y_proj.fc1.weight", 1, 0),
        text_len=size("y_embedder.y_embedding", 0, known.text_len),
        mask_channel="blocks.0.attn_temp_pre_merge.weight" in tensors,
        table_len=size("pos_embed_temporal", 1, known.table_len),
        prefix_frames=known.prefix_frames if any(".attn_cf." in key for key in tensors) else 0,
    )


def clip_session(config: STDiTConfig, itemsize: int, frames: int, guidance_rows: int = 1) -> dict[str, int]:
    """Bytes of each part of a session between steps, its caption of full length.

    itemsize: of an element. frames: capacity of the temporal cache.
    """
    slot = 2 * config.depth * config.hidden_size * guidance_rows * itemsize  # keys and values of one place
    parts = {"temporal cache": slot * frames * config.places}
    if config.prefix_frames:
        parts["prefix cache"] = slot * config.prefix_frames * config.places
    if config.caption_channels:
        parts["caption"] = (slot + config.caption_channels * itemsize) * config.text_len
    return parts
