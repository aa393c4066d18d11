"""Replays of ViD-GPT: its streams are Ca2-VDM's with a queue that holds them whole (vidgpt.md)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from riverrun.kernels.policies import Full
from riverrun.models.generation.ca2vdm_memory import CachedFrames, FrameCaches, WholeClip
from riverrun.models.generation.ca2vdm_net import SelfAttention, STDiTConfig
from riverrun.models.generation.iddpm import progressive_noise
from riverrun.models.weights import load_strict
from riverrun.tests.parity import ca2vdm
from riverrun.tests.parity.cases import Case


def attention_layer(case: Case) -> None:
    """One temporal layer: a whole clip, and the same over a cache; causal, and open inside the noisy chunk."""
    dim, heads, given, chunk = (case.meta[name] for name in ("dim", "heads", "prefix", "chunk"))
    layer = SelfAttention(dim, heads)
    load_strict(layer, case.tensors("w/"))
    prefix, noisy = case["in/x_prefix"], case["in/x_chunk"]
    case.close(layer.qkv(prefix)[..., dim:], "out/kv_prefix")
    case.close(layer.qkv(noisy)[..., dim:], "out/kv_chunk")
    for causality in ("causal", "partial"):
        config = STDiTConfig((1, len(prefix)), dim, 1, heads, patch=1, causality=causality, prefix_frames=0)
        caches = FrameCaches.empty(config, Full(given + chunk))
        clip = WholeClip(config, 1, given + chunk, given)
        whole = layer(torch.cat([prefix, noisy], dim=1), lambda *qkv, clip=clip: clip.temporal(0, *qkv))
        case.close(whole, f"out/{causality}_full")
        with CachedFrames(config, [caches], given, clean=True) as memory:
            layer(prefix, lambda *qkv, memory=memory: memory.temporal(0, *qkv))
        names = {"causal": ("causal_chunk_cached",) * 2}.get(
            causality, ("partial_chunk_cached_noisy", "partial_chunk_cached_clean")
        )
        for name, clean in zip(names, (False, True), strict=True):
            with CachedFrames(config, [caches], chunk, clean=clean) as memory:
                out = layer(noisy, lambda *qkv, memory=memory: memory.temporal(0, *qkv))
            case.close(out, f"out/{name}")


def noise(case: Case) -> None:
    """In one go, and frame by frame with the last one carried over."""
    alpha, fresh = case.meta["alpha"], case["in/noise"]
    case.close(progressive_noise(fresh, alpha), "out/progressive")
    frames, last = [], None
    for frame in fresh.split(2, dim=2):
        frames.append(progressive_noise(frame, alpha, last))
        last = frames[-1][:, :, -1]
    case.close(torch.cat(frames, dim=2), "out/progressive")


REPLAYS: dict[tuple[str, str], Callable[[Case], None]] = {
    ("vidgpt", "stream"): ca2vdm.stream,
    ("vidgpt", "equality"): ca2vdm.equality,
    ("vidgpt", "attention_layer"): attention_layer,
    ("vidgpt", "progressive_noise"): noise,
}
