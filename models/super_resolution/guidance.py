"""What stands for the prompt in InfVSR: tokens of one low-resolution reference frame (infvsr_flashvsr.md A1 §5).

Weights: the recognise-anything file `ram_swin_large_14m.pth`, with the degradation-aware adapter `DAPE.pth` (from
SeeSR) merged into it. Key names are theirs.

B frames, N = 1 + tokens of the last Swin stage (145 in the release).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riverrun.models.base import BadRequest
from riverrun.models.super_resolution.swin import SWIN_L, Swin, SwinConfig
from riverrun.models.weights import shortened

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DAPE_SCALE = 1 / 8
"""Fixed in the official code, whatever the adapter's rank."""


class VisualGuidance(nn.Module):
    """A frame's context for the transformer: (B, N, context_dim)."""

    def __init__(self, config: SwinConfig = SWIN_L, context_dim: int = 512) -> None:
        super().__init__()
        self.config = config
        self.visual_encoder = Swin(config)
        self.image_proj = nn.Linear(config.out_dim, context_dim)

    @property
    def tokens(self) -> int:
        """N."""
        return 1 + self.config.tokens

    def forward(self, frames: Tensor) -> Tensor:
        """frames: [B, 3, H, W] in [0, 1], of any size."""
        return self.image_proj(self.visual_encoder(self.prepare(frames).to(self.image_proj.weight.dtype)))

    def prepare(self, frames: Tensor) -> Tensor:
        """Squashed to a square of img_size, and normalised: float32 [B, 3, img_size, img_size]."""
        size = (self.config.img_size, self.config.img_size)
        resized = F.interpolate(frames.float(), size, mode="bilinear", align_corners=False, antialias=True)
        mean, std = (torch.tensor(v, device=frames.device)[:, None, None] for v in (MEAN, STD))
        return (resized - mean) / std


def trunk_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a recognise-anything checkpoint that is used: trunk and projection, without computed tables."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith(("visual_encoder.", "image_proj."))
        and not name.endswith(("relative_position_index", "attn_mask"))
    }


def merge_dape(tensors: Mapping[str, Tensor], adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's low-rank changes added to the query and value rows of every attention, in float32 and cast back.

    For a weight [3d, d] the adapter has `lora_A` [2r, d] and `lora_B` [2d, r]: first halves for the queries, second
    ones for the values. Raises BadRequest for missing halves, unknown layers and shapes that don't fit.
    """
    merged = dict(tensors)
    layers = {name.rsplit(".", 1)[0] for name in adapter if name.endswith((".lora_A", ".lora_B"))}
    wanted = {f"{layer}.{part}" for layer in layers for part in ("lora_A", "lora_B")}
    if wrong := sorted(wanted ^ set(adapter)):
        raise BadRequest(f"{len(wrong)} tensors of the adapter have no other half: {shortened(wrong)}")
    if unknown := sorted(layer for layer in layers if f"{layer}.weight" not in merged):
        raise BadRequest(f"the adapter changes {len(unknown)} layers that aren't there: {shortened(unknown)}")
    for layer in layers:
        weight, down, up = merged[f"{layer}.weight"], adapter[f"{layer}.lora_A"], adapter[f"{layer}.lora_B"]
        dim, rank = weight.shape[1], up.shape[1]
        if weight.shape[0] != 3 * dim or down.shape != (2 * rank, dim) or up.shape[0] != 2 * dim:
            raise BadRequest(f"{layer}: {tuple(weight.shape)} takes no {tuple(down.shape)} {tuple(up.shape)}")
        changed = weight.float().clone()
        changed[:dim] += DAPE_SCALE * (up[:dim].float() @ down[:rank].float())
        changed[2 * dim :] += DAPE_SCALE * (up[dim:].float() @ down[rank:].float())
        merged[f"{layer}.weight"] = changed.to(weight.dtype)
    return merged
