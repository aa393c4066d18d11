"""LongLive block by block over its cache is one pass over the whole stream under a band mask."""

from __future__ import annotations

import torch
from torch import Tensor

from riverrun.kernels.attention import attention
from riverrun.kernels.cache import CacheSpec, KVCache
from riverrun.kernels.policies import SinkWindow
from riverrun.kernels.rope import angles_3d, rotate, rotation
from riverrun.kernels.shared import TextEntry
from riverrun.models.generation.rollout import BlockSampler, LatentStream
from riverrun.models.wan.dit import WanModel
from riverrun.models.wan.schedule import FlowSchedule
from riverrun.models.wan.stream import TextMemories
from riverrun.tests.models.test_longlive import DIT

BLOCK, WINDOW, SINK, BLOCKS = 3, 12, 3, 44  # 132 latent frames: 11 windows
GRID = (2, 3)
TOKENS = GRID[0] * GRID[1]


class BandMemory:
    """Self attention of a whole stream: block i sees the sink and the newest frames up to its own end."""

    def __init__(self) -> None:
        frames = BLOCK * BLOCKS
        self.turn = rotation(angles_3d(torch.arange(frames), *GRID, DIT.head_dim))
        frame = torch.arange(frames)
        end = (frame // BLOCK + 1) * BLOCK  # of a frame's own block
        key, last = frame[None, :], end[:, None]
        seen = (key < last) & ((key < SINK) | (key >= last - (WINDOW - SINK)))
        self.seen = seen.repeat_interleave(TOKENS, 0).repeat_interleave(TOKENS, 1)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(rotate(q, self.turn), rotate(k, self.turn), v, mask=self.seen)


@torch.no_grad()
def test_block_by_block_is_the_whole_stream() -> None:
    torch.manual_seed(0)
    model = WanModel(DIT).eval()
    latents = torch.randn(1, BLOCK * BLOCKS, DIT.in_dim, 2 * GRID[0], 2 * GRID[1])
    times = torch.rand(1, BLOCKS).repeat_interleave(BLOCK, 1) * 1000
    entry = TextEntry(*model.text_keys_values(model.embed_text(torch.randn(1, DIT.text_len, DIT.text_dim))))

    spec = CacheSpec("self", DIT.num_layers, DIT.num_heads, DIT.head_dim, "rotated", page=TOKENS)
    cache = KVCache(spec, SinkWindow(WINDOW * TOKENS, SINK * TOKENS))
    stream = LatentStream(cache, entry, latents[0, :0])
    sampler = BlockSampler(model, FlowSchedule.shifted(5.0), torch.tensor([1000.0]), "standard")
    flows = []
    for x, t in zip(latents.split(BLOCK, 1), times.split(BLOCK, 1), strict=True):
        flows.append(sampler.call([stream], x, t).flow)
        stream.start += BLOCK

    whole = model(latents.transpose(1, 2), times, BandMemory(), TextMemories([entry])).transpose(1, 2)
    torch.testing.assert_close(torch.cat(flows, 1), whole, atol=1e-5, rtol=1e-5)
