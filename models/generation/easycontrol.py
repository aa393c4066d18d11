"""EasyControl as a stage: one image for each frame of its conditions, for as long as they come (easycontrol.md).

Paper: arXiv 2503.07027. Every spatial condition is an input port, of which each image uses one frame; a subject's port
takes one picture, for the whole stream. Only the conditions' keys and values outlive a denoising step (`SharedCache`).

State: the subjects' entries (684 MiB each at FLUX.1-dev, 512 pixels, bfloat16; shared by sessions of equal picture,
prompt, guidance and strength), the prompt's embedding (4 MiB), pictures that wait (768 KiB each), counters. A spatial
entry lives for one image. Policy: none, nothing is ever evicted. Where the official code differs, on purpose: each
condition is encoded alone and as its mean, and passes the transformer alone, so that entries fit any combination.

Weights: the LoRAs (Xiaojiu-Z/EasyControl) "for research purposes only", FLUX.1-dev under its non-commercial licence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riverrun.kernels.noise import normal
from riverrun.kernels.shared import SharedCache, content_key
from riverrun.models.base import (
    TICKS_PER_SECOND,
    BadRequest,
    Chunk,
    Control,
    Corrupt,
    Description,
    Kind,
    Port,
    Snapshot,
    StreamModel,
    parse_params,
)
from riverrun.models.generation.easycontrol_conditions import (
    TOKEN,
    Condition,
    ConditionEntry,
    Placing,
    condition_entry,
    condition_ids,
    entry_bytes,
    image_ids,
    joint_memory,
    load_conditions,
)
from riverrun.models.generation.easycontrol_images import fit, pixels
from riverrun.models.generation.easycontrol_state import (
    SNAPSHOT_VERSION,
    EasyControlOptions,
    EasyControlParams,
    EasyControlState,
    Held,
)
from riverrun.models.generation.flux import FLUX_DEV, FluxConfig, FluxTransformer
from riverrun.models.generation.flux_schedule import flux_sigmas, pack, unpack, walk
from riverrun.models.generation.flux_vae import FLUX_VAE, FluxVAE, FluxVAEConfig
from riverrun.models.snapshot import below, to_tensors, unpack_control
from riverrun.models.state import Waiting, check_frames, reading
from riverrun.models.weights import as_tuples, default_device, float_dtype, load_frozen, read


@dataclass(frozen=True)
class _Turn:
    """What a session's next image is made of; the State takes it over when the image is there.

    control: the prompt that waited, if one did.
    """

    control: Control | None
    embedding: Tensor
    revision: int
    frames: dict[str, Waiting]
    entries: dict[str, Held]


class EasyControl(StreamModel):
    """Weights of transformer, VAE and LoRAs, and the conditions' entries; every session's state is an argument."""

    Params = EasyControlParams

    def __init__(
        self,
        weights: str,
        vae: str,
        *,
        subjects: Mapping[str, str] | None = None,
        spatials: Mapping[str, str] | None = None,
        weights_config: str | None = None,
        vae_config: str | None = None,
        dtype: str = "float32",
        device: str | None = None,
        **options: Any,
    ) -> None:
        """weights, vae: a path or a hub name, in diffusers' layout. subjects, spatials: the LoRA file of each
        condition, by the name of its port (see `load_conditions`).
        *_config: diffusers' config.json, default the released sizes. device: default CUDA where there is one.
        options: EasyControlOptions.
        """
        self.options = parse_params(EasyControlOptions, as_tuples(options))
        self.device = default_device(device)
        self.dtype = float_dtype(dtype)
        with torch.device("meta"):
            self.model = FluxTransformer(FluxConfig.read(_json(weights_config)) if weights_config else FLUX_DEV).eval()
            self.vae = FluxVAE(FluxVAEConfig.read(_json(vae_config)) if vae_config else FLUX_VAE).eval()
        self._check_sizes()
        for module, source in ((self.model, weights), (self.vae, vae)):
            load_frozen(module, read(source), self.device, self.dtype)
        files: dict[Placing, Mapping[str, str]] = {"subject": subjects or {}, "spatial": spatials or {}}
        self.conditions = load_conditions(self.model.config, files, lambda source: self._placed(read(source)))
        self._shared = SharedCache()

    def _check_sizes(self) -> None:
        channels, latents = self.model.config.in_channels, self.vae.config.latent_channels
        if channels != 4 * latents or 2 * self.vae.config.spatial_factor != TOKEN:
            raise BadRequest(
                f"a transformer of {channels} channels takes {channels // 4} latent channels at 8 pixels a latent, "
                f"the VAE has {latents} at {self.vae.config.spatial_factor}"
            )

    def _placed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device, self.dtype) for name, tensor in tensors.items()}

    # -- sessions --------------------------------------------------------------------------------------------

    def describe(self, params: EasyControlParams) -> Description:
        height, width = self._size(params)
        chosen = self._chosen(params)
        retained, peak = self._session_bytes(height, width, chosen)
        return Description(
            inputs=tuple(Port(each.port, Kind.FRAMES, once=each.placing == "subject") for each in chosen),
            outputs=(Port("frames", Kind.FRAMES),),
            chunk_frames=1,
            latency_frames=int(any(condition.placing == "spatial" for condition in chosen)),
            fps=self.options.fps,
            controls=("prompt",),
            frame_shape=(height, width),
            retained_bytes=retained,
            peak_bytes=peak,
        )

    def open(self, params: EasyControlParams, seed: int) -> EasyControlState:
        self._size(params)
        chosen = self._chosen(params)
        return EasyControlState(params, seed, {c.port: [] for c in chosen if c.placing == "spatial"})

    def push(self, state: EasyControlState, chunk: Chunk) -> None:
        chosen = {condition.port: condition for condition in self._chosen(state.params)}
        if chunk.port not in chosen:
            raise BadRequest(f"there is no condition {chunk.port!r} here; there are {', '.join(chosen) or 'none'}")
        frames, placing = check_frames(chunk), chosen[chunk.port].placing
        if placing == "subject" and (len(frames) > 1 or chunk.port in state.subjects):
            raise BadRequest(f"{chunk.port!r} takes one picture for the whole stream; open another session for another")
        if not frames.size:
            raise BadRequest(f"frames must have pixels, got {list(frames.shape)}")
        fitted = [fit(placing, frame, self.options.cond_size) for frame in frames]
        if placing == "subject":
            state.subjects[chunk.port] = fitted[0]
            return
        ticks = chunk.frame_ticks
        waiting = (Waiting(image, chunk.pts + i * ticks, ticks, chunk.revision) for i, image in enumerate(fitted))
        state.waiting[chunk.port].extend(waiting)

    def control(self, state: EasyControlState, control: Control) -> None:
        """The prompt's embedding is [1 + n, width]: the pooled vector, zeros behind it, and n tokens."""
        if control.kind != "prompt":
            raise BadRequest(f"EasyControl takes prompts, got a control of kind {control.kind!r}")
        found = None if control.embedding is None else control.embedding.shape
        rows, width = 1 + self.options.text_len, self._text_width
        if found is None or len(found) != 2 or not 2 <= found[0] <= rows or found[1] != width:
            raise BadRequest(f"the prompt's embedding must be [2..{rows}, {width}], got {found}")
        state.pending = control

    def ready(self, state: EasyControlState) -> bool:
        if state.embedding is None and state.pending is None:
            return False
        subjects = (c.port for c in self._chosen(state.params) if c.placing == "subject")
        return all(port in state.subjects for port in subjects) and all(state.waiting.values())

    def batch_key(self, state: EasyControlState) -> Any:
        embedding = state.embedding if state.pending is None else state.pending.embedding
        return self._size(state.params), None if embedding is None else embedding.shape[0]

    @torch.no_grad()
    def step(self, states: Sequence[EasyControlState]) -> list[list[Chunk]]:
        """One image each, in one batch. A step that fails has changed nothing."""
        turns = [self._turn(state) for state in states]
        height, width = self._size(states[0].params)
        latents = unpack(self._denoised(states, turns), height // TOKEN, width // TOKEN)
        images = [self._picture(one) for one in latents]
        return [[self._emit(*made)] for made in zip(states, turns, images, strict=True)]

    def restore(self, params: EasyControlParams, snapshot: Snapshot) -> EasyControlState:
        with reading(snapshot, SNAPSHOT_VERSION) as meta:
            state = self.open(params, meta["seed"])
            self._fill(state, meta, to_tensors(snapshot.tensors, meta["dtypes"], "cpu"))
        return state

    def _fill(self, state: EasyControlState, meta: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        subjects = below(tensors, "subject/")
        wanted = [condition.port for condition in self._chosen(state.params)]
        if set(meta["waiting"]) != set(state.waiting) or not set(subjects) <= set(wanted):
            raise Corrupt(f"the snapshot is of conditions {sorted({*meta['waiting'], *subjects})}, this is of {wanted}")
        for port, queue in meta["waiting"].items():
            images = (tensors[f"waiting/{port}/{i}"].numpy() for i in range(len(queue)))
            state.waiting[port] = [Waiting(image, *rest) for image, rest in zip(images, queue, strict=True)]
        state.subjects = {port: image.numpy() for port, image in subjects.items()}
        if "embedding" in tensors:
            state.embedding = tensors["embedding"].to(self.device)
        state.pending = unpack_control(meta["pending"], tensors)
        state.frames, state.revision = meta["frames"], meta["revision"]
        for port, key in meta["keys"].items():
            if self._key(state, self.conditions[port], state.subjects[port], tensors["embedding"]) != key:
                raise Corrupt(f"condition {port!r} would be built from another LoRA or other parameters than it was")

    # -- parts of a step -------------------------------------------------------------------------------------

    def _turn(self, state: EasyControlState) -> _Turn:
        control, embedding, revision = state.pending, state.embedding, state.revision
        if control is not None:
            embedding = torch.from_numpy(np.array(control.embedding)).to(self.device, self.dtype)
            revision = control.revision
        assert embedding is not None, "ready() comes first"
        frames = {port: queue[0] for port, queue in state.waiting.items()}
        entries = {}
        for condition in self._chosen(state.params):
            port = condition.port
            image = state.subjects[port] if condition.placing == "subject" else frames[port].pixels
            entries[port] = self._held(state, condition, image, embedding)
        return _Turn(control, embedding, revision, frames, entries)

    def _held(self, state: EasyControlState, condition: Condition, image: np.ndarray, embedding: Tensor) -> Held:
        """The condition's entry; built where no session holds one of this picture, prompt, guidance and size."""
        key = self._key(state, condition, image, embedding)

        def build() -> ConditionEntry:
            size, config = self.options.cond_size, self.model.config
            latents = pack(self.vae.encode(pixels(image, size).to(self.device)))
            ids = condition_ids(condition.placing, size, *self._size(state.params), self.dtype)
            adapters = condition.loras.adapters(condition.index, self._strength(state.params, condition))
            pooled = embedding[:1, : config.pooled_projection_dim]
            return condition_entry(self.model, latents, ids, pooled, state.params.guidance, adapters)

        return Held(key, self._shared.get(key, build))

    def _key(self, state: EasyControlState, condition: Condition, image: np.ndarray, embedding: Tensor) -> str:
        """All that an entry is made of."""
        beside = self._size(state.params) if condition.placing == "spatial" else (0, 0)
        pooled = embedding[0, : self.model.config.pooled_projection_dim].float().cpu().numpy()
        strength, guidance = float(self._strength(state.params, condition)), float(state.params.guidance)
        lora = (condition.digest, condition.index, condition.placing, strength)
        return content_key(*lora, guidance, *beside, *image.shape, image, pooled)

    def _denoised(self, states: Sequence[EasyControlState], turns: Sequence[_Turn]) -> Tensor:
        """Packed latents [B, N, c] without noise."""
        config, (height, width) = self.model.config, self._size(states[0].params)
        tokens = torch.stack([turn.embedding[1:, : config.joint_attention_dim] for turn in turns])  # (B, Nt, J)
        pooled = torch.stack([turn.embedding[0, : config.pooled_projection_dim] for turn in turns])
        guidance = torch.tensor([state.params.guidance for state in states], device=self.device)
        rows = [[held.entry for held in turn.entries.values()] for turn in turns]
        memory = joint_memory(self.model, tokens.shape[1], image_ids(height, width, self.dtype), rows)

        def flow(x: Tensor, sigma: Tensor) -> Tensor:
            return self.model(x, tokens, self.model.embed(sigma.expand(len(x)), guidance, pooled), memory)

        x = pack(torch.stack([self._noise(state) for state in states]).to(self.device, self.dtype))
        options = self.options
        sigmas = flux_sigmas(options.steps, x.shape[1], options.base_shift, options.max_shift)
        return walk(x, sigmas.to(self.device), flow)

    def _noise(self, state: EasyControlState) -> Tensor:
        factor = self.vae.config.spatial_factor
        shape = (self.vae.config.latent_channels, *(side // factor for side in self._size(state.params)))
        return normal(shape, seed=state.seed, chunk=0 if state.params.same_noise else state.frames, draw=0)

    def _picture(self, latents: Tensor) -> np.ndarray:
        levels = ((self.vae.decode(latents[None]) + 1) * 127.5).round().to(torch.uint8)
        return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()  # (1, H, W, 3)

    def _emit(self, state: EasyControlState, turn: _Turn, image: np.ndarray) -> Chunk:
        ticks = TICKS_PER_SECOND // self.options.fps
        first = next(iter(turn.frames.values()), Waiting(image, state.frames * ticks, ticks, 0))
        chunk = Chunk(
            port="frames",
            data=image,
            pts=first.pts,
            frame_ticks=first.ticks,
            frames=1,
            first_frame=state.frames,
            revision=max(turn.revision, *(frame.revision for frame in turn.frames.values()), 0),
        )
        for port in turn.frames:
            del state.waiting[port][0]
        state.entries = {port: held for port, held in turn.entries.items() if port in state.subjects}
        state.embedding, state.revision = turn.embedding, turn.revision
        if state.pending is turn.control:  # a newer one waits for the next image
            state.pending = None
        state.frames += 1
        return chunk

    # -- sizes -----------------------------------------------------------------------------------------------

    def _chosen(self, params: EasyControlParams) -> list[Condition]:
        """The session's conditions, in the model's order."""
        if params.conditions is None:
            return list(self.conditions.values())
        if unknown := sorted(set(params.conditions) - set(self.conditions)):
            there = ", ".join(self.conditions) or "none"
            raise BadRequest(f"there is no condition {unknown[0]!r}; there are {there}")
        return [condition for port, condition in self.conditions.items() if port in params.conditions]

    def _strength(self, params: EasyControlParams, condition: Condition) -> float:
        return 1.0 if params.conditions is None else params.conditions[condition.port]

    def _size(self, params: EasyControlParams) -> tuple[int, int]:
        height, width = params.height or self.options.height, params.width or self.options.width
        if height < TOKEN or width < TOKEN or height % TOKEN or width % TOKEN:
            raise BadRequest(f"height and width must be multiples of {TOKEN}, got {height} x {width}")
        if height * width > self.options.max_pixels:
            raise BadRequest(f"at most {self.options.max_pixels} pixels an image here, got {height} x {width}")
        return height, width

    @property
    def _text_width(self) -> int:
        """Of a row that holds either the pooled prompt or a token of it."""
        return max(self.model.config.joint_attention_dim, self.model.config.pooled_projection_dim)

    def _session_bytes(self, height: int, width: int, chosen: Sequence[Condition]) -> tuple[int, int]:
        """(kept between images, a frame of each spatial port waiting; the most during one): subjects' entries, prompt
        and pictures; during one also the next entries, and the joined keys and values of a layer."""
        options, config = self.options, self.model.config
        entry, picture = entry_bytes(config, options.cond_size, self.dtype), 3 * options.cond_size**2
        text = (1 + options.text_len) * self._text_width * self.dtype.itemsize
        subjects = sum(condition.placing == "subject" for condition in chosen)
        retained = subjects * entry + text + len(chosen) * picture
        tokens = options.text_len + (height // TOKEN) * (width // TOKEN)
        tokens += len(chosen) * (options.cond_size // TOKEN) ** 2
        joined = 2 * tokens * config.dim * self.dtype.itemsize
        return retained, retained + len(chosen) * entry + joined


def _json(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text())
