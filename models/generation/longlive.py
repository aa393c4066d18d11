"""LongLive 1.x as a stage: an endless video from a prompt that may change at any block (longlive.md).

Paper: arXiv 2509.22622. A block is 3 latent frames: 9 pixel frames the first time, 12 ever after. The window of the
cache, the clean latents for a prompt switch and the decoder's histories are all a session keeps, however long it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riverrun.kernels.cache import CacheSpec, KeyForm, KVCache
from riverrun.kernels.histories import Histories
from riverrun.kernels.noise import normal
from riverrun.kernels.policies import SinkWindow
from riverrun.kernels.shared import SharedCache, TextEntry, content_key
from riverrun.models.base import (
    BadRequest,
    Chunk,
    Control,
    Description,
    Kind,
    Port,
    Snapshot,
    StreamModel,
    parse_params,
)
from riverrun.models.generation.longlive_state import (
    KINDS,
    SNAPSHOT_VERSION,
    LongLiveOptions,
    LongLiveParams,
    LongLiveState,
)
from riverrun.models.generation.rollout import BlockSampler, LatentStream
from riverrun.models.key_forms import dit_keys, vae_keys
from riverrun.models.room import room
from riverrun.models.snapshot import below, to_tensors, unpack_control
from riverrun.models.state import emit, reading, rewriting
from riverrun.models.wan.dit import WAN_1_3B, WanConfig, WanModel
from riverrun.models.wan.schedule import FlowSchedule
from riverrun.models.wan.sizes import decoder_reach, dit_session, vae_session
from riverrun.models.wan.vae import WAN21_VAE, VAEConfig, WanVAE
from riverrun.models.weights import (
    ADAPTER_WRAPPERS,
    as_tuples,
    default_device,
    float_dtype,
    load_frozen,
    merge_lora,
    read,
    read_sizes,
)


class LongLive(StreamModel):
    """Weights of generator and decoder; every session's state is an argument."""

    Params = LongLiveParams

    def __init__(
        self,
        weights: str,
        vae: str,
        *,
        lora: str | None = None,
        lora_alpha: float | None = None,
        weights_config: str | None = None,
        vae_config: str | None = None,
        dtype: str = "float32",
        device: str | None = None,
        **options: Any,
    ) -> None:
        """weights, vae, lora: a path or a hub name, any form `models/weights.py` reads. *_config: JSON with the
        sizes, default the released 1.3 B model's. device: default CUDA where there is one. options: LongLiveOptions.
        """
        self.options = parse_params(LongLiveOptions, as_tuples(options))
        self.device = default_device(device)
        self.dtype = float_dtype(dtype)
        with torch.device("meta"):
            self.model = WanModel(read_sizes(WanConfig, weights_config, WAN_1_3B)).eval()
            self.vae = WanVAE(read_sizes(VAEConfig, vae_config, WAN21_VAE)).eval()
        tensors = dit_keys(read(weights))
        if lora is not None:
            tensors = merge_lora(tensors, read(lora, wrappers=ADAPTER_WRAPPERS), alpha=lora_alpha)
        load_frozen(self.model, tensors, self.device, self.dtype)
        load_frozen(self.vae, vae_keys(read(vae)), self.device, self.dtype)
        schedule = FlowSchedule.shifted(self.options.shift)
        timesteps = schedule.warp(self.options.steps)
        self.sampler = BlockSampler(self.model, schedule.to(self.device), timesteps, self.options.rope)
        self._texts = SharedCache()
        self._keep = max(self.options.window, decoder_reach(self.vae.config))  # latents to compute a State from again

    # -- sessions --------------------------------------------------------------------------------------------

    def describe(self, params: LongLiveParams) -> Description:
        options = self.options
        height, width = self._size(params)
        step = self.vae.config.temporal_factor
        return Description(
            inputs=(),
            outputs=(Port("frames", Kind.FRAMES),),
            chunk_frames=options.block * step,
            first_frames=(options.block - 1) * step + 1,
            fps=options.fps,
            controls=("prompt",),
            frame_shape=(height, width),
            retained_bytes=self._session_bytes(height, width),
        )

    def open(self, params: LongLiveParams, seed: int) -> LongLiveState:
        height, width = self._size(params)
        latent = (self.model.config.in_dim, *(side // self.vae.config.spatial_factor for side in (height, width)))
        cache = self._cache(latent[1:], self.options.sink if params.sink else 0)
        recent = torch.zeros((0, *latent), dtype=self.dtype, device=self.device)
        nothing = TextEntry(torch.empty(0), torch.empty(0))
        stream = LatentStream(cache, nothing, recent, keep_sink=params.keep_sink, keep=self._keep)
        return LongLiveState(params, seed, stream, Histories())

    def control(self, state: LongLiveState, control: Control) -> None:
        if control.kind != "prompt":
            raise BadRequest(f"LongLive takes prompts, got a control of kind {control.kind!r}")
        rows, width = self.model.config.text_len, self.model.config.text_dim
        found = None if control.embedding is None else control.embedding.shape
        if found is None or len(found) != 2 or found[0] > rows or found[1] != width:
            raise BadRequest(f"the prompt's embedding must be [at most {rows}, {width}], got {found}")
        state.pending = control

    def ready(self, state: LongLiveState) -> bool:
        return state.embedding is not None or state.pending is not None

    def example(self, params: LongLiveParams, turn: int) -> Sequence[Control]:
        """A prompt, and at the fourth block another one: a switch needs more than a block."""
        text = np.zeros((self.model.config.text_len, self.model.config.text_dim), np.float32)
        return [Control(turn, "prompt", "warm-up", text)] if turn in (0, 3) else []

    def batch_key(self, state: LongLiveState) -> Any:
        return state.stream.recent.shape[1:]  # sessions of one size share a step

    @torch.no_grad()
    def step(self, states: Sequence[LongLiveState]) -> list[list[Chunk]]:
        """One block each, in one batch: prompt switches first, then denoising, then each session's decoder."""
        with rewriting(states):
            for state in states:
                self._switch(state)
            latents = self.sampler.block([state.stream for state in states], lambda index: self._noise(states, index))
            return [[self._emit(state, block)] for state, block in zip(states, latents, strict=True)]

    def snapshot_kinds(self) -> tuple[str, ...]:
        return KINDS

    @torch.no_grad()
    def restore(self, params: LongLiveParams, snapshot: Snapshot) -> LongLiveState:
        return self.refill(self.open(params, seed=0), snapshot)

    @torch.no_grad()
    def refill(self, state: LongLiveState, snapshot: Snapshot) -> LongLiveState:
        with reading(snapshot, SNAPSHOT_VERSION) as meta:
            self._fill(state, meta, to_tensors(snapshot.tensors, meta["dtypes"], "cpu", ("cache/",)))
        if snapshot.kind == "recache" and state.chunk:
            self._recompute(state)
        return state

    def _recompute(self, state: LongLiveState) -> None:
        """The window's keys and values, and what the decoder remembers, from the clean latents.

        The latents reach as far back as the decoder does, so that only rounding tells its memory from what it was.
        """
        self.sampler.recompute(state.stream, self.options.block)
        for latent in state.stream.recent.split(1):
            self.vae.decode(latent[None], state.histories)

    def _fill(self, state: LongLiveState, meta: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        """tensors: on the CPU; each goes to its place alone, for a second cache may not fit on the device."""
        recent, wanted = tensors["recent"], state.stream.recent.shape[1:]
        if recent.shape[1:] != wanted:
            raise ValueError(f"its latents are {list(recent.shape[1:])}, the parameters ask for {list(wanted)}")
        state.stream.recent = recent.to(self.device)
        state.stream.start, state.stream.switched = meta["start"], meta["switched"]
        state.stream.cache.restore(meta["cache"], below(tensors, "cache/"))
        kept = {path: tensor.to(self.device) for path, tensor in below(tensors, "histories/").items()}
        state.histories = Histories.restore(meta["histories"], kept)
        if "embedding" in tensors:
            state.embedding = tensors["embedding"].to(self.device)
            state.stream.text = self._text(state.embedding)
        state.pending = unpack_control(meta["pending"], tensors)
        counters = meta["counters"]
        state.seed, state.chunk = counters["seed"], counters["chunk"]
        state.frames, state.revision = counters["frames"], counters["revision"]

    # -- parts of a step -------------------------------------------------------------------------------------

    def _switch(self, state: LongLiveState) -> None:
        control, state.pending = state.pending, None
        if control is None:
            return
        state.embedding = torch.from_numpy(np.array(control.embedding)).to(self.device, self.dtype)
        state.revision = control.revision
        self.sampler.switch(state.stream, self._text(state.embedding), recache=state.params.recache)

    def _text(self, embedding: Tensor) -> TextEntry:
        key = content_key(embedding.float().cpu().numpy())
        build = lambda: TextEntry(*self.model.text_keys_values(self.model.embed_text(embedding[None])))  # noqa: E731
        return self._texts.get(key, build)

    def _noise(self, states: Sequence[LongLiveState], draw: int) -> Tensor:
        drawn = [
            normal((self.options.block, *s.stream.recent.shape[1:]), seed=s.seed, chunk=s.chunk, draw=draw)
            for s in states
        ]
        return torch.stack(drawn).to(self.device, self.dtype)  # (B, F, C, h, w)

    def _emit(self, state: LongLiveState, latents: Tensor) -> Chunk:
        # One latent at a time: the same pixels in two thirds of the time on a CPU, and half the memory at release size.
        pixels = [_levels(self.vae.decode(latent[None], state.histories)[0]) for latent in latents.split(1)]
        frames = torch.cat(pixels).cpu().numpy()  # (T, H, W, 3)
        return emit(state, "frames", frames, self.options.fps)

    # -- sizes -----------------------------------------------------------------------------------------------

    def _size(self, params: LongLiveParams) -> tuple[int, int]:
        options, multiple = self.options, self.vae.config.spatial_factor * self.model.config.patch_size[1]
        height, width = params.height or options.height, params.width or options.width
        if height < multiple or width < multiple or height % multiple or width % multiple:
            raise BadRequest(f"height and width must be multiples of {multiple}, got {height} x {width}")
        if height * width > options.max_pixels:
            raise BadRequest(f"at most {options.max_pixels} pixels a frame here, got {height} x {width}")
        return height, width

    def _cache(self, latent_size: tuple[int, ...], sink: int) -> KVCache:
        config = self.model.config
        tokens = config.tokens_per_frame(*latent_size)
        keys: KeyForm = "normed" if self.options.rope == "infinite" else "rotated"
        spec = CacheSpec("self", config.num_layers, config.num_heads, config.head_dim, keys, page=tokens)
        policy = SinkWindow(self.options.window * tokens, sink * tokens)
        with room(self.device):
            return KVCache(spec, policy, self.dtype, self.device)

    def _session_bytes(self, height: int, width: int) -> int:
        """Bytes of a State once its window is full, from shapes alone (nothing is allocated)."""
        sizes = self.options.window, self.options.sink, self.vae.config.spatial_factor, self._keep
        dit = dit_session(self.model.config, height, width, self.dtype, *sizes)
        return dit.total + vae_session(self.vae.config, height, width, self.dtype).parts["decoder history"]


def _levels(pixels: Tensor) -> Tensor:
    """(T, 3, H, W) in [-1, 1] -> uint8 (T, H, W, 3), contiguous as it goes onto the wire."""
    return ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
