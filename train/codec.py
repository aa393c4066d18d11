"""The linear codec that defines the latents: PCA of 4 x 8 x 8 pixel blocks, in closed form.

A latent is 16 numbers for 4 frames x 8 x 8 pixels. As in Wan, a clip's first latent stands for one frame: that frame
is repeated four times before the projection, and its four reconstructions are averaged. The Wan VAE is then trained to
decode these latents and to encode into them, so the generator need not wait for it.

Legend: N clips, T pixel frames = 4 (L - 1) + 1, L latents, h = H / 8, w = W / 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TIME, SPACE, COMPONENTS = 4, 8, 16
CHROMA_WEIGHT = 1.7  # colour errors count more than brightness errors
SCALE_POWER = 0.7  # components are divided by std^0.7: coarse ones stay louder than fine ones
# Rows: luma, and two opponent colours, of RGB.
OPPONENT = torch.tensor([[0.299, 0.587, 0.114], [0.5, -0.419, -0.081], [-0.169, -0.331, 0.5]])


@dataclass(frozen=True)
class PatchCodec:
    """``mean`` [768], ``basis`` [16, 768] with orthonormal rows (weighted opponent colours), ``scale`` [16]."""

    mean: Tensor
    basis: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, pictures: Tensor) -> PatchCodec:
        """From clips float32 [N, T, 3, H, W] in 0..1, T a multiple of 4."""
        blocks = _blocks(pictures).reshape(-1, TIME * SPACE * SPACE * 3)
        mean = blocks.mean(0)
        covariance = (blocks - mean).T @ (blocks - mean) / len(blocks)
        values, vectors = torch.linalg.eigh(covariance)
        return cls(
            mean, vectors[:, -COMPONENTS:].flip(1).T.contiguous(), values[-COMPONENTS:].flip(0) ** (SCALE_POWER / 2)
        )

    def encode(self, pictures: Tensor) -> Tensor:
        """[N, T, 3, H, W] in 0..1 -> latents [N, L, 16, h, w]."""
        first = pictures[:, :1].expand(-1, TIME, -1, -1, -1)
        blocks = _blocks(torch.cat([first, pictures[:, 1:]], dim=1))
        return ((blocks - self.mean) @ self.basis.T / self.scale).permute(0, 1, 4, 2, 3).contiguous()

    def encode_later(self, pictures: Tensor) -> Tensor:
        """Frames from the middle of a clip, T a multiple of 4: [N, T, 3, H, W] -> [N, T / 4, 16, h, w]."""
        return ((_blocks(pictures) - self.mean) @ self.basis.T / self.scale).permute(0, 1, 4, 2, 3).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [N, L, 16, h, w] of a clip from its start -> [N, T, 3, H, W], not clamped."""
        pixels = _unblocks((latents.permute(0, 1, 3, 4, 2).float() * self.scale) @ self.basis + self.mean)
        return torch.cat([pixels[:, :TIME].mean(1, keepdim=True), pixels[:, TIME:]], dim=1)


def _colours() -> Tensor:
    return OPPONENT * torch.tensor([1.0, CHROMA_WEIGHT, CHROMA_WEIGHT])[:, None]


def _blocks(pictures: Tensor) -> Tensor:
    """[N, T, 3, H, W] -> [N, T / 4, h, w, 768] in weighted opponent colours."""
    n, t, _, height, width = pictures.shape
    x = torch.einsum("kc,ntchw->ntkhw", _colours(), pictures)
    x = x.reshape(n, t // TIME, TIME, 3, height // SPACE, SPACE, width // SPACE, SPACE)
    return x.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4)


def _unblocks(blocks: Tensor) -> Tensor:
    n, groups, h, w, _ = blocks.shape
    x = blocks.reshape(n, groups, h, w, TIME, 3, SPACE, SPACE).permute(0, 1, 4, 5, 2, 6, 3, 7)
    x = x.reshape(n, groups * TIME, 3, h * SPACE, w * SPACE)
    return torch.einsum("ck,ntkhw->ntchw", torch.linalg.inv(_colours()), x)
