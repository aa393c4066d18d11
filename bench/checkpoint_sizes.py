"""Bytes of a checkpoint of a session at released size, from shapes alone: no weights, no memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from riverrun.models.generation.ca2vdm_net import STDiTConfig
from riverrun.models.generation.ca2vdm_sizes import CHUNK, PAST, clip_session
from riverrun.models.generation.vidgpt import XL_2_TEXT, ViDGPTOptions
from riverrun.models.geometry.sizes import geometry_session
from riverrun.models.geometry.vggt import VGGTConfig
from riverrun.models.super_resolution.infvsr import INFVSR_DIT
from riverrun.models.wan.dit import WAN_1_3B
from riverrun.models.wan.sizes import SINK, WINDOW, dit_session, vae_session
from riverrun.models.wan.vae import WAN21_VAE

BF16 = torch.bfloat16


@dataclass(frozen=True)
class Released:
    """One model. exact, recache: bytes; None where there is no such kind."""

    model: str
    session: str
    exact: int
    recache: int | None


def released() -> list[Released]:
    return [_longlive(), _ca2vdm(), _vidgpt(), _infvsr(), _infinitevggt(), *_texts()]


def _longlive() -> Released:
    parts = dit_session(WAN_1_3B, 480, 832, BF16).parts
    sources = parts["prompt embedding"] + parts["clean latents"]
    cache, history = parts["self-attention cache"], vae_session(WAN21_VAE, 480, 832, BF16).parts["decoder history"]
    return Released("LongLive 1.3B", "832x480, bf16", cache + history + sources, cache * SINK // WINDOW + sources)


def _ca2vdm() -> Released:
    config = STDiTConfig()
    past = 2 * PAST * config.in_channels * math.prod(config.latent_size) * 4
    caches = sum(clip_session(config, 2, PAST + CHUNK).values())
    return Released("Ca2-VDM XL/2", "256x256, fp16", caches + past, past)


def _vidgpt() -> Released:
    config, frames = XL_2_TEXT, ViDGPTOptions().frames
    parts = clip_session(config, 2, frames)
    caption = config.text_len * config.caption_channels * 2
    past = (frames + 1) * config.in_channels * math.prod(config.latent_size) * 4 + caption  # and the noise's tail
    caches = sum(size for name, size in parts.items() if name != "caption")
    return Released("ViD-GPT XL/2", f"256x256, fp16, {frames} frames", caches + past, past)


def _infvsr() -> Released:
    cache = dit_session(INFVSR_DIT, 480, 832, BF16, window=3, sink=0).parts["self-attention cache"]
    context = INFVSR_DIT.text_len * INFVSR_DIT.text_dim * 2
    waiting = 28 * 120 * 208 * 3
    return Released(
        "InfVSR", "832x480 out, bf16", cache + vae_session(WAN21_VAE, 480, 832, BF16).total + context + waiting, None
    )


def _infinitevggt() -> Released:
    return Released(
        "InfiniteVGGT", "518x392, bf16, as described", geometry_session(VGGTConfig(), 392, 518, BF16).total, None
    )


def _texts() -> list[Released]:
    """Layers x key heads x head dim, keys and values, bf16; 8 bytes an id."""
    sizes = {"Qwen2.5-7B": 28 * 4 * 128, "Qwen3-8B": 36 * 8 * 128}
    return [Released(name, "4,096 tokens, bf16", (4 * row + 8) * 4096, 8 * 4096) for name, row in sizes.items()]
