"""What Ca2-VDM and ViD-GPT have in common as stages: latents in, an endless stream of latents out.

A stream goes on from clean latent frames pushed once on its input port; each step denoises one chunk of frames and
writes it into the caches. The latents are those of Stable Diffusion's image VAE (8x, 4 channels, scaled by 0.18215),
which isn't part of this package: encode and decode beside the stream.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from riverrun.kernels.noise import normal
from riverrun.kernels.policies import PlannedPolicy
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
from riverrun.models.generation.ca2vdm_memory import FrameCaches
from riverrun.models.generation.ca2vdm_net import CausalSTDiT2, STDiTConfig
from riverrun.models.generation.ca2vdm_sampler import ChunkSampler, ClipStream, Method
from riverrun.models.generation.ca2vdm_sizes import clip_session
from riverrun.models.generation.ca2vdm_state import KINDS, SNAPSHOT_VERSION, ClipParams, ClipState
from riverrun.models.generation.iddpm import IDDPM
from riverrun.models.room import room
from riverrun.models.snapshot import below, to_tensors, unpack_control
from riverrun.models.state import emit, reading, refuse_broken, rewriting
from riverrun.models.weights import default_device, float_dtype, load_frozen, read, read_sizes


@dataclass(frozen=True)
class ClipOptions:
    """How the model runs, the same for all its sessions.

    chunk: latent frames a step. steps: of the sampler, of 1000. method: `ddpm`, or deterministic `ddim`. perturb_t:
    step of 1000 to which finished frames are noised before they are written, 0 for not at all. fps: of media time.
    """

    chunk: int = 8
    steps: int = 100
    method: Method = "ddpm"
    perturb_t: int = 0
    fps: int = 8

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise BadRequest(f"chunk must be at least 1, got {self.chunk}")
        if not 1 <= self.steps <= 1000:
            raise BadRequest(f"steps must be 1..1000, got {self.steps}")
        if self.method not in get_args(Method):
            raise BadRequest(f"method must be one of {', '.join(get_args(Method))}, got {self.method!r}")
        if self.perturb_t and not 1 <= self.perturb_step < self.steps:
            raise BadRequest(f"perturb_t {self.perturb_t} is no step of {self.steps}; 0 leaves frames as they are")
        if not 1 <= self.fps <= 240:
            raise BadRequest(f"fps must be 1..240, got {self.fps}")

    @property
    def perturb_step(self) -> int:
        """`perturb_t` among the respaced steps."""
        return self.perturb_t * self.steps // 1000


class ClipStage(StreamModel):
    """Weights, and pure functions over States. What a method adds: its policy, its noise, its limits.

    Options: a subclass of `ClipOptions`. released: sizes of the network where no config says others.
    """

    Params = ClipParams
    Options: type[ClipOptions]
    released: STDiTConfig
    options: ClipOptions

    def __init__(
        self,
        weights: str,
        *,
        weights_config: str | None = None,
        dtype: str = "float32",
        device: str | None = None,
        **options: Any,
    ) -> None:
        """weights: a path or a hub name. weights_config: JSON with `STDiTConfig`'s fields, default `released`.
        device: default CUDA where there is one. options: `Options`.
        """
        self.options = parse_params(self.Options, options)
        self.device = default_device(device)
        self.dtype = float_dtype(dtype)
        with torch.device("meta"):
            self.model = CausalSTDiT2(self._fitted(read_sizes(STDiTConfig, weights_config, self.released))).eval()
        load_frozen(self.model, read(weights), self.device, self.dtype)
        perturb = self.options.perturb_step if self.options.perturb_t else None
        self.sampler = ChunkSampler(self.model, IDDPM(self.options.steps), perturb, self.options.method)
        self._texts = SharedCache()

    @property
    def config(self) -> STDiTConfig:
        return self.model.config

    @abstractmethod
    def policy(self) -> PlannedPolicy:
        """Of the temporal cache, in frames."""

    @abstractmethod
    def most_given(self) -> int:
        """First frames a stream may be given."""

    @abstractmethod
    def kept_frames(self) -> int:
        """Latent frames a session keeps, from which its caches can be computed again."""

    def _fitted(self, config: STDiTConfig) -> STDiTConfig:
        """The network's form under these options. Raises BadRequest where they can't go together."""
        if config.causality == "full":
            raise BadRequest("this network attends in both directions, so it can't stream")
        return config

    # -- sessions --------------------------------------------------------------------------------------------

    def describe(self, params: ClipParams) -> Description:
        return Description(
            inputs=(Port("first", Kind.CONDITION, once=True),),
            outputs=(Port("latents", Kind.CONDITION),),
            chunk_frames=self.options.chunk,
            fps=self.options.fps,
            controls=("prompt",) if self.config.caption_channels else (),
            latency_frames=1,
            retained_bytes=self._session_bytes(self._guidance_rows(params)),
        )

    def open(self, params: ClipParams, seed: int) -> ClipState:
        with room(self.device):
            caches = FrameCaches.empty(self.config, self.policy(), self._guidance_rows(params), self.dtype, self.device)
        return ClipState(params, seed, ClipStream(caches, guidance=params.guidance, keep=self.kept_frames()))

    def push(self, state: ClipState, chunk: Chunk) -> None:
        """The stream's first frames, float [T, C, h, w]; once, before anything is generated."""
        if state.given is not None or state.stream.caches.frames:
            raise BadRequest("a stream takes its first frames once, before its first chunk")
        frames = np.asarray(chunk.data)
        shape = (self.config.in_channels, *self.config.latent_size)
        if frames.ndim != 4 or frames.shape[1:] != shape or not 1 <= len(frames) <= self.most_given():
            raise BadRequest(f"first frames must be [1..{self.most_given()}, {shape}], got {list(frames.shape)}")
        if not np.issubdtype(frames.dtype, np.floating) or not np.isfinite(frames).all():
            raise BadRequest(f"first frames must be finite floats, got {frames.dtype}")
        state.given = torch.from_numpy(np.array(frames, dtype=np.float32)).to(self.device)

    def control(self, state: ClipState, control: Control) -> None:
        if control.kind != "prompt" or not self.config.caption_channels:
            takes = "prompts" if self.config.caption_channels else "no control"
            raise BadRequest(f"this model takes {takes}, got a control of kind {control.kind!r}")
        rows, width = self.config.text_len, self.config.caption_channels
        found = None if control.embedding is None else control.embedding.shape
        if found is None or len(found) != 2 or not 1 <= found[0] <= rows or found[1] != width:
            raise BadRequest(f"the prompt's embedding must be [1..{rows} valid tokens, {width}], got {found}")
        state.pending = control

    def ready(self, state: ClipState) -> bool:
        has_frames = state.given is not None or state.stream.caches.frames > 0
        has_text = not self.config.caption_channels or state.embedding is not None or state.pending is not None
        return has_frames and has_text and (state.params.chunks is None or state.chunk < state.params.chunks)

    def batch_key(self, state: ClipState) -> Any:
        return self._guidance_rows(state.params)

    @torch.no_grad()
    def step(self, states: Sequence[ClipState]) -> list[list[Chunk]]:
        """One chunk each, in one batch: prompts and first frames session by session, then denoising and writing."""
        refuse_broken(states)
        for state in states:
            self._admit(state)
        with rewriting(states):
            for state in states:
                self._start(state)
            latents = self.sampler.chunk([state.stream for state in states], lambda index: self._noise(states, index))
            return [[self._emit(state, z)] for state, z in zip(states, latents, strict=True)]

    def snapshot_kinds(self) -> tuple[str, ...]:
        return KINDS

    def restore(self, params: ClipParams, snapshot: Snapshot) -> ClipState:
        return self.refill(self.open(params, seed=0), snapshot)

    @torch.no_grad()
    def refill(self, state: ClipState, snapshot: Snapshot) -> ClipState:
        caches = tuple(f"{cache.spec.name}/" for cache in state.stream.caches.all())
        with reading(snapshot, SNAPSHOT_VERSION) as meta:
            self._fill(state, meta, to_tensors(snapshot.tensors, meta["dtypes"], "cpu", caches))
        if snapshot.kind == "recache":
            self.sampler.rewrite(state.stream, self.options.chunk)
        return state

    def _fill(self, state: ClipState, meta: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        for cache in state.stream.caches.all() if meta["caches"] else ():
            cache.restore(meta["caches"][cache.spec.name], below(tensors, f"{cache.spec.name}/"))
        state.stream.caches.frames = meta["written"]
        if "past" in tensors:
            state.stream.past = tensors["past"].to(self.device)
        for name in ("given", "embedding"):
            if name in tensors:
                setattr(state, name, tensors[name].to(self.device))
        state.tail = tensors.get("tail")  # noise is made on the host
        if state.embedding is not None:
            state.stream.text = self._text(state)
        state.pending = unpack_control(meta["pending"], tensors)
        counters = meta["counters"]
        state.seed, state.chunk = counters["seed"], counters["chunk"]
        state.frames, state.revision = counters["frames"], counters["revision"]

    # -- parts of a step -------------------------------------------------------------------------------------

    def _admit(self, state: ClipState) -> None:
        """Before anything of the step is done: raises BadRequest for a session that can't go on."""
        if not self.ready(state):
            raise BadRequest("the session has no first frames or no prompt yet, or has made all its chunks")

    def _start(self, state: ClipState) -> None:
        """Puts a waiting prompt in force and writes the stream's first frames."""
        control, state.pending = state.pending, None
        if control is not None:
            state.embedding = torch.from_numpy(np.array(control.embedding)).to(self.device, self.dtype)
            state.revision = control.revision
            state.stream.text = self._text(state)
        if state.given is not None:
            z = state.given.transpose(0, 1)[None]  # (1, C, T, h, w)
            noise = None
            if self.sampler.perturb is not None:
                noise = normal(tuple(z.shape), seed=state.seed, chunk=0, draw=self.sampler.draws).to(self.device)
            self.sampler.write([state.stream], z, noise)
            state.given = None

    def _text(self, state: ClipState) -> tuple[TextEntry, ...]:
        """Keys and values of the guidance rows' captions, the null one cut to the length of the other."""
        embedding = state.embedding
        assert embedding is not None
        key = content_key(embedding.float().cpu().numpy())
        entry = self._texts.get(key, lambda: self.model.caption(embedding))
        if self._guidance_rows(state.params) == 1:
            return (entry,)
        tokens = len(embedding)
        return self._texts.get(content_key("null", tokens), lambda: self.model.caption(None, tokens)), entry

    def _noise(self, states: Sequence[ClipState], draw: int) -> Tensor:
        return torch.stack([self._drawn(state, draw) for state in states]).to(self.device)  # (N, C, T, h, w)

    def _drawn(self, state: ClipState, draw: int) -> Tensor:
        """One draw of a chunk, [C, T, h, w] float32."""
        shape = (self.config.in_channels, self.options.chunk, *self.config.latent_size)
        return normal(shape, seed=state.seed, chunk=state.chunk, draw=draw)

    def _emit(self, state: ClipState, z: Tensor) -> Chunk:
        frames = z.transpose(0, 1).contiguous().cpu().numpy()  # (T, C, h, w)
        return emit(state, "latents", frames, self.options.fps)

    # -- sizes -----------------------------------------------------------------------------------------------

    def _guidance_rows(self, params: ClipParams) -> int:
        return 2 if self.config.caption_channels and params.guidance > 1 else 1

    def _session_bytes(self, guidance_rows: int) -> int:
        """Of a State between steps, from shapes alone."""
        parts = clip_session(self.config, self.dtype.itemsize, self.policy().capacity, guidance_rows)
        return (
            sum(parts.values()) + self.kept_frames() * self.config.in_channels * math.prod(self.config.latent_size) * 4
        )
