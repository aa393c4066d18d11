"""Initial values of the tiny VGGT: matching by content works before the first step, so that poses can be learned.

With the usual initial values relative rotation stays at the answer "the camera does not move" for thousands of steps.
Reserved channels carry places through the network: 0-7 a token's own place in the picture, 8-15 the place of what
matches it in the frames before, 16-31 the mean of both over the frame, which the camera token reads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from riverrun.models.geometry.layers import Attention, Block
from riverrun.models.geometry.vggt import VGGT, VGGTConfig

FIELD_OF_VIEW = math.radians(45.0)
PLACE, MATCHED, POOLED = slice(0, 8), slice(8, 16), slice(16, 32)
RESERVED = 32
LAYER_SCALE = 0.3
FREE_NOISE = 0.02  # of what writes to reserved channels besides the copies
TINY = VGGTConfig(
    image=112, dim=96, depth=3, heads=4, dino_depth=2, dino_heads=4, camera_depth=1, camera_heads=4,
    dpt_features=32, dpt_channels=(32, 48, 64, 64), dpt_layers=(0, 1, 2, 2), track=None,
)  # fmt: skip


@torch.no_grad()
def initialise(model: VGGT) -> None:
    """Gives all weights their first values; draws from torch's global generator."""
    aggregator, config = model.aggregator, model.config
    embedder = aggregator.patch_embed
    for parameter in (aggregator.camera_token, aggregator.register_token, embedder.cls_token, embedder.register_tokens):
        parameter.normal_(std=0.02)[..., :RESERVED] = 0
    _projection(embedder.patch_embed.proj)
    embedder.pos_embed.normal_(std=0.002)
    embedder.pos_embed[0, 1:, PLACE] = places(embedder.side)
    for module in model.modules():
        if isinstance(module, Block):
            module.ls1.gamma.fill_(LAYER_SCALE)
            module.ls2.gamma.fill_(LAYER_SCALE)
    for block in (*embedder.blocks, *aggregator.frame_blocks, *aggregator.global_blocks):
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight[:RESERVED] *= FREE_NOISE
            layer.bias.zero_()
        block.attn.qkv.bias.zero_()
    for inside, across in zip(aggregator.frame_blocks, aggregator.global_blocks, strict=True):
        assert isinstance(inside, Block)
        assert isinstance(across, Block)
        inside.attn.q_norm.weight.fill_(0.1)  # nearly the mean over the frame
        _copy(inside.attn, slice(0, 16), POOLED)
        _matching(across.attn)
        _copy(across.attn, PLACE, MATCHED)
    _camera(model, config)


def places(side: int) -> Tensor:
    """[side * side, 8]: sine and cosine of column and row at a quarter and a half period over the picture."""
    at = (torch.arange(side) + 0.5) / side * 2 - 1
    row, column = (grid.flatten() for grid in torch.meshgrid(at, at, indexing="ij"))
    waves = [wave(axis * turn) for axis in (column, row) for turn in (math.pi / 4, math.pi / 2)
             for wave in (torch.sin, torch.cos)]  # fmt: skip
    return torch.stack(waves, dim=-1)


def _projection(conv: nn.Conv2d) -> None:
    """Low 2-D cosines of each colour: a patch's code changes little when the picture moves by a few pixels."""
    patch = conv.kernel_size[0]
    at = (torch.arange(patch) + 0.5) / patch * math.pi
    orders = sorted(((i, j) for i in range(patch) for j in range(patch)), key=lambda ij: (sum(ij), max(ij), ij))
    conv.weight.zero_()
    conv.bias.zero_()  # type: ignore[union-attr]
    for n, channel in enumerate(range(RESERVED, conv.out_channels)):
        i, j = orders[n // 3]
        wave = torch.cos(i * at)[:, None] * torch.cos(j * at)[None]
        conv.weight[channel, n % 3] = wave / wave.square().sum() * (1.0 if i == j == 0 else 2.0)


def _matching(attention: Attention) -> None:
    """Keys as queries, blind to places, sharp: a token attends to what looks like it."""
    dim = attention.qkv.in_features
    query, key = attention.qkv.weight[:dim], attention.qkv.weight[dim : 2 * dim]
    query[:, :RESERVED] *= 0.05
    key.copy_(query + 0.05 * query.std() * torch.randn_like(query))
    quarter = dim // attention.heads // 4
    loudness = torch.linspace(0.4, 1.4, quarter).repeat(4)  # channels turned fast lose a match that has moved
    attention.q_norm.weight.copy_(4 * loudness)
    attention.k_norm.weight.copy_(loudness)


def _copy(attention: Attention, source: slice, target: slice) -> None:
    """Each head's values begin with the source channels; together they write them to the target with gain 1."""
    dim, heads = attention.qkv.in_features, attention.heads
    width, size = target.stop - target.start, dim // heads
    values, out = attention.qkv.weight[2 * dim :], attention.proj.weight
    for head in range(heads):
        rows = slice(head * size, head * size + width)
        values[rows] = 0
        values[rows, source] = torch.eye(width)
        out[:, rows] = 0
        out[target, rows] = torch.eye(width) / LAYER_SCALE / heads


def _camera(model: VGGT, config: VGGTConfig) -> None:
    """The last layer's bias is added in each iteration: a share of the pose that never changes."""
    last = model.camera_head.pose_branch.fc2
    last.weight *= 0.1
    last.bias.zero_()
    last.bias[6] = 1 / config.camera_iterations
    last.bias[7:] = FIELD_OF_VIEW / config.camera_iterations
