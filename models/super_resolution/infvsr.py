"""InfVSR as a stage: a blurred, small video becomes a sharp one of four times the size, endlessly.

Paper: arXiv 2510.00948 (infvsr_flashvsr.md A1). Frames are upscaled bicubically, encoded by Wan's VAE, restored in
one step of a chunk-causal transformer that looks back one chunk, and decoded. A chunk is 3 latent frames: 9 frames at
the start of a scene, 12 afterwards. One frame goes out for every frame that came in, 15 later (a cut may be found so
late) and in chunks. A scene cut, a new frame size or a "new_scene" control forgets everything that came before.

State (`InfVSRState`), at the released size, 480x832 out, bfloat16: cache 1.6 GiB (823 MiB of it filled between
steps), VAE encoder and decoder 1.0 and 1.8 GiB, reference tokens and their keys 26 MiB, up to 26 frames that wait,
2 MB. Policy: `Full` of N + 1 chunks, trimmed to the newest N after each; keys after RMSNorm and RoPE, at frame numbers
since the scene began.

With a `ConditionalDecoder` in place of the VAE's (a form we add: the shipped tiny weights restore by it), its history
takes the place of the VAE decoder's: a frame at the size of the input for each of its memory blocks.

Weights (InfVSR.ckpt, MIT code, no licence stated for the weights; Wan2.1 VAE, Apache-2.0; recognise-anything and DAPE,
Apache-2.0 code) are loaded under their official key names.

T frames, H W height and width; latents are (1, F, C, h, w), pixels (1, T, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from riverrun.kernels.histories import Histories
from riverrun.kernels.shared import TextEntry
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
from riverrun.models.key_forms import dit_keys, vae_keys
from riverrun.models.room import room
from riverrun.models.snapshot import below, to_tensors
from riverrun.models.state import check_frames, frames_of, reading, refuse_broken, rewriting
from riverrun.models.super_resolution.decoder import ConditionalDecoder, DecoderConfig, enlarged
from riverrun.models.super_resolution.guidance import VisualGuidance, merge_dape, trunk_keys
from riverrun.models.super_resolution.infvsr_state import (
    SNAPSHOT_VERSION,
    InfVSROptions,
    InfVSRParams,
    InfVSRState,
)
from riverrun.models.super_resolution.restorer import Restorer, Scene
from riverrun.models.super_resolution.scenes import (
    FIRST,
    MIN_SCENE,
    NEXT,
    SceneChunk,
    SceneSplitter,
    revision_of,
    uneven_times,
)
from riverrun.models.super_resolution.swin import SWIN_L, SwinConfig
from riverrun.models.super_resolution.tiles import TiledVAE, Tiling
from riverrun.models.wan.dit import WAN_1_3B, WanConfig, WanModel
from riverrun.models.wan.sizes import vae_session
from riverrun.models.wan.vae import WAN21_VAE, VAEConfig, WanVAE
from riverrun.models.weights import as_tuples, default_device, float_dtype, load_frozen, read, read_sizes

INFVSR_DIT = dataclasses.replace(WAN_1_3B, text_dim=512, text_len=1 + SWIN_L.tokens)
"""Wan 1.3 B with a narrower context: the 145 tokens of a reference frame in place of a prompt."""
DECODER = "decoder"
"""Name of a conditional decoder's histories, beside those of the VAE's tiles."""
INFVSR_WINDOW = 6
"""Latent frames its cache has room for: the previous chunk and the current one."""


class InfVSR(StreamModel):
    """Weights of transformer, VAE and guidance; every session's state is an argument."""

    Params = InfVSRParams

    def __init__(
        self,
        weights: str,
        vae: str,
        guidance: str,
        *,
        dape: str | None = None,
        decoder: str | None = None,
        weights_config: str | None = None,
        vae_config: str | None = None,
        guidance_config: str | None = None,
        decoder_config: str | None = None,
        dtype: str = "float32",
        device: str | None = None,
        **options: Any,
    ) -> None:
        """weights, vae, guidance, dape: paths or hub names, any form `models/weights.py` reads; dape None: `guidance`
        has it merged in already, or goes without. decoder: a `ConditionalDecoder` in place of the VAE's, of which then
        only the encoder is read. *_config: JSON with the sizes, default the released ones (for the decoder its own).
        device: default CUDA where there is one. options: InfVSROptions.
        """
        self.options = parse_params(InfVSROptions, as_tuples(options))
        self.device = default_device(device)
        self.dtype = float_dtype(dtype)
        dit = read_sizes(WanConfig, weights_config, INFVSR_DIT)
        with torch.device("meta"):
            self.model = WanModel(dit).eval()
            self.vae = WanVAE(read_sizes(VAEConfig, vae_config, WAN21_VAE)).eval()
            self.guidance = VisualGuidance(read_sizes(SwinConfig, guidance_config, SWIN_L), dit.text_dim).eval()
        if self.guidance.tokens != dit.text_len:
            raise BadRequest(f"the transformer takes {dit.text_len} tokens, the guidance gives {self.guidance.tokens}")
        trunk = trunk_keys(read(guidance)) if dape is None else merge_dape(trunk_keys(read(guidance)), read(dape))
        load_frozen(self.model, dit_keys(read(weights)), self.device, self.dtype)
        self.decoder = None if decoder is None else self._conditional(decoder, decoder_config)
        load_frozen(self.vae, self._vae_tensors(vae), self.device, self.dtype)
        load_frozen(self.guidance, trunk, self.device, self.dtype)
        o = self.options
        self.restorer = Restorer(self.model, o.timestep, o.sigma, self._latents(NEXT, is_first=False), o.previous)
        self.tiled = TiledVAE(self.vae, Tiling(o.tile_above, o.tile_size, o.tile_stride))

    def _conditional(self, source: str, config: str | None) -> ConditionalDecoder:
        sizes = read_sizes(DecoderConfig, config, DecoderConfig())
        vae, scale = self.vae.config, self.options.scale
        wanted = (vae.z_dim, scale, vae.spatial_factor, vae.temporal_factor)
        if (got := (sizes.z_dim, sizes.scale, sizes.spatial_factor, sizes.temporal_factor)) != wanted:
            names = "latent channels, scale, pixels and frames a latent"
            raise BadRequest(f"the decoder is made for {got} ({names}), VAE and options have {wanted}")
        with torch.device("meta"):
            decoder = ConditionalDecoder(sizes).eval()
        load_frozen(decoder, read(source), self.device, self.dtype)
        return decoder

    def _vae_tensors(self, source: str) -> dict[str, Tensor]:
        tensors = vae_keys(read(source))
        if self.decoder is None:
            return tensors
        del self.vae.decoder, self.vae.conv2  # whoever decodes by it now is told at once
        return {name: tensor for name, tensor in tensors.items() if name.startswith(("encoder.", "conv1."))}

    # -- sessions --------------------------------------------------------------------------------------------

    def describe(self, params: InfVSRParams) -> Description:
        height, width = self._size(params)
        return Description(
            inputs=(Port("frames", Kind.FRAMES),),
            outputs=(Port("frames", Kind.FRAMES),),
            chunk_frames=NEXT,
            first_frames=FIRST,
            latency_frames=FIRST + (MIN_SCENE if params.find_scenes else 0),
            fps=self.options.fps,
            controls=("parameters",),
            frame_shape=(height * self.options.scale, width * self.options.scale),
            sizes_vary=True,
            retained_bytes=self._session_bytes(height, width, params.find_scenes),
        )

    def open(self, params: InfVSRParams, seed: int) -> InfVSRState:
        """seed is not used: nothing here is random."""
        self._size(params)
        options = self.options
        threshold = options.scene_threshold if params.find_scenes else None
        return InfVSRState(params, SceneSplitter(threshold, options.reference_threshold))

    def push(self, state: InfVSRState, chunk: Chunk) -> None:
        size, most = check_frames(chunk).shape[1:3], self._size(state.params)
        if min(size) < 1 or np.prod(self._padded(size)) > np.prod(self._padded(most)):
            raise BadRequest(f"this session takes frames as large as {most[0]} x {most[1]}, got {size[0]} x {size[1]}")
        for frame in frames_of(chunk):
            state.splitter.add(frame)

    def control(self, state: InfVSRState, control: Control) -> None:
        """Parameters {"new_scene": true}: the next chunk begins a new scene, whatever the frames show."""
        if control.kind != "parameters":
            raise BadRequest(f"InfVSR takes parameters, got a control of kind {control.kind!r}")
        if not isinstance(control.value, Mapping) or dict(control.value) != {"new_scene": True}:
            raise BadRequest(f"parameters that can change while it runs: new_scene (true), got {control.value!r}")
        state.splitter.begin_scene()
        state.revision = control.revision

    def ready(self, state: InfVSRState) -> bool:
        return state.splitter.due > 0

    def batch_key(self, state: InfVSRState) -> Any:
        """Sessions share a step if their next chunks are as large and as long."""
        splitter = state.splitter
        if not splitter.due:
            return None
        return self._padded(splitter.waiting[0].pixels.shape[:2]), self._latents(splitter.due, splitter.at_scene)

    @torch.no_grad()
    def step(self, states: Sequence[InfVSRState]) -> list[list[Chunk]]:
        """One chunk each; encoder and decoder session by session, the transformer in one batch."""
        refuse_broken(states)
        if waiting := [state for state in states if not self.ready(state)]:
            raise BadRequest(f"{len(waiting)} session(s) wait for more frames")
        with rewriting(states):
            made = self.restored(states, [chunk for state in states if (chunk := state.splitter.take())])
        return [[chunk] for chunk in made]

    def finish(self, state: InfVSRState) -> list[Chunk]:
        """The frames that still wait, in as many chunks as they make; a frame after that begins a new scene."""
        state.splitter.cut()
        chunks: list[Chunk] = []
        while self.ready(state):
            chunks += self.step([state])[0]
        return chunks

    def decisions(self, state: InfVSRState) -> Any:
        """Cuts found and references taken, where scenes are looked for; see `SceneSplitter`."""
        return state.splitter.decisions()

    def force(self, state: InfVSRState, decisions: Any) -> None:
        state.splitter.force(decisions)

    # -- parts of a step -------------------------------------------------------------------------------------

    def restored(self, states: Sequence[InfVSRState], chunks: Sequence[SceneChunk]) -> list[Chunk]:
        """What a step makes of these chunks of the sessions."""
        latents = [self._encode(state, chunk) for state, chunk in zip(states, chunks, strict=True)]
        scenes = [state.scene for state in states if state.scene is not None]
        clean, _ = self.restorer.call(scenes, [state.text for state in states], torch.cat(latents))
        return [self._emit(*each) for each in zip(states, chunks, clean.split(1), strict=True)]

    def _encode(self, state: InfVSRState, chunk: SceneChunk) -> Tensor:
        """Enters the chunk's scene and takes its reference; returns its latents (1, F, C, h, w)."""
        levels = self._levels(chunk)
        if chunk.is_new_scene:
            self._enter(state, (levels.shape[2], levels.shape[3]))
        if chunk.is_new_reference:
            self._look_at(state, self.guidance(levels[:1]))
        pixels = self._enlarged(levels * 2 - 1, is_first=chunk.is_new_scene)
        return self.tiled.encode(pixels[None].to(self.dtype), state.histories)

    def _levels(self, chunk: SceneChunk) -> Tensor:
        """[T, 3, H, W] in [0, 1]."""
        frames = np.stack([frame.pixels for frame in chunk.frames])  # (T, H, W, 3)
        return torch.from_numpy(frames).to(self.device).permute(0, 3, 1, 2).float() / 255

    def _enter(self, state: InfVSRState, size: tuple[int, int]) -> None:
        state.scene = None  # its cache is freed before the next is made
        state.scene, state.histories, state.size = self._scene(size), self.tiled.open(*self._padded(size)), size
        if self.decoder is not None:
            state.histories[DECODER] = Histories()

    def _scene(self, size: tuple[int, int], device: str | None = None) -> Scene:
        factor = self.vae.config.spatial_factor
        with room(self.device):
            return self.restorer.open([side // factor for side in self._padded(size)], device=device)

    def _look_at(self, state: InfVSRState, context: Tensor) -> None:
        state.context = context
        state.text = TextEntry(*self.model.text_keys_values(self.model.embed_text(context)))

    def _enlarged(self, x: Tensor, is_first: bool) -> Tensor:
        """x [T, 3, H, W] upscaled, and padded to what the VAE takes."""
        return self._fitted(enlarged(x, self.options.scale), self.options.scale, is_first)

    def _fitted(self, x: Tensor, scale: int, is_first: bool) -> Tensor:
        """x [T, 3, H, W], frames at `scale`, padded as the VAE needs it by repeating the last row, column and frame."""
        height, width = x.shape[2:]
        padded = [side * scale // self.options.scale for side in self._padded((height // scale, width // scale))]
        x = F.pad(x, (0, padded[1] - width, 0, padded[0] - height), mode="replicate")
        missing = self._frames(self._latents(len(x), is_first), is_first) - len(x)
        return torch.cat([x, x[-1:].expand(missing, -1, -1, -1)])

    def _emit(self, state: InfVSRState, chunk: SceneChunk, latents: Tensor) -> Chunk:
        first = chunk.frames[0]
        state.revision = max(state.revision, revision_of(chunk.frames))
        # The official script truncates; what our own decoder makes is rounded.
        levels = (self._decode(state, latents, chunk) + 1) * 127.5 + (0 if self.decoder is None else 0.5)
        levels = levels.clamp(0, 255).to(torch.uint8)
        emitted = Chunk(
            port="frames",
            data=levels.permute(0, 2, 3, 1).contiguous().cpu().numpy(),  # (T, H, W, 3)
            pts=first.pts,
            frame_ticks=chunk.frames[-1].ticks,
            frames=len(levels),
            first_frame=state.frames,
            revision=state.revision,
            times=uneven_times(chunk.frames),
        )
        state.frames += len(levels)
        return emitted

    def _decode(self, state: InfVSRState, latents: Tensor, chunk: SceneChunk) -> Tensor:
        """[T, 3, H, W] in [-1, 1], without the padding."""
        height, width = (side * self.options.scale for side in state.size)
        if self.decoder is None:
            pixels = self.tiled.decode(latents, state.histories)
        else:
            frames = self._fitted(self._levels(chunk) * 2 - 1, 1, chunk.is_new_scene)[None]
            pixels = self.decoder(latents, frames.to(self.dtype), state.histories[DECODER]).clamp(-1, 1)
        return pixels[0, : len(chunk.frames), :, :height, :width]

    # -- snapshot --------------------------------------------------------------------------------------------

    def restore(self, params: InfVSRParams, snapshot: Snapshot) -> InfVSRState:
        state = self.open(params, 0)
        with reading(snapshot, SNAPSHOT_VERSION) as meta:
            self._fill(state, meta, to_tensors(snapshot.tensors, meta["dtypes"], "cpu", ("cache/",)))
        return state

    @torch.no_grad()
    def _fill(self, state: InfVSRState, meta: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        """tensors: on the CPU; each goes to its place alone, for a second cache may not fit on the device."""
        state.frames, state.revision = meta["frames"], meta["revision"]
        waiting = {name: tensor.numpy() for name, tensor in below(tensors, "splitter/").items()}
        state.splitter.restore(meta["splitter"], waiting)
        scene = meta["scene"]
        if scene is None:
            return
        self._enter(state, (scene["size"][0], scene["size"][1]))
        assert state.scene is not None
        state.scene.cache.restore(scene["cache"], below(tensors, "cache/"))
        state.scene.start, state.scene.sizes = scene["start"], list(scene["sizes"])
        if (found := sorted(scene["histories"])) != (wanted := sorted(state.histories)):
            raise ValueError(f"its VAE tiles are {found}, this model's {wanted}")
        for tile, slots in scene["histories"].items():
            kept = {path: t.to(self.device) for path, t in below(tensors, f"histories/{tile}/").items()}
            state.histories[tile] = Histories.restore(slots, kept)
        self._look_at(state, tensors["context"].to(self.device))

    # -- sizes -----------------------------------------------------------------------------------------------

    def _size(self, params: InfVSRParams) -> tuple[int, int]:
        options = self.options
        height = options.height if params.height is None else params.height
        width = options.width if params.width is None else params.width
        if height < 1 or width < 1:
            raise BadRequest(f"height and width must be at least 1, got {height} x {width}")
        if height * width > options.max_pixels:
            raise BadRequest(f"at most {options.max_pixels} pixels a frame here, got {height} x {width}")
        return height, width

    def _padded(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width, enlarged and padded, of frames of `size`."""
        multiple = self.vae.config.spatial_factor * self.model.config.patch_size[1]
        height, width = (-(-side * self.options.scale // multiple) * multiple for side in size)
        return height, width

    def _latents(self, frames: int, is_first: bool) -> int:
        """Latent frames that hold so many frames."""
        factor = self.vae.config.temporal_factor
        return -(-(frames - 1) // factor) + 1 if is_first else -(-frames // factor)

    def _frames(self, latents: int, is_first: bool) -> int:
        """Frames that so many latent frames make."""
        factor = self.vae.config.temporal_factor
        return (latents - 1) * factor + 1 if is_first else latents * factor

    def _session_bytes(self, height: int, width: int, find_scenes: bool) -> int:
        """The most bytes of a State between steps, from shapes alone (nothing is allocated)."""
        padded, factor, config = self._padded((height, width)), self.vae.config.spatial_factor, self.model.config
        tiles = self.tiled.tiling.tiles(padded[0] // factor, padded[1] // factor, factor)
        vae = self.vae.config
        sessions = [vae_session(vae, tile.height * factor, tile.width * factor, self.dtype) for tile in tiles]
        histories = sum(session.parts["encoder history"] for session in sessions)
        if self.decoder is None:
            histories += sum(session.parts["decoder history"] for session in sessions)
        else:
            rows, columns = (side // self.options.scale for side in padded)
            histories += self.decoder.history_bytes(rows, columns, self.dtype.itemsize)
        context = config.text_len * (config.text_dim + 2 * config.num_layers * config.dim) * self.dtype.itemsize
        frames = NEXT - 1 + (MIN_SCENE + 2 if find_scenes else 0)  # the detector keeps two more
        cache = self._scene((height, width), device="meta").cache.nbytes
        return cache + histories + context + frames * height * width * 3
