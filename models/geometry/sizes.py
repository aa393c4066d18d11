"""A VGGT's sizes read off its tensors, and what a session of InfiniteVGGT holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from riverrun.models.geometry.fitting import network_size
from riverrun.models.geometry.infinitevggt_state import InfiniteVGGTParams
from riverrun.models.geometry.tracker import TrackConfig
from riverrun.models.geometry.vggt import RELEASED_BUDGET, VGGTConfig, rolling_stream
from riverrun.models.wan.sizes import SessionBytes

HEAD_DIM = {"dino": 64, "camera": 128}
"""Of the released network's parts whose tensors don't show it."""


def infer_vggt(tensors: Mapping[str, Tensor]) -> VGGTConfig:
    """The configuration; what the tensors don't show (heads of embedder and camera trunk, layers that the dense heads
    read, radius of the tracker's windows) is the released network's where that fits."""
    released = VGGTConfig()

    def size(key: str, axis: int, default: int) -> int:
        return tensors[key].shape[axis] if key in tensors and tensors[key].ndim > axis else default

    def count(prefix: str) -> int:
        numbers = {key.removeprefix(prefix).split(".")[0] for key in tensors if key.startswith(prefix)}
        return len(numbers)

    def ratio(block: str, width: int) -> float:
        return size(f"{block}.0.mlp.fc1.weight", 0, 4 * width) / width

    def heads(part: str, width: int) -> int:
        return max(1, width // HEAD_DIM[part])

    inside = "aggregator."
    dim = size(f"{inside}camera_token", 3, released.dim)
    patch = size(f"{inside}patch_embed.patch_embed.proj.weight", 2, released.patch)
    places = size(f"{inside}patch_embed.pos_embed", 1, 1 + (released.image // released.patch) ** 2) - 1
    depth = count(f"{inside}frame_blocks.")
    return VGGTConfig(
        image=math.isqrt(places) * patch,
        patch=patch,
        dim=dim,
        depth=depth,
        heads=dim // size(f"{inside}frame_blocks.0.attn.q_norm.weight", 0, dim // released.heads),
        mlp_ratio=ratio(f"{inside}frame_blocks", dim),
        registers=size(f"{inside}register_token", 2, released.registers),
        dino_depth=count(f"{inside}patch_embed.blocks."),
        dino_heads=heads("dino", dim),
        dino_mlp_ratio=ratio(f"{inside}patch_embed.blocks", dim),
        dino_registers=size(f"{inside}patch_embed.register_tokens", 1, released.dino_registers),
        camera_depth=count("camera_head.trunk."),
        camera_heads=heads("camera", 2 * dim),
        camera_mlp_ratio=ratio("camera_head.trunk", 2 * dim),
        dpt_features=size("depth_head.scratch.output_conv1.weight", 1, released.dpt_features),
        dpt_channels=tuple(
            size(f"depth_head.projects.{j}.weight", 0, channels) for j, channels in enumerate(released.dpt_channels)
        ),
        dpt_layers=tuple(min(layer, depth - 1) for layer in released.dpt_layers),
        track=_track(size, count) if count("track_head.") else None,
    )


def _track(size: Callable[[str, int, int], int], count: Callable[[str], int]) -> TrackConfig:
    released, tracker = TrackConfig(), "track_head.tracker."
    window = (2 * released.radius + 1) ** 2
    seen = size(f"{tracker}corr_mlp.fc1.weight", 1, released.levels * window)
    return TrackConfig(
        features=size(f"{tracker}fmap_norm.weight", 0, released.features),
        levels=seen // window if seen % window == 0 else seen,
        radius=released.radius if seen % window == 0 else 0,
        hidden=size(f"{tracker}updateformer.input_transform.weight", 0, released.hidden),
        depth=count(f"{tracker}updateformer.time_blocks."),
        virtual=size(f"{tracker}updateformer.virual_tracks", 1, released.virtual),
    )


def geometry_session(config: VGGTConfig, height: int, width: int, dtype: torch.dtype) -> SessionBytes:
    """Of frames of height x width pixels under the default parameters."""
    params = InfiniteVGGTParams()
    size = network_size(height, width, config.image, config.patch)
    stream = rolling_stream(config, size, RELEASED_BUDGET, params.camera_frames, dtype, "meta")
    parts = {"token cache": stream.tokens.nbytes, "camera cache": stream.poses.nbytes}
    return SessionBytes(height, width, str(dtype).removeprefix("torch."), parts)
