"""VGGT's camera head: a pose refined a few times, each time seen by all later ones (infinitevggt.md §6).

N frames, D = 2C channels. A pose is 9 numbers: translation 3, quaternion xyzw 4, field of view h and w.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riverrun.models.geometry.layers import Block, Memory, Mlp

POSE = 9


class CameraHead(nn.Module):
    """Camera tokens to poses. Its trunk's memory gains one row an iteration."""

    def __init__(self, dim: int, depth: int, heads: int, mlp_ratio: float, iterations: int) -> None:
        """dim: D."""
        super().__init__()
        self.iterations = iterations
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, POSE))
        self.embed_pose = nn.Linear(POSE, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.token_norm = nn.LayerNorm(dim)
        self.trunk = nn.ModuleList([Block(dim, heads, mlp_ratio) for _ in range(depth)])
        self.trunk_norm = nn.LayerNorm(dim)
        self.pose_branch = Mlp(dim, dim // 2, POSE)

    def forward(self, tokens: Tensor, memory: Callable[[], AbstractContextManager[Memory]]) -> Tensor:
        """tokens [N, D] -> the poses after each iteration [iterations, N, 9], fields of view not below 0.

        memory: the trunk's, opened anew for each iteration.
        """
        x = self.token_norm(tokens[:, None])  # (N, 1, D)
        pose: Tensor | None = None
        poses = []
        for _ in range(self.iterations):
            given = self.empty_pose_tokens.expand(len(x), -1, -1) if pose is None else pose
            with memory() as seen:
                change = self._refine(x, given, seen)
            pose = change if pose is None else pose + change
            poses.append(torch.cat([pose[..., :7], pose[..., 7:].relu()], dim=-1)[:, 0])
        return torch.stack(poses)

    def _refine(self, x: Tensor, pose: Tensor, memory: Memory) -> Tensor:
        shift, scale, gate = self.poseLN_modulation(self.embed_pose(pose)).chunk(3, dim=-1)
        y = gate * (F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift) + x
        for layer, block in enumerate(self.trunk):
            y = block(y, memory=memory, layer=layer)
        return self.pose_branch(self.trunk_norm(y))
