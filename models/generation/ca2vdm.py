"""Ca2-VDM as a stage: an endless stream of latent frames in bounded memory (arXiv 2411.16375, ca2vdm.md).

Clean frames always carry timestep 0 and attention over time is causal, so their keys serve every denoising step of
every later chunk. A queue holds the newest `past` frames; position ids run round a table, so no stream meets its end.

State (`ClipState`): the temporal cache, depth x (past + chunk) frames of raw keys and values, a row for each guidance
row and place; the prefix cache, keys and values of the last written frames; caption, waiting prompt and first frames;
counters. At the released size (28 layers of 1152, 32 x 32 latents, past 25, chunk 8, fp16): 1.02 GiB and 0.09 GiB,
doubled under guidance. (The official cache has no room for the chunk itself and copies as it rolls: 0.77 GiB.)
Policy: `PastQueue`. Source of the network: the official repository's CausalSTDiT2 (Apache-2.0). Its authors published
no weights; training starts from Open-Sora 1.0's (Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass

from riverrun.kernels.policies import PastQueue
from riverrun.models.base import BadRequest
from riverrun.models.generation.ca2vdm_net import STDiTConfig
from riverrun.models.generation.ca2vdm_stage import ClipOptions, ClipStage

SKY_TIMELAPSE = STDiTConfig()
"""XL/2 at 256 x 256 without captions: the configuration of the repository's SkyTimelapse runs."""


@dataclass(frozen=True)
class Ca2VDMOptions(ClipOptions):
    """past: clean frames a chunk sees. The defaults are those of SkyTimelapse."""

    past: int = 25
    perturb_t: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.past < self.chunk:
            raise BadRequest(f"past must hold a chunk of {self.chunk} frames, got {self.past}")


class Ca2VDM(ClipStage):
    """The newest frames are kept, the oldest leave."""

    Options = Ca2VDMOptions
    released = SKY_TIMELAPSE
    options: Ca2VDMOptions

    def policy(self) -> PastQueue:
        return PastQueue(self.options.past, self.options.chunk)

    def most_given(self) -> int:
        return self.options.past

    def kept_frames(self) -> int:
        return 2 * self.options.past

    def _fitted(self, config: STDiTConfig) -> STDiTConfig:
        if config.position == "absolute":
            raise BadRequest("absolute positions end the stream; this stage wants cyclic ones or rope")
        window = self.options.past + self.options.chunk
        if config.position == "rope" and config.table_len != window:
            raise BadRequest(f"with rope past + chunk must be the table's {config.table_len} positions, got {window}")
        return super()._fitted(config)
