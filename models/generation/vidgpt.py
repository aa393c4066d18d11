"""ViD-GPT as a stage: every frame made so far is the prompt of the next ones (arXiv 2406.10981, vidgpt.md).

The network is Ca2-VDM's. The cache grows with the video and has a hard end, `frames`; reaching it is an error, never a
silent drop. The noise a chunk starts from leans on the frame before (progressive noise). Ours, not the paper's:
`window` bounds the past, positions then run round the table, and the stream has no end.

State (`ClipState`): as Ca2-VDM's, the temporal cache sized for `frames`, and the last frame of progressive noise.
At the paper's size (28 layers of 1152, 32 x 32 latents, fp16) 31.5 MiB a frame: 2.0 GiB for 65 frames, doubled under
guidance. Policy: `Full`, or `PastQueue` with a window. Source: the official repository's early history, of which
CausalSTDiT2 (Apache-2.0) is the working form. No weights were published.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from riverrun.kernels.policies import Full, PastQueue, PlannedPolicy
from riverrun.models.base import BadRequest, Chunk
from riverrun.models.generation.ca2vdm_net import STDiTConfig
from riverrun.models.generation.ca2vdm_stage import ClipOptions, ClipStage
from riverrun.models.generation.ca2vdm_state import ClipParams, ClipState
from riverrun.models.generation.iddpm import progressive_noise

XL_2_TEXT = STDiTConfig(caption_channels=4096, table_len=256, space_scale=0.5)
"""XL/2 at 256 x 256 with captions: the configuration of the repository's first training runs."""


@dataclass(frozen=True)
class ViDGPTOptions(ClipOptions):
    """frames: latent frames of a whole stream, those given included. alpha: how strongly noise leans on the frame
    before, 0 for not at all. window: clean frames a chunk sees, which lifts the limit (ours); None: all.
    """

    chunk: int = 16
    frames: int = 65
    alpha: float = 2.0
    window: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames <= self.chunk:
            raise BadRequest(f"frames must be more than a chunk of {self.chunk}, got {self.frames}")
        if not 0 <= self.alpha <= 100:
            raise BadRequest(f"alpha must be 0..100, got {self.alpha}")
        if self.window is not None and self.window < self.chunk:
            raise BadRequest(f"window must hold a chunk of {self.chunk} frames, got {self.window}")


class ViDGPT(ClipStage):
    """All frames are kept, up to a hard limit; or the newest, without one."""

    Options = ViDGPTOptions
    released = XL_2_TEXT
    options: ViDGPTOptions

    def policy(self) -> PlannedPolicy:
        options = self.options
        return Full(options.frames) if options.window is None else PastQueue(options.window, options.chunk)

    def most_given(self) -> int:
        options = self.options
        return options.frames - options.chunk if options.window is None else options.window

    def kept_frames(self) -> int:
        options = self.options
        return options.frames if options.window is None else 2 * options.window

    def push(self, state: ClipState, chunk: Chunk) -> None:
        super().push(state, chunk)
        if state.given is not None and (problem := self._too_long(state.params, len(state.given))):
            state.given = None
            raise BadRequest(problem)

    def _too_long(self, params: ClipParams, given: int) -> str | None:
        wanted = given + self.options.chunk * (params.chunks or 1)
        if self.options.window is not None or wanted <= self.options.frames:
            return None
        return f"{wanted} frames were asked for, this model's streams have at most {self.options.frames}"

    def _fitted(self, config: STDiTConfig) -> STDiTConfig:
        options = self.options
        if options.window is not None and config.position == "absolute":
            config = replace(config, position="cyclic")  # the same rows, until they come round
        elif options.window is None and options.frames > config.table_len:
            raise BadRequest(f"frames must be at most the table's {config.table_len} positions, got {options.frames}")
        return super()._fitted(config)

    def _admit(self, state: ClipState) -> None:
        super()._admit(state)
        written = state.stream.caches.frames + (0 if state.given is None else len(state.given))
        if self.options.window is None and written + self.options.chunk > self.options.frames:
            raise BadRequest(f"the stream is at its limit of {self.options.frames} frames; a window has none")

    def _drawn(self, state: ClipState, draw: int) -> Tensor:
        noise = super()._drawn(state, draw)
        if draw == 0 and self.options.alpha:
            noise = progressive_noise(noise, self.options.alpha, state.tail)
            state.tail = noise[:, -1].clone()
        return noise

    def _session_bytes(self, guidance_rows: int) -> int:
        tail = self.config.in_channels * math.prod(self.config.latent_size) * 4 if self.options.alpha else 0
        return super()._session_bytes(guidance_rows) + tail
