"""Sizes of Wan models read off their tensors, and what one streaming session costs, from shapes alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from riverrun.kernels.cache import CacheSpec, KVCache
from riverrun.kernels.histories import Histories
from riverrun.kernels.policies import SinkWindow
from riverrun.models.wan.dit import WAN_1_3B, WanConfig
from riverrun.models.wan.vae import WAN21_VAE, VAEConfig, WanVAE

HEAD_DIM = 128
"""Of every released Wan model; shapes don't show it."""
WINDOW, SINK = 12, 3
"""Latent frames LongLive keeps (longlive.md §2)."""


@dataclass(frozen=True)
class SessionBytes:
    """What one session holds between steps, at height x width pixels: bytes of each part."""

    height: int
    width: int
    dtype: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {human(size)}" for name, size in self.parts.items())
        return f"{self.width}x{self.height} in {self.dtype}: {parts}"


def infer_dit(tensors: Mapping[str, Tensor]) -> WanConfig:
    """The configuration of a transformer with original names; what its tensors don't show is the released model's.

    Heads are assumed to be 128 wide where that divides, else one is assumed (names and shapes are the same).
    """

    def size(key: str, axis: int, default: int) -> int:
        return tensors[key].shape[axis] if key in tensors and tensors[key].ndim > axis else default

    known = WAN_1_3B
    dim = size("patch_embedding.weight", 0, known.dim)
    patch = tuple(tensors["patch_embedding.weight"].shape[2:]) if "patch_embedding.weight" in tensors else ()
    patch = patch if len(patch) == 3 else known.patch_size
    layers = {int(found[1]) for key in tensors if (found := re.match(r"blocks\.(\d+)\.", key))}
    volume = patch[0] * patch[1] * patch[2]
    return WanConfig(
        dim=dim,
        ffn_dim=size("blocks.0.ffn.0.weight", 0, known.ffn_dim),
        num_heads=dim // HEAD_DIM if dim % HEAD_DIM == 0 else 1,
        num_layers=max(layers, default=-1) + 1,
        in_dim=size("patch_embedding.weight", 1, known.in_dim),
        out_dim=size("head.head.weight", 0, known.out_dim * volume) // volume,
        freq_dim=size("time_embedding.0.weight", 1, known.freq_dim),
        text_dim=size("text_embedding.0.weight", 1, known.text_dim),
        text_len=known.text_len,
        patch_size=patch,
    )


def infer_vae(tensors: Mapping[str, Tensor]) -> VAEConfig:
    """The configuration of a VAE with original names; its normalisation is the released one where that fits."""
    known = WAN21_VAE
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    dim = shapes.get("encoder.conv1.weight", (known.dim,))[0]
    z_dim = shapes.get("conv2.weight", (known.z_dim,))[0]
    resamples = _places(r"encoder\.downsamples\.(\d+)\.resample\.1\.weight", shapes)
    doubled = _places(r"encoder\.downsamples\.(\d+)\.time_conv\.weight", shapes)
    blocks = resamples[0] if resamples else known.num_res_blocks
    last = len(resamples) * (blocks + 1)  # first block of the last stage, which has no resample
    widths = [
        shapes.get(f"encoder.downsamples.{place}.residual.6.weight", (dim,))[0]
        for place in (*(place - 1 for place in resamples), last)
    ]
    normalised = z_dim == known.z_dim
    return VAEConfig(
        dim=dim,
        z_dim=z_dim,
        dim_mult=tuple(width // dim for width in widths),
        num_res_blocks=blocks,
        temporal_downsample=tuple(place in doubled for place in resamples),
        mean=known.mean if normalised else (0.0,) * z_dim,
        std=known.std if normalised else (1.0,) * z_dim,
    )


def _places(pattern: str, names: Mapping[str, object]) -> list[int]:
    return sorted(int(found[1]) for name in names if (found := re.fullmatch(pattern, name)))


def dit_session(
    config: WanConfig,
    height: int,
    width: int,
    dtype: torch.dtype,
    window: int = WINDOW,
    sink: int = SINK,
    spatial_factor: int = WAN21_VAE.spatial_factor,
    latents: int | None = None,
) -> SessionBytes:
    """Cached keys and values of `window` latent frames, prompt and its keys, and the clean latents for a recache.

    height, width: pixels. window, sink: latent frames. spatial_factor: the VAE's, pixels a latent along each side.
    latents: clean ones kept; default as many as the released VAE's decoder reaches back.
    """
    latents = max(window, decoder_reach(WAN21_VAE)) if latents is None else latents
    latent = (height // spatial_factor, width // spatial_factor)
    tokens = config.tokens_per_frame(*latent)
    spec = CacheSpec("self", config.num_layers, config.num_heads, config.head_dim, "normed", page=tokens)
    cache = KVCache(spec, SinkWindow(window * tokens, sink * tokens), dtype, "meta")
    parts = {
        "self-attention cache": cache.nbytes,
        "text keys and values": 2 * config.num_layers * config.text_len * config.dim * dtype.itemsize,
        "prompt embedding": config.text_len * config.text_dim * dtype.itemsize,
        "clean latents": latents * config.in_dim * latent[0] * latent[1] * dtype.itemsize,
    }
    return SessionBytes(height, width, str(dtype).removeprefix("torch."), parts)


def decoder_reach(config: VAEConfig) -> int:
    """Newest latents that tell all the decoder remembers; a first one that is decoded as a stream's first included."""
    reach, rate = 2.0 + 4 * 2, 1  # conv1 and the two blocks of the middle; a causal convolution looks two frames back
    for doubles in (*reversed(config.temporal_downsample), False):
        reach += 4 * (config.num_res_blocks + 1) / rate
        if doubles:
            reach, rate = reach + 2 / rate, 2 * rate
    return math.ceil(reach + 2 / rate) + 1


@lru_cache(maxsize=64)
def vae_session(config: VAEConfig, height: int, width: int, dtype: torch.dtype) -> SessionBytes:
    """What the decoder remembers, and where video comes in the encoder, measured by streaming through no memory."""
    with torch.device("meta"):
        vae = WanVAE(config).to(dtype)
    latent = (height // config.spatial_factor, width // config.spatial_factor)
    decoder, encoder = Histories(), Histories()
    for frames in (1, 2):  # a slot holds two frames from the third on
        vae.decode(torch.empty((1, frames, config.z_dim, *latent), device="meta", dtype=dtype), decoder)
    clip = (1, 2 * config.temporal_factor + 1, 3, height, width)
    vae.encode(torch.empty(clip, device="meta", dtype=dtype), encoder)
    parts = {"decoder history": decoder.nbytes, "encoder history": encoder.nbytes}
    return SessionBytes(height, width, str(dtype).removeprefix("torch."), parts)


def human(size: int) -> str:
    """Bytes in the largest decimal unit that leaves at least 0.5."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= factor / 2:
            return f"{size / factor:.2f} {unit}"
    return f"{size} B"
