"""The ways of methods that make or read video: their own, with a cache, and those of who has none.

Every way gets the same network, or one of its size, so that times differ by what is computed and by nothing else. A
way that changes its State starts each run from a copy of it, made outside the time that is taken.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from riverrun.bench.cache_plan import Case, Plan, Way, random_network
from riverrun.kernels.cache import CacheSpec, KVCache
from riverrun.kernels.policies import Full, PastQueue, PlannedPolicy, SinkWindow
from riverrun.kernels.shared import TextEntry
from riverrun.models.generation.ca2vdm_memory import FrameCaches
from riverrun.models.generation.ca2vdm_net import CausalSTDiT2, STDiTConfig
from riverrun.models.generation.ca2vdm_sampler import ChunkSampler, ClipStream
from riverrun.models.generation.easycontrol_conditions import (
    TOKEN,
    ConditionEntry,
    ConditionLoRAs,
    condition_entry,
    condition_ids,
    image_ids,
    joint_memory,
)
from riverrun.models.generation.flux import FluxConfig, FluxTransformer
from riverrun.models.generation.flux_schedule import flux_sigmas, walk
from riverrun.models.generation.iddpm import IDDPM
from riverrun.models.generation.rollout import BlockSampler, LatentStream
from riverrun.models.geometry.memory import GeometryStream
from riverrun.models.geometry.vggt import VGGT, VGGTConfig, rolling_stream
from riverrun.models.super_resolution.restorer import Restorer, Scene
from riverrun.models.wan.dit import ClipMemory, WanConfig, WanModel
from riverrun.models.wan.schedule import FlowSchedule
from riverrun.models.wan.stream import TextMemories

# -- Ca2-VDM and ViD-GPT -----------------------------------------------------------------------------------------

CHUNK, PAST = 8, 41
"""Frames a chunk, and frames it sees, in the Ca2-VDM paper's comparison of times."""


def ca2vdm(plan: Plan) -> Iterator[Case]:
    """The queue of Ca2-VDM against both networks without a cache, on as many frames as the queue holds."""
    return _clips(plan, "Ca2-VDM", PAST)


def vidgpt(plan: Plan) -> Iterator[Case]:
    """All frames so far are seen."""
    return _clips(plan, "ViD-GPT", None)


def _clips(plan: Plan, method: str, past: int | None) -> Iterator[Case]:
    longest = 1 + CHUNK * (max(plan.chunks) + 1)
    ours, both_ways = _clip_samplers(plan, longest)
    config = ours.model.config
    draw = torch.Generator().manual_seed(1)
    frames = torch.randn((1, 4, longest, 16, 16), generator=draw)
    noise = torch.randn((1, 4, CHUNK, 16, 16), generator=draw)

    def again(sampler: ChunkSampler, before: Tensor) -> Callable[[Any], int]:
        def run(_: Any) -> int:
            sampler.denoise(lambda x, t: sampler.recompute(before, x, t), lambda _: noise)
            return plan.steps

        return run

    for chunks in plan.chunks:
        written = 1 + CHUNK * chunks
        policy: PlannedPolicy = Full(written + CHUNK) if past is None else PastQueue(past, CHUNK)
        stream = ClipStream(FrameCaches.empty(config, policy))
        with torch.no_grad():
            for at in (0, *range(1, written, CHUNK)):
                ours.write([stream], frames[:, :, at : at + CHUNK if at else 1])
        before = frames[:, :, : min(written, past or written)]

        def cached(stream: ClipStream) -> int:
            ours.chunk([stream], lambda _: noise)
            return plan.steps + 1

        yield Case(
            method,
            f"{written} frames",
            (
                Way("cache", cached, partial(copy.deepcopy, stream), stream.caches.nbytes),
                Way("causal, no cache", again(ours, before), held=before.nbytes),
                Way("both directions, no cache", again(both_ways, before), held=before.nbytes),
            ),
        )


def _clip_samplers(plan: Plan, longest: int) -> tuple[ChunkSampler, ChunkSampler]:
    """A causal network with prefix attention, and one of its size that attends both ways (and has none)."""
    config = STDiTConfig((16, 16), hidden_size=plan.dim, depth=plan.depth, num_heads=2, table_len=longest)
    extendable = dataclasses.replace(config, causality="full", prefix_frames=0, mask_channel=False)
    networks = (random_network(CausalSTDiT2(one)) for one in (config, extendable))
    ours, both_ways = (ChunkSampler(network, IDDPM(plan.steps), method="ddim") for network in networks)
    return ours, both_ways


# -- on Wan's transformer ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wan:
    """A small transformer, a prompt, and latents [1, F, C, H, W] of a long clip."""

    model: WanModel
    text: TextEntry
    clip: Tensor

    @classmethod
    def small(cls, plan: Plan, frames: int) -> _Wan:
        dim = plan.dim
        config = WanConfig(dim, 4 * dim, 2, plan.depth, 4, 4, freq_dim=32, text_dim=16, text_len=8)
        model = random_network(WanModel(config))
        text = TextEntry(*model.text_keys_values(model.embed_text(torch.ones(1, 8, 16))))
        return cls(model, text, torch.randn((1, frames, 4, 16, 16), generator=torch.Generator().manual_seed(1)))

    def whole(self, frames: int, passes: int) -> Callable[[Any], int]:
        """All of the last `frames` in each pass, seeing each other."""

        def run(_: Any) -> int:
            x = self.clip[:, :frames]
            for _ in range(passes):
                memory = ClipMemory(self.model.config, frames, *x.shape[3:])
                self.model(x.transpose(1, 2), torch.full(x.shape[:2], 500.0), memory, TextMemories([self.text]))
            return passes

        return run


def longlive(plan: Plan) -> Iterator[Case]:
    """A block of 3 latent frames over a window of 12, in 4 denoising steps and the clean pass."""
    block, window, sink, steps = 3, 12, 3, 4
    wan = _Wan.small(plan, window)
    tokens = wan.model.config.tokens_per_frame(16, 16)
    sampler = BlockSampler(wan.model, FlowSchedule.shifted(5.0), torch.tensor([1000.0, 750.0, 500.0, 250.0]))
    noise = wan.clip[:, :block]

    def cached(stream: LatentStream) -> int:
        sampler.block([stream], lambda _: noise)
        return steps + 1

    for chunks in plan.chunks:
        config = wan.model.config
        spec = CacheSpec("self", config.num_layers, config.num_heads, config.head_dim, "normed", page=tokens)
        cache = KVCache(spec, SinkWindow(window * tokens, sink * tokens))
        stream = LatentStream(cache, wan.text, torch.zeros((0, 4, 16, 16)))
        with torch.no_grad():
            for _ in range(chunks):
                cached(stream)
        seen = min(block * (chunks + 1), window)
        yield Case(
            "LongLive",
            f"{block * chunks} frames",
            (
                Way("cache", cached, partial(copy.deepcopy, stream), cache.nbytes + stream.recent.nbytes),
                Way("the window again", wan.whole(seen, steps), held=stream.recent.nbytes),
            ),
        )


def infvsr(plan: Plan) -> Iterator[Case]:
    """A chunk of 3 latent frames and the one before it, in one pass (transformer alone)."""
    wan = _Wan.small(plan, 6)
    restorer = Restorer(wan.model)
    chunk = wan.clip[:, :3]

    def cached(scene: Scene) -> int:
        restorer.call([scene], [wan.text], chunk)
        return 1

    for chunks in plan.chunks:
        scene = restorer.open((16, 16))
        with torch.no_grad():
            for _ in range(chunks):
                cached(scene)
        yield Case(
            "InfVSR",
            f"{3 * chunks} frames",
            (
                Way("cache", cached, partial(copy.deepcopy, scene), scene.cache.nbytes),
                Way("the chunk before again", wan.whole(6, 1), held=chunk.nbytes),
            ),
        )


# -- EasyControl -------------------------------------------------------------------------------------------------


SIDE = 256
"""Pixels along each side of the image and of its conditions."""


@dataclass(frozen=True)
class _Flux:
    """A small transformer with one LoRA, the latents of an image and of a picture, and a prompt."""

    model: FluxTransformer
    loras: ConditionLoRAs
    x: Tensor
    picture: Tensor
    text: Tensor
    pooled: Tensor

    @classmethod
    def small(cls, plan: Plan) -> _Flux:
        axes, tokens = (4, 6, 6), (SIDE // TOKEN) ** 2
        config = FluxConfig(64, plan.depth, plan.depth, sum(axes), 2 * plan.width, 32, 16, True, axes)
        draw = torch.Generator().manual_seed(1)
        shapes = (1, tokens, 64), (1, tokens, 64), (1, 16, 32), (1, 16)
        x, picture, text, pooled = (torch.randn(shape, generator=draw) for shape in shapes)
        loras = random_network(ConditionLoRAs(config, 4, 1))
        return cls(random_network(FluxTransformer(config)), loras, x, picture, text, pooled)

    def entries(self, count: int) -> list[ConditionEntry]:
        ids, adapters = condition_ids("spatial", SIDE, SIDE, SIDE), self.loras.adapters(0, 1.0)
        made = (condition_entry(self.model, self.picture, ids, self.pooled, 3.5, adapters) for _ in range(count))
        return list(made)

    def image(self, steps: int, count: int, keeps: bool) -> Callable[[Any], int]:
        """Under `count` conditions, whose keys are made once, or at each step."""
        ids, guidance = image_ids(SIDE, SIDE), torch.full((1,), 3.5)

        def run(_: Any) -> int:
            kept = self.entries(count) if keeps else None

            def flow(now: Tensor, sigma: Tensor) -> Tensor:
                entries = self.entries(count) if kept is None else kept
                memory = joint_memory(self.model, self.text.shape[1], ids, [entries])
                return self.model(now, self.text, self.model.embed(sigma.expand(1), guidance, self.pooled), memory)

            walk(self.x, flux_sigmas(steps, self.x.shape[1]), flow)
            return steps + count * (1 if keeps else steps)

        return run


def easycontrol(plan: Plan) -> Iterator[Case]:
    """An image with 1 and 2 conditions."""
    flux = _Flux.small(plan)
    for count in (1, 2):
        with torch.no_grad():
            held = sum(entry.nbytes for entry in flux.entries(count))
        ways = (
            Way("condition cache", flux.image(plan.steps, count, True), held=held),
            Way("conditions at each step", flux.image(plan.steps, count, False)),
            Way("no conditions", flux.image(plan.steps, 0, True)),
        )
        yield Case("EasyControl", f"{count} condition{'s' * (count > 1)}", ways)


# -- InfiniteVGGT ------------------------------------------------------------------------------------------------


class Joined(KVCache):
    """A cache that gives out copies: the cost of keys and values that are concatenated at each call."""

    def keys(self, layer: int) -> Tensor:
        return super().keys(layer).clone()

    def values(self, layer: int) -> Tensor:
        return super().values(layer).clone()


VGGT_SIDE, LONGEST_CLIP = 112, 16
"""Pixels along each side of a frame; frames up to which a whole clip is computed again."""


def infinitevggt(plan: Plan) -> Iterator[Case]:
    """One frame; the memory has room for 6 frames a layer, or holds all, joined anew at each frame as StreamVGGT's; or
    there is none, and the clip is computed again."""
    model = _vggt(plan)
    config, side = model.config, VGGT_SIDE
    tokens, lengths = config.tokens(side, side), [8 * chunks for chunks in plan.chunks]
    images = torch.rand((max(lengths) + 1, 3, side, side), generator=torch.Generator().manual_seed(1))

    def frame(stream: GeometryStream) -> int:
        model.frame(images[-1:], [stream])
        return 1

    def clip(count: int) -> Callable[[Any], int]:
        def run(_: Any) -> int:
            model.clip(images[:count])
            return 1

        return run

    for frames in lengths:
        rows = (frames + 1) * config.camera_iterations
        caches = Joined(config.token_spec(), Full((frames + 1) * tokens)), Joined(config.pose_spec(rows), Full(rows))
        bounded = rolling_stream(config, (side, side), 6 * config.depth * tokens, camera_frames=64)
        streams = {
            "bounded cache": bounded,
            "concatenated, unbounded": GeometryStream(*caches, torch.zeros(config.depth)),
        }
        with torch.no_grad():
            for stream in streams.values():
                for i in range(frames):
                    model.frame(images[i : i + 1], [stream])
        ways = [Way(name, frame, partial(copy.deepcopy, stream), stream.nbytes) for name, stream in streams.items()]
        if frames <= LONGEST_CLIP:
            ways.append(Way("the clip again", clip(frames + 1), held=images[:frames].nbytes))
        yield Case("InfiniteVGGT", f"{frames} frames", tuple(ways))


def _vggt(plan: Plan) -> VGGT:
    depth = 2 * plan.depth
    return random_network(
        VGGT(
            VGGTConfig(
                image=VGGT_SIDE,
                dim=plan.dim,
                depth=depth,
                heads=2,
                dino_depth=plan.depth,
                dino_heads=2,
                camera_depth=2,
                camera_heads=2,
                dpt_features=16,
                dpt_channels=(16, 16, 16, 16),
                dpt_layers=(0, 1, 1, depth - 1),
                track=None,
            )
        )
    )
