"""Attention with one signature, whichever backend computes it.

B batch, Tq queries, Tk keys, H query heads, Hk key heads (H a multiple of Hk), D head dim.
"""

from __future__ import annotations

import importlib.util
import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

BACKENDS = ("flash", "sdpa", "reference")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(q k^T * scale) v, per head.

    q [B, Tq, H, D]; k, v [B, Tk, Hk, D]; returns [B, Tq, H, D] in q's dtype.
    causal: query i sees keys 0 .. Tk - Tq + i (aligned at the end, as with a cache in front).
    mask: bool [Tq, Tk], True where seen; instead of `causal`. scale: default D^-0.5.
    backend: one of BACKENDS, default the fastest that takes these tensors.
    """
    name = backend or ("sdpa" if mask is not None else default_backend(q))
    if causal and mask is not None:
        raise ValueError("attention is causal or has a mask, not both")
    if name == "flash" and mask is None:
        return _flash(q, k, v, causal, scale)
    if causal and q.shape[1] > 1:  # one query sees every key: no mask
        mask = causal_mask(q.shape[1], k.shape[1], q.device)
    if name == "sdpa":
        return _sdpa(q, k, v, mask, scale)
    if name == "reference":
        return reference_attention(q, k, v, mask=mask, scale=scale)
    if name == "flash":
        raise ValueError("the flash backend takes no mask")
    raise ValueError(f"unknown attention backend {name!r}; there are {', '.join(BACKENDS)}")


def default_backend(q: Tensor) -> str:
    """`flash` for half precision on CUDA where the package `flash-attn` is installed and runs, else `sdpa`."""
    return backend_of(q.device, q.dtype)


def backend_of(device: torch.device, dtype: torch.dtype) -> str:
    """As `default_backend`, for tensors like that."""
    is_half = dtype in (torch.float16, torch.bfloat16)
    return "flash" if device.type == "cuda" and is_half and _has_flash(device) else "sdpa"


@cache
def _has_flash(device: torch.device) -> bool:
    """Asked once a device and not at each layer: looking for a package that is not there searches the whole path."""
    return importlib.util.find_spec("flash_attn") is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def _flash(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> Tensor:
    from flash_attn import flash_attn_func

    return flash_attn_func(q, k, v, softmax_scale=scale, causal=causal)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
        attn_mask=mask, scale=scale, enable_gqa=q.shape[2] != k.shape[2],
    )  # (B, H, Tq, D)  # fmt: skip
    return out.transpose(1, 2)


def causal_mask(queries: int, keys: int, device: torch.device | None = None) -> Tensor:
    """bool [Tq, Tk], True where seen: the last query sees all keys."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """The same in float64, written out; for tests."""
    groups = q.shape[2] // k.shape[2]
    k64, v64 = (x.double().repeat_interleave(groups, dim=2) for x in (k, v))  # (B, Tk, H, D)
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k64) * (scale or 1 / math.sqrt(q.shape[-1]))
    if causal:
        mask = causal_mask(q.shape[1], k.shape[1], q.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v64).to(q.dtype)
