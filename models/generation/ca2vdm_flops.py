"""What a call of CausalSTDiT2 costs, counted from sizes alone (ca2vdm.md §10).

FLOPs are 2 x multiply-accumulates of every matrix product and convolution; softmax, norms and activations are left
out. C width, S places of a frame, P prefix frames. Batch 1. Counts are those of the official network, which projects
the caption and the keys of prefix frames again at each call; ours keeps the caption's.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from riverrun.models.generation.ca2vdm_net import STDiTConfig


@dataclass(frozen=True)
class CallFlops:
    """One call, by part."""

    spatial: int
    prefix_spatial: int
    temporal_linear: int
    temporal_attn: int
    cross: int
    mlp: int
    other: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def denoise_call(config: STDiTConfig, past: int, frames: int, text_tokens: int = 0) -> CallFlops:
    """`frames` noisy frames over a cache of `past` ones. text_tokens: valid ones of the caption, 0: no text."""
    return _call(config, frames, frames * (past + frames), 1, text_tokens, writes=False, builds_context=False)


def write_call(config: STDiTConfig, past: int, frames: int, text_tokens: int = 0) -> CallFlops:
    """The pass that adds finished frames to the cache."""
    return _call(config, frames, frames * (past + frames), 1, text_tokens, writes=True, builds_context=True)


def clip_call(
    config: STDiTConfig,
    past: int,
    frames: int,
    text_tokens: int = 0,
    skips: bool = False,
    timestep_per_frame: bool = True,
) -> CallFlops:
    """No cache: all past + frames computed. skips: a causal kernel that leaves out masked pairs."""
    total = past + frames
    pairs = total * (total + 1) // 2 if skips else total**2
    timesteps = total if timestep_per_frame else 1
    return _call(config, total, pairs, timesteps, text_tokens, writes=False, builds_context=True)


def _call(
    config: STDiTConfig,
    frames: int,
    pairs: int,
    timesteps: int,
    text_tokens: int,
    *,
    writes: bool,
    builds_context: bool,
) -> CallFlops:
    """pairs: of query and key frames at each place. timesteps: different ones embedded."""
    width, places, depth = config.hidden_size, config.places, config.depth
    tokens, square = frames * places, width**2
    full = depth - 1 if writes else depth  # blocks that run to their end
    prefix = 0
    if config.prefix_frames:
        prefix = depth * tokens * (8 * square + 4 * config.prefix_frames * places * width)
        prefix += depth * tokens * config.prefix_frames * 6 * square if builds_context else 0
    cross = tokens * (4 * square + 4 * text_tokens * width) + 4 * text_tokens * square if text_tokens else 0
    return CallFlops(
        spatial=depth * tokens * (8 * square + 4 * places * width),
        prefix_spatial=prefix,
        temporal_linear=depth * tokens * 8 * square,
        temporal_attn=depth * 4 * places * width * pairs,
        cross=full * cross,
        mlp=full * tokens * 4 * config.mlp_ratio * square,
        other=_ends(config, tokens, timesteps, text_tokens > 0, has_head=not writes),
    )


def _ends(config: STDiTConfig, tokens: int, timesteps: int, has_text: bool, has_head: bool) -> int:
    """Patch embedding, head, timestep and caption embedders, and the merge of the mask channel."""
    width, patch = config.hidden_size, config.in_channels * config.patch**2
    flops = 2 * tokens * patch * width + 2 * timesteps * (256 * width + 7 * width**2)
    if has_head:
        flops += 2 * tokens * width * 2 * patch
    if has_text:
        flops += 2 * config.text_len * (config.caption_channels * width + width**2)
    if config.mask_channel:
        flops += 2 * tokens * (width + 1) * width
    return flops
