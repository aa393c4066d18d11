"""The one-step, chunk-causal restorer of InfVSR on Wan's transformer (infvsr_flashvsr.md A1 §2, §4).

Paper: arXiv 2510.00948. A chunk goes through the transformer once and sees itself and the chunks right before it,
whose keys are kept after RMSNorm and RoPE at their frames' numbers since the scene began. No noise is ever drawn.

B scenes in one batch, F latent frames a chunk, C latent channels, S tokens a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from riverrun.kernels.cache import CacheSpec, KVCache
from riverrun.kernels.policies import Full
from riverrun.kernels.shared import TextEntry
from riverrun.models.wan.dit import WanModel
from riverrun.models.wan.stream import CachedMemory, TextMemories

TIMESTEP, SIGMA = 400.0, 0.4008152484893799
"""What the released bfloat16 pipeline comes to: its 399 is rounded to 400, and sigma is looked up for that."""


@dataclass
class Scene:
    """One scene's latent side. State: the cache (of the previous chunks, once a call is through), `sizes` (latent
    frames of each of them) and `start` (latent frames since the scene began)."""

    cache: KVCache
    start: int = 0
    sizes: list[int] = field(default_factory=list)


class Restorer:
    """Sharp latents from blurred ones. Stateless: scenes are arguments.

    timestep: fed to the model. sigma: the noise level there, the share of the predicted flow that is taken off.
    chunk: most latent frames of a call. previous: chunks before it that a call sees.
    """

    def __init__(
        self,
        model: WanModel,
        timestep: float = TIMESTEP,
        sigma: float = SIGMA,
        chunk: int = 3,
        previous: int = 1,
    ) -> None:
        self.model, self.timestep, self.sigma = model, timestep, sigma
        self.chunk, self.previous = chunk, previous

    def open(self, size: Sequence[int], start: int = 0, device: torch.device | str | None = None) -> Scene:
        """A scene of latents of size (height, width), that begins at latent frame `start`."""
        weight = self.model.patch_embedding.weight
        tokens = self.model.config.tokens_per_frame(size[0], size[1])
        config = self.model.config
        spec = CacheSpec("self", config.num_layers, config.num_heads, config.head_dim, "rotated", page=tokens)
        policy = Full((self.previous + 1) * self.chunk * tokens)
        cache = KVCache(spec, policy, weight.dtype, device or weight.device)
        cache.cursor = start * tokens
        return Scene(cache, start)

    def call(self, scenes: Sequence[Scene], contexts: Sequence[TextEntry], z: Tensor) -> tuple[Tensor, Tensor]:
        """The next chunk of each scene: latents z [B, F, C, H, W] -> (restored, flow), shaped alike; scenes move on.

        Raises ValueError for a chunk longer than `chunk`.
        """
        frames, (height, width) = z.shape[1], z.shape[3:]
        if frames > self.chunk:
            raise ValueError(f"a chunk has at most {self.chunk} latent frames, got {frames}")
        _, rows, columns = self.model.config.patch_size
        memory = CachedMemory(
            self.model.config,
            [scene.cache for scene in scenes],
            [scene.start for scene in scenes],
            frames,
            (height // rows, width // columns),
            "standard",
        )
        times = torch.full(z.shape[:2], self.timestep, device=z.device)  # (B, F)
        with memory:
            flow = self.model(z.transpose(1, 2), times, memory, TextMemories(contexts)).transpose(1, 2)
        for scene in scenes:
            scene.start += frames
            scene.sizes = [*scene.sizes, frames][-self.previous :]
            scene.cache.trim(sum(scene.sizes) * memory.tokens)
        return z - self.sigma * flow, flow
